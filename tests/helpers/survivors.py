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
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.analysis import results
from bench.engine import malloc
from bench.evaluation import evaluator
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


def prepare() -> None:
    """Eight examples per chunk, so that there is much to write; the audit's probes, which ask much
    of a model and write nothing, are left out."""
    evaluator.CHUNK_EXAMPLES = 8
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


def killed(process: int, after: float) -> bool:
    """Whether the process was still at work after so many seconds, and died of SIGKILL."""
    ends = time.monotonic() + after
    while time.monotonic() < ends:
        if os.waitpid(process, os.WNOHANG)[0]:
            return False
        time.sleep(0.001)
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    return os.WIFSIGNALED(status)


def random_kills(folder: Path, kills: int) -> dict[str, Any]:
    """Kill at random moments until so many kills have hit; a folder that is finished is compared
    and another begun."""
    random = np.random.default_rng(SEED)
    started = time.monotonic()
    os.waitpid(child(lambda: attempt(folder, folder / "paced")), 0)
    longest = 1.1 * (time.monotonic() - started)
    hits, finished, stages = 0, 0, []
    while hits < kills or not (folder / f"{finished}" / "done").exists():
        out = folder / f"{finished}"
        process = child(lambda: attempt(folder, out))  # noqa: B023 - it runs before the next turn
        if hits < kills and killed(process, float(random.uniform(0, longest))):
            hits += 1
            stages.append(len(list((out / "records").glob("*.parquet"))))
            continue
        if hits >= kills:
            with suppress(ChildProcessError):
                os.waitpid(process, 0)
        (out / "done").touch()
        finished += hits < kills
    outs = [path.parent for path in sorted(folder.glob("*/done"))]
    return {"hits": hits, "stages": stages, "outcomes": [outcome(out) for out in outs]}


def main(folder: Path, kills: int) -> None:
    prepare()
    attempt(folder, folder / "whole")
    print(json.dumps({**random_kills(folder, kills), "whole": outcome(folder / "whole")}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
