"""`python -m tests.fuzz --files 5000 --output fuzz.json`: counts by kind of file; the exit status says whether any is bad.

A bad file comes again with `python -m tests.fuzz.worker KIND SEED FILE FILE+1`.
"""

import argparse
import json
import sys

from keras_lowbit.bench.machine import machine
from keras_lowbit.files import atomic_write, check_writable
from tests.fuzz.run import BAD, fuzz

KINDS = ("klb", "tflite", "checkpoint", "keras")

parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
parser.add_argument("--files", type=int, default=1000, help="of each kind")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--kind", action="append", choices=KINDS, help="all by default")
parser.add_argument("--output", help="JSON file to write")
flags = parser.parse_args()
if flags.output:
    check_writable(flags.output)
reports = []
for kind in flags.kind or KINDS:
    reports.append(fuzz(kind, flags.files, flags.seed))
    print(f"{kind}: {reports[-1]['files']} files, {reports[-1]['counts']}", flush=True)
    for line in reports[-1]["bad"]:
        print(f"  file {line['file']}: {line['outcome']}\n{line['detail']}")
if flags.output:
    about = {"machine": machine(), "must_be_zero": BAD, "kinds": reports}
    atomic_write(flags.output, (json.dumps(about, indent=1) + "\n").encode())
sys.exit(any(report["bad"] for report in reports))
