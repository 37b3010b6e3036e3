"""Processor seconds of every test file, the costliest first.

`python -m pytest -n 0 -p tests.support.processor_time tests/convert` lists those of a folder. On a busy machine wall times say
little. Counted are user and system time of this process and of those it has waited for.
"""

import collections
import resource

import pytest

SPENT: collections.Counter[str] = collections.Counter()


def _now():
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    begun = _now()
    result = yield
    SPENT[item.nodeid.split("::")[0]] += _now() - begun
    return result


def pytest_terminal_summary(terminalreporter):
    terminalreporter.section(f"{SPENT.total():.1f} processor seconds")
    for file, seconds in SPENT.most_common():
        terminalreporter.write_line(f"{seconds:7.1f} {file}")
