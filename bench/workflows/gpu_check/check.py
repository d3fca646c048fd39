"""Run the parts of a GPU check, each within a share of the time, and write each result at once."""

import gc
import json
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.core import files
from bench.core.errors import describe
from bench.engine.device import enter_device, is_gpu
from bench.storage.environment import describe_environment
from bench.workflows.gpu_check import captures, leading, page, passes, race
from bench.workflows.gpu_check.setup import Job, Setup

Line = dict[str, Any]
LINES, PAGE = "gpu_check.jsonl", "gpu_check.md"
WHERE = 1500
"""Last characters of a traceback that are kept."""


class Part(NamedTuple):
    """Measurements of one question."""

    title: str
    list_jobs: Callable[[Setup], Iterator[Job]]
    share: float
    """Of the time. What a part leaves goes to the next ones."""


def list_machine_jobs(setup: Setup) -> Iterator[Job]:
    """List what is read of the machine.

    Args:
        setup: Device, images and sizes.

    Yields:
        One job.
    """
    yield Job("versions", partial(describe_machine, setup.device))


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Describe device, driver and versions.

    Args:
        device: The device that is checked.

    Returns:
        Plain values by name.
    """
    found = describe_environment(device)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "driver": _read_driver(),
            "memory": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "cudnn": torch.backends.cudnn.version(),
            "devices": torch.cuda.device_count(),
        }
    return found


def _read_driver() -> str:
    """Return the version of the driver; empty where nvidia-smi does not say it."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return (done.stdout.splitlines() or [""])[0].strip()


PARTS = {
    "machine": Part("The machine", list_machine_jobs, 0.03),
    "captures": Part("Steps as CUDA graphs", captures.list_jobs, 0.30),
    "race": Part("PGD on LeNet at seven eps", race.list_jobs, 0.27),
    "memory": Part("Memory and waits over repeated calls", passes.list_memory_jobs, 0.08),
    "precision": Part("A gradient of ResNet50", passes.list_precision_jobs, 0.15),
    "leading": Part("PGD on ResNet50 by the precision that leads", leading.list_jobs, 0.08),
    "autoattack": Part("AutoAttack on a robust LeNet", passes.list_ensemble_jobs, 0.12),
    "device": Part("A second GPU", passes.list_device_jobs, 0.05),
}


def run_check(
    setup: Setup,
    out: Path,
    seconds: float,
    on_line: Callable[[Line], object] = lambda line: None,
    parts: Sequence[str] = tuple(PARTS),
) -> list[Line]:
    """Run parts one after another; write OUT/gpu_check.jsonl and OUT/gpu_check.md as they end.

    A measurement that fails is a result like any other; the next one runs nevertheless. No
    measurement begins after its part's time is over; one that has begun is not interrupted.

    Args:
        setup: Device, images and sizes.
        out: Folder of the results, which exists.
        seconds: Time for all parts.
        on_line: Called with each result.
        parts: Names of the parts to run.

    Returns:
        A line for each measurement: `part`, `job`, `seconds_spent`, and what it found, `failed`
        with the error, or `skipped` with the reason.
    """
    lines: list[Line] = []
    until, total = time.monotonic(), sum(PARTS[name].share for name in parts)
    with (out / LINES).open("w", encoding="utf-8") as file, enter_device(setup.device):
        for name in parts:
            until += seconds * PARTS[name].share / total
            timed = setup._replace(deadline=until)
            for line in _run_part(name, timed):
                lines.append(line)
                file.write(json.dumps(line, default=str) + "\n")
                file.flush()
                on_line(line)
            titles = {key: part.title for key, part in PARTS.items()}
            files.write_atomic(out / PAGE, page.format_page(lines, titles).encode())
    return lines


def _run_part(name: str, setup: Setup) -> Iterator[Line]:
    """Run the measurements of a part; one that lists none, because it raises, is one that fails."""
    jobs: Iterator[Job] = iter(())

    def begin() -> dict[str, Any]:
        nonlocal jobs
        jobs = iter(list(PARTS[name].list_jobs(setup)))
        return {}

    started = _run_job(name, Job("begin", begin), setup)
    if "failed" in started or "skipped" in started:
        yield started
    for job in jobs:
        yield _run_job(name, job, setup)


def _run_job(part: str, job: Job, setup: Setup) -> Line:
    """Run one measurement; return what it found, or why it found nothing."""
    line: Line = {"part": part, "job": job.name}
    if setup.seconds_left() <= 0:
        return line | {"skipped": "no time was left"}
    started = time.perf_counter()
    try:
        line |= job.run()
    except Exception as error:  # of the device: what fails there is what the check is for
        where = "".join(traceback.format_exception(error))[-WHERE:]
        line |= {"failed": describe(error), "where": where}
    line["seconds_spent"] = round(time.perf_counter() - started, 3)
    gc.collect()
    if is_gpu(setup.device):
        torch.get_device_module(setup.device).empty_cache()
    return line


def find_problems(lines: Sequence[Line], gpu: bool) -> list[str]:
    """Say what is not as it should be.

    Args:
        lines: Of `run_check`.
        gpu: Whether a GPU was checked, whose steps should be captured.

    Returns:
        A sentence for each problem.
    """
    problems = []
    for line in lines:
        where = f"{line['part']}, {line['job']}"
        if "failed" in line:
            problems.append(f"{where}: {line['failed']}")
        if gpu and line.get("captured") is False:
            problems.append(f"{where}: not captured: {line.get('reason', 'no reason was given')}")
        if line.get("equal") is False and line.get("repeats", True):
            problems.append(
                f"{where}: the results differ, by {line.get('difference', 'some bits')}"
            )
        if line.get("grows"):
            problems.append(f"{where}: memory grows from call to call")
    return problems
