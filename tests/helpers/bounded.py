"""Runs whose peak memory is measured: tiny images, a few attacks at many eps, every record written
and read back. Each runs in a process that is forked from this one, which has imported everything
and run nothing, so that its peak is its own. Prints what each took as JSON, one line per run.

    python tests/helpers/bounded.py FOLDER IMAGES:SIDE:EPS:STAGES ...

STAGES is "report", for a run with its pages and plots, or "read": then the records of the run are
written nine times more, for as many other examples, and all are read back.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.analysis import results
from bench.attacks import bim, fgsm, noise  # noqa: F401 - imported before the processes are forked
from bench.engine import malloc
from bench.evaluation import chunk_sizes
from bench.execution import options, runner
from bench.reporting import run_output
from bench.storage import fingerprint, reader, records
from bench.suite.reader import parse_suite

SUITE = """
schema = 1
name = "bounded"
[data]
name = "bounded.py:images"
params = {{ side = {side} }}
[[models]]
name = "bounded.py:net"
params = {{ side = {side} }}
"""
ATTACKS = {"report": ("fgsm", "noise", "bim"), "read": ("fgsm", "noise")}
PARAMS = {"bim": "params.steps = 2\n"}
CHUNK = {"report": 100, "read": 1000}
"""Examples per chunk: few where ten times the images are to be ten times the chunks."""
COPIES = 10
"""As often are the records of a run written in all where nothing is reported."""


def net(side: int = 8) -> nn.Module:
    """Two layers over side x side pixels, the same ones every time."""
    drawn = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(side**2, 32), nn.ReLU(), nn.Linear(32, 10))
    with torch.no_grad():
        for weights in model.parameters():
            weights.copy_(torch.randn(weights.shape, generator=drawn) / weights.shape[-1] ** 0.5)
    return model


def images(limit: int | None = None, side: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, and the classes that the net sees in it."""
    x = torch.rand(limit or 10000, 1, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, net(side)(x).argmax(1)


def suite_of(side: int, eps: int, attacks: tuple[str, ...]) -> str:
    """The suite, every attack at so many eps."""
    radii = [round(0.2 * (k + 1) / eps, 5) for k in range(eps)]
    tables = [
        f'[[attacks]]\nname = "{name}"\nnorm = "linf"\neps = {radii}\n{PARAMS.get(name, "")}'
        for name in attacks
    ]
    return SUITE.format(side=side) + "".join(tables)


def timed(spent: dict[str, float], name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """The call, whose seconds of processor time are added up under a name."""

    def within(*given: Any, **more: Any) -> Any:
        started = time.process_time()
        try:
            return call(*given, **more)
        finally:
            spent[name] = spent.get(name, 0.0) + time.process_time() - started

    return within


def peak() -> float:
    """Most memory that this process has held, MiB; not that of the one that started it, which
    `ru_maxrss` begins with."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10


def multiply_records(folder: Path, n: int) -> None:
    """Write the records of n examples again for the next n, and so on, as a longer run does."""
    for path in sorted((folder / "records").glob("*.parquet")):
        frame, pieces = reader.read_file(path), reader.read_file_pieces(path)
        for shift in range(n, n * COPIES, n):
            later = [
                piece._replace(first=piece.first + shift, last=piece.last + shift)
                for piece in pieces
            ]
            examples = frame["example"] + shift
            records.write_records(folder, "copy", frame.assign(example=examples), later, {})
    about = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    about["data"]["n"] = n * COPIES
    (folder / "provenance.json").write_text(json.dumps(about), encoding="utf-8")


def measure(folder: Path, n: int, side: int, eps: int, stages: str) -> dict[str, Any]:
    """Run the suite, read it back, report it; what each stage took."""
    spent: dict[str, float] = {}
    records.write_records = timed(spent, "write", records.write_records)
    chunk_sizes.CHUNK_EXAMPLES = CHUNK[stages]
    started = peak()
    suite = parse_suite(suite_of(side, eps, ATTACKS[stages]), "bounded.toml", Path(__file__).parent)
    runner.run_suite(suite, folder, options.RunOptions(device="cpu", limit=n))
    if stages == "read":
        multiply_records(folder, n)
    ran = peak()
    finished = timed(spent, "read", results.read_results)(folder)
    timed(spent, "hash", fingerprint.records_hash)(finished.stored.frame)
    summarised = peak()
    if stages == "report":
        run_output.write_run_output(finished, folder)
    return {
        "rows": len(finished.stored.frame),
        "cells": len(finished.table),
        "loaded_mib": started,
        "run_mib": ran,
        "summarised_mib": summarised,
        "report_mib": peak(),
        "seconds": spent,
    }


def main(folder: Path, wanted: list[str]) -> None:
    malloc.keep_freed_memory()
    torch.set_num_threads(1)
    for at, each in enumerate(wanted):
        n, side, eps, stages = each.split(":")
        process = os.fork()
        if not process:
            code = 1
            try:
                took = measure(folder / str(at), int(n), int(side), int(eps), stages)
                print(json.dumps(took), flush=True)
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(process, 0)
        if status:
            sys.exit(f"{each}: the run failed")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
