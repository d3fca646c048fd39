"""Memory stays bounded: ten times the images need no ten times the memory, nor do a million records
need a large machine."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "helpers" / "bounded.py"
GROWTH = 1.10
A_MILLION, GIB = 10**6, 1024.0
PATIENCE = 30.0
"""Seconds of processor time in which a million records are to be written and summarised."""


pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="this platform has no peak memory there"
)


def measure(folder: Path, *runs: str) -> list[dict[str, Any]]:
    """What runs of so many IMAGES:SIDE:EPS:STAGES take, each in a process of its own."""
    command = [sys.executable, str(SCRIPT), str(folder), *runs]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_ten_times_the_images_or_eps_take_less_than_a_tenth_more_memory(tmp_path: Path) -> None:
    """In chunks of 100; all images of the larger run, at every eps, would take 110 MiB."""
    runs = ("100:48:4:report", "1000:48:4:report", "100:8:3:report", "100:8:30:report")
    few_images, many_images, few_eps, many_eps = measure(tmp_path, *runs)
    assert many_images["rows"] == 10 * few_images["rows"]
    assert many_eps["cells"] == 10 * few_eps["cells"]
    for stage in ("run_mib", "summarised_mib", "report_mib"):
        assert many_images[stage] < GROWTH * few_images[stage], stage
        assert many_eps[stage] < GROWTH * few_eps[stage], stage


@pytest.mark.slow
def test_a_million_records_are_written_and_summarised_within_a_gibibyte(tmp_path: Path) -> None:
    """Everything is in it: Python and torch (400 MiB), the net and its attacks; the seconds are
    those of writing and reading alone, six times what was measured. A run of 1,000 examples is
    measured by attacks, the other nine tenths of the records are its own at other examples."""
    (run,) = measure(tmp_path, "1000:8:50:read")
    assert run["rows"] == A_MILLION
    assert run["cells"] == 100
    assert run["summarised_mib"] < GIB
    spent = run["seconds"]
    assert spent["write"] + spent["read"] + spent["hash"] < PATIENCE
