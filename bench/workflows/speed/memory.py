"""What a contestant takes at its peak, each asked in a process of its own.

What it brings back (its images) is taken off, for a caller may keep them or not; what it prepares
and keeps for the model is not. On a CPU the peak is the kernel's high-water mark of resident
memory, set back before the work: a process inherits the `ru_maxrss` of the one that started it.
"""

import contextlib
import ctypes
import gc
import json
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bench.core import rng
from bench.workflows.speed import workloads
from bench.workflows.speed.competitors import entered
from bench.workflows.speed.race import Outcome, Race, quiet
from bench.workflows.speed.setup import Contestant, Task, load

PROC = Path("/proc/self")


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the process is to load and run."""

    work: str
    model: int
    """Which of the work's models."""
    contestant: str
    device: str
    data_dir: str
    limit: int
    data: str | None
    rows: int
    threads: int


def add(race: Race, order: Order) -> None:
    """Ask for every contestant of a race that ran; `order` names all but the contestant."""
    for outcome in race.outcomes:
        if outcome.status == "ok":
            _ask(outcome, order)


def _ask(outcome: Outcome, order: Order) -> None:
    rows = outcome.contestant.rows or order.rows
    asked = {**asdict(order), "contestant": outcome.contestant.name, "rows": rows}
    run = subprocess.run(
        [sys.executable, "-m", "bench.workflows.speed.memory"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode == 0:
        outcome.memory = int(run.stdout.splitlines()[-1])
    else:
        outcome.memory_reason = (run.stderr.strip().splitlines() or ["no answer"])[-1]


def answer(order: Order) -> int:
    """Bytes at the peak of the work, run in this process."""
    torch.set_num_threads(order.threads)
    work = workloads.chosen([order.work], workloads.read())[0]
    task = load(
        work,
        work.models[order.model],
        device=torch.device(order.device),
        data_dir=Path(order.data_dir),
        limit=order.limit,
        data=order.data,
    )
    contestant = next(each for each in entered(work) if each.name == order.contestant)
    with rng.seed_global("speed", work.name, contestant.name), quiet():
        return _peak(contestant, task, order.rows)


def _peak(contestant: Contestant, task: Task, rows: int) -> int:
    few = task.shortened(2)  # code is loaded and kernels are chosen on two images
    contestant.prepare(few)(min(rows, 2))
    gc.collect()
    before = _used(task.device)
    run = contestant.prepare(task)
    gc.collect()
    _set_back(task.device)
    brought = run(rows)
    # A bare loop brings nothing back, but holds images to make its passes on.
    kept = task.x if brought.x_adv is None else brought.x_adv
    return max(_highest(task.device) - before - kept.numel() * kept.element_size(), 0)


def _used(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError, AttributeError):  # what was freed is not in use
        ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS") or _highest(device)


def _set_back(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):  # no such kernel: the mark then holds what came before, too
        (PROC / "clear_refs").write_text("5", encoding="ascii")


def _highest(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(key: str) -> int:
    """Bytes that the kernel states for this process; 0 where there is no such file."""
    path = PROC / "status"
    lines = path.read_text(encoding="ascii").splitlines() if path.exists() else []
    found = [line.split() for line in lines if line.startswith(f"{key}:")]
    return int(found[0][1]) * 1024 if found else 0


if __name__ == "__main__":
    sys.stdout.write(f"{answer(Order(**json.load(sys.stdin)))}\n")
