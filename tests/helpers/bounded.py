"""One run in a process of its own, so that its peak memory is its own: n tiny images, some attacks
at many eps, every record written and read back. Prints what it took as JSON.

    python tests/helpers/bounded.py FOLDER IMAGES EPS
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.analysis import results
from bench.engine import malloc
from bench.execution import options, runner
from bench.reporting import run_output
from bench.storage import fingerprint, records
from bench.suite.reader import parse_suite

SUITE = """
schema = 1
name = "bounded"
[data]
name = "bounded.py:images"
[[models]]
name = "bounded.py:net"
"""
ATTACKS = ("fgsm", "noise", "bim")


def net() -> nn.Module:
    """Two layers over 8 x 8 pixels, the same ones every time."""
    drawn = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    with torch.no_grad():
        for weights in model.parameters():
            weights.copy_(torch.randn(weights.shape, generator=drawn) / weights.shape[-1] ** 0.5)
    return model


def images(limit: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, and the classes that the net sees in it."""
    x = torch.rand(limit or 10000, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, net()(x).argmax(1)


def suite_of(eps: int) -> str:
    """The suite, every attack at so many eps."""
    radii = [round(0.2 * (k + 1) / eps, 5) for k in range(eps)]
    tables = [f'[[attacks]]\nname = "{name}"\nnorm = "linf"\neps = {radii}\n' for name in ATTACKS]
    return SUITE + "".join(tables)


def timed(spent: dict[str, float], name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """The call, whose seconds are added up under a name."""

    def within(*given: Any, **more: Any) -> Any:
        started = time.perf_counter()
        try:
            return call(*given, **more)
        finally:
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - started

    return within


def peak() -> float:
    """Most memory that this process has held, MiB; not that of the one that started it, which
    `ru_maxrss` begins with."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10


def main(folder: Path, n: int, eps: int) -> None:
    malloc.keep_freed_memory()
    torch.set_num_threads(1)
    spent: dict[str, float] = {}
    records.write_records = timed(spent, "write", records.write_records)
    started = peak()
    parsed = parse_suite(suite_of(eps), "bounded.toml", Path(__file__).parent)
    runner.run_suite(parsed, folder, options.RunOptions(device="cpu", limit=n))
    ran = peak()
    found = timed(spent, "read", results.read_results)(folder)
    timed(spent, "hash", fingerprint.records_hash)(found.stored.frame)
    summarised = peak()
    timed(spent, "report", run_output.write_run_output)(found, folder)
    told = {
        "rows": len(found.stored.frame),
        "cells": len(found.table),
        "loaded_mib": started,
        "run_mib": ran,
        "summarised_mib": summarised,
        "report_mib": peak(),
        "seconds": spent,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
