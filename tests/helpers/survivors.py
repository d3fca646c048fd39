"""A run that is killed again and again, in a process of its own.

Starting Python and torch takes longer than the run, so one warm process forks a child for each
attempt and kills that. What it saw is printed as JSON.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.analysis import results
from bench.engine import malloc
from bench.evaluation import chunk_sizes
from bench.evaluation.audit import probe_models
from bench.execution import runner
from bench.execution.options import RunOptions
from bench.storage import fingerprint
from bench.suite.reader import read_suite

SUITE = """
schema = 1
name = "killed"
[data]
name = "digits"
limit = 16
[[models]]
name = "lenet"
weights = "digits"
[[attacks]]
name = "fgsm"
norm = "linf"
eps = [0.1, 0.2]
[[attacks]]
name = "pgd"
norm = "linf"
eps = [0, 0.1]
params.steps = 2
[[attacks]]
name = "fmn"
norm = "l2"
eps = [0.5, 1.5]
params.steps = 3
"""
OPTIONS = RunOptions(device="cpu", batch_size=16, copied=False)
TIMES = ("seconds", "examples_per_second", "floor_ratio", "verify_seconds")
SEED = 20
STAGES = 5  # of 0 to 6 files


def prepare() -> None:
    """Eight examples per chunk, so that there is much to write; the audit's probes, which ask much
    of a model and write nothing, are left out."""
    chunk_sizes.CHUNK_EXAMPLES = 8
    probe_models.probe_model = lambda *asked: probe_models.describe_unprobed(asked[3], "left out")
    malloc.keep_freed_memory()
    torch.set_num_threads(1)


def attempt(folder: Path, out: Path) -> None:
    path = folder / "killed.toml"
    path.write_text(SUITE, encoding="utf-8")
    runner.run_suite(read_suite(str(path)), out, OPTIONS)


def outcome(out: Path) -> list[str]:
    """The hash of the records, and the table without its times."""
    finished = results.read_results(out)
    table = finished.table.drop(columns=list(TIMES))
    return [fingerprint.records_hash(finished.stored.frame), table.to_csv(index=False)]


def child(work: Callable[[], None]) -> int:
    """The process that does this work and nothing else."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def killed(process: int, due: Callable[[], bool]) -> bool:
    """Whether the process was still at work when its kill was due, and died of SIGKILL."""
    while not due():
        if os.waitpid(process, os.WNOHANG)[0]:
            return False
        time.sleep(0.001)
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    return os.WIFSIGNALED(status)


def written(out: Path) -> int:
    """How many files of records the folder holds."""
    return len(list((out / "records").glob("*.parquet")))


def random_kills(folder: Path, kills: int) -> dict[str, Any]:
    """Kill until so many kills have hit, after at least five different numbers of files; a folder
    that is finished is compared and another begun.

    Every other kill comes at a random moment, the rest when one to three more files are written: on
    a busy machine the moments alone may all fall before the first file.
    """
    random = np.random.default_rng(SEED)
    started = time.monotonic()
    os.waitpid(child(lambda: attempt(folder, folder / "paced")), 0)
    longest = 1.1 * (time.monotonic() - started)
    hits, finished, stages = 0, 0, []
    while hits < kills or len(set(stages)) < STAGES:
        assert hits < 20 * kills, f"{hits} kills hit only after {set(stages)} files"
        out = folder / f"{finished}"
        end = time.monotonic() + float(random.uniform(0, longest))
        files = written(out) + int(random.integers(1, 4))
        moments = (lambda: time.monotonic() >= end, lambda: written(out) >= files)  # noqa: B023
        process = child(lambda: attempt(folder, out))  # noqa: B023 - it runs before the next turn
        if killed(process, moments[hits % 2]):
            hits += 1
            stages.append(written(out))
        else:
            (out / "done").touch()
            finished += 1
    out = folder / f"{finished}"
    os.waitpid(child(lambda: attempt(folder, out)), 0)
    (out / "done").touch()
    outs = [path.parent for path in sorted(folder.glob("*/done"))]
    return {"hits": hits, "stages": stages, "outcomes": [outcome(out) for out in outs]}


def main(folder: Path, kills: int) -> None:
    prepare()
    attempt(folder, folder / "whole")
    print(json.dumps({**random_kills(folder, kills), "whole": outcome(folder / "whole")}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
