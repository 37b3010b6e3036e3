"""A run is data: what to train, for how long, with which seed. A list of them is a JSON file."""

import dataclasses
import json
from pathlib import Path
from typing import Any

PAPERS = Path(__file__).resolve().parent.parent / "papers"
WORK = PAPERS / "work"  # checkpoints, locks and decoded images; ignored by git
RESULTS = PAPERS / "results"

# What a list of runs may leave out.
DEFAULTS: dict[str, Any] = {
    "depth": 8,  # ResNet of that many layers, width 16, 32, 64
    "start": "random",  # or "pretrained": the weights of the data folder
    "batch_size": 128,
    "learning_rate": 0.1,  # decays to 0 with a cosine over each stage
    "momentum": 0.9,
    "l2": 1e-4,
    "precision": "auto",  # of the training, see `networks.precision_of`; accuracy at the end is measured in float32
    "held_out": 5000,  # the last of the training images: never trained on, and what choices are made by
}
OPTIONAL = ("network",)  # "vgg9" in place of the ResNet of `depth`
# What a method may say.
METHOD = ("recipe", "dfp", "kernel", "schedule", "activations", "stages", "teacher", "prune", "settings")


@dataclasses.dataclass(frozen=True)
class Run:
    """One training.

    study: the list it stands in.   method: its name there; `what` says what that means (see `METHOD`).
    settings: the fields of `DEFAULTS`, and those of `OPTIONAL` that a list gives.   epochs: in total, over all stages.
    """

    study: str
    method: str
    epochs: int
    seed: int
    what: dict[str, Any]
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """`<study>/<method>-<epochs>-seed<seed>`: also the path of its result."""
        return f"{self.study}/{self.method}-{self.epochs}-seed{self.seed}"

    @property
    def stages(self) -> int:
        """How often the optimizer and the learning rate start anew."""
        return self.what.get("stages", 1)

    @property
    def stage_epochs(self) -> int:
        """Epochs of one stage."""
        return self.epochs // self.stages

    @property
    def identity(self) -> dict[str, Any]:
        """What a stored result must say to be this run's."""
        return {
            "study": self.study,
            "method": self.method,
            "epochs": self.epochs,
            "seed": self.seed,
            "what": self.what,
            "settings": self.settings,
        }


def read_runs(path: Path) -> list[Run]:
    """The runs of a list, in the order in which they are to be made.

    The file: ``purpose``, ``settings`` (what differs from `DEFAULTS`), ``methods`` (name -> what it is; with ``settings`` of
    its own where it differs), ``blocks``: each has ``seeds`` and ``runs``, pairs (method, epochs). Seed by seed: every seed
    of a block is a complete comparison before the next one begins. A run that an earlier block has is made once.
    """
    content = json.loads(path.read_text())
    settings = DEFAULTS | _known(path, "settings", content.get("settings", {}), (*DEFAULTS, *OPTIONAL))
    methods = {name: _known(path, name, what, METHOD) for name, what in content["methods"].items()}
    found: dict[str, Run] = {}
    for block in content["blocks"]:
        for seed in block["seeds"]:
            for method, epochs in block["runs"]:
                if method not in methods:
                    raise ValueError(f"{path} asks for the method {method!r}; it defines {', '.join(methods)}.")
                what = dict(methods[method])
                own = _known(path, method, what.pop("settings", {}), (*DEFAULTS, *OPTIONAL))
                run = Run(path.stem, method, epochs, seed, what, settings | own)
                _check_stages(path, run)
                found.setdefault(run.name, run)
    return list(found.values())


def _known(path: Path, name: str, given: dict[str, Any], known: Any) -> dict[str, Any]:
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{path} has {unknown} in {name!r}; known are {', '.join(known)}.")
    return given


def _check_stages(path: Path, run: Run) -> None:
    if run.epochs % run.stages:
        raise ValueError(
            f"{path}: {run.epochs} epochs of {run.method!r} are not {run.stages} stages of equal length. Give a multiple of "
            f"{run.stages}."
        )


def read_queue(paths: list[Path]) -> list[Run]:
    """The runs of several lists, one list after another."""
    return [run for path in paths for run in read_runs(path)]


def all_lists() -> list[Path]:
    """The lists of `studies/papers`, in the order of `queue.json`."""
    return [PAPERS / f"{name}.json" for name in json.loads((PAPERS / "queue.json").read_text())["lists"]]


def result_path(run: Run, results: Path = RESULTS) -> Path:
    """Where the result of a run is stored."""
    return results / f"{run.name}.json"


def stored_result(run: Run, results: Path = RESULTS) -> dict[str, Any] | None:
    """The finished run, or None. A ValueError if the file is that of other settings."""
    path = result_path(run, results)
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    wanted = json.loads(json.dumps(run.identity))
    if differing := [name for name, value in wanted.items() if found.get(name) != value]:
        raise ValueError(
            f"{path} is the result of another run: its {differing[0]} is {found.get(differing[0])}, the list says "
            f"{wanted[differing[0]]}. Give the changed run another name, or remove the file."
        )
    return found
