"""Measure the peak memory of each competitor in a separate process.

The images that it returns are subtracted, as a caller need not keep them; memory held for the model
is not. On a CPU the peak is the kernel's high-water mark of resident memory, reset before the work,
as a process inherits `ru_maxrss` from its parent.
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
from bench.engine.float32_precision import allow_tf32
from bench.workflows.speed import workloads
from bench.workflows.speed.competitors import list_competitors
from bench.workflows.speed.race import TF32, CompetitorResult, Race, silence_output
from bench.workflows.speed.setup import Competitor, RaceTask, load_task

PROC = Path("/proc/self")


@dataclass(frozen=True, kw_only=True)
class MemoryJob:
    """What the process loads and runs."""

    work: str
    model: int
    """Index among the workload's models."""
    competitor: str
    device: str
    data_dir: str
    limit: int
    data: str | None
    rows: int
    threads: int


def measure_memory(race: Race, job: MemoryJob) -> None:
    """Measure every competitor of a race that ran, and store the results in its outcomes.

    Args:
        race: A finished race; changed.
        job: What to run; the competitor is filled in.
    """
    for outcome in race.outcomes:
        if outcome.status == "ok":
            _measure(outcome, job)


def _measure(outcome: CompetitorResult, job: MemoryJob) -> None:
    rows = outcome.competitor.rows or job.rows
    filled = {**asdict(job), "competitor": outcome.competitor.name, "rows": rows}
    run = subprocess.run(
        [sys.executable, "-m", "bench.workflows.speed.memory"],
        input=json.dumps(filled),
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode == 0:
        outcome.memory = int(run.stdout.splitlines()[-1])
    else:
        outcome.memory_reason = (run.stderr.strip().splitlines() or ["no answer"])[-1]


def measure_peak(job: MemoryJob) -> int:
    """Run a job in this process.

    Args:
        job: What to run.

    Returns:
        Peak memory of the work in bytes.
    """
    torch.set_num_threads(job.threads)
    work = workloads.select_workloads([job.work], workloads.read_workloads())[0]
    task = load_task(
        work,
        work.models[job.model],
        device=torch.device(job.device),
        data_dir=Path(job.data_dir),
        limit=job.limit,
        data=job.data,
    )
    listed = list_competitors(work, device=task.device)
    competitor = next(each for each in listed if each.name == job.competitor)
    seeded = rng.seed_global("speed", work.name, competitor.name)
    with allow_tf32(TF32), seeded, silence_output():
        return _run_measured(competitor, task, job.rows)


def _run_measured(competitor: Competitor, task: RaceTask, rows: int) -> int:
    few = task.shortened(2)  # loads code and chooses kernels
    competitor.prepare(few)(min(rows, 2))
    gc.collect()
    before = _read_used(task.device)
    run = competitor.prepare(task)
    gc.collect()
    _reset_peak(task.device)
    result = run(rows)
    # A bare loop returns no images, but holds some for its passes.
    held = task.x if result.x_adv is None else result.x_adv
    return max(_read_peak(task.device) - before - held.numel() * held.element_size(), 0)


def _read_used(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError, AttributeError):  # freed memory is not in use
        ctypes.CDLL(None).malloc_trim(0)
    return _read_status("VmRSS") or _read_peak(device)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):  # no such kernel: the mark then includes earlier peaks
        (PROC / "clear_refs").write_text("5", encoding="ascii")


def _read_peak(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return _read_status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _read_status(key: str) -> int:
    """Return an entry of the kernel's status of this process in bytes; 0 if there is none."""
    path = PROC / "status"
    lines = path.read_text(encoding="ascii").splitlines() if path.exists() else []
    values = [line.split() for line in lines if line.startswith(f"{key}:")]
    return int(values[0][1]) * 1024 if values else 0


if __name__ == "__main__":
    sys.stdout.write(f"{measure_peak(MemoryJob(**json.load(sys.stdin)))}\n")
