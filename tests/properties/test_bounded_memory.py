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
"""Seconds in which a million records are to be written and summarised."""


pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="this platform does not tell peak memory there"
)


def run(folder: Path, images: int, eps: int) -> dict[str, Any]:
    command = [sys.executable, str(SCRIPT), str(folder), str(images), str(eps)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(told)
    return told


def test_ten_times_the_images_take_less_than_a_tenth_more_memory(tmp_path: Path) -> None:
    one, ten = run(tmp_path / "one", 400, 4), run(tmp_path / "ten", 4000, 4)
    assert ten["rows"] == 10 * one["rows"]
    for stage in ("run_mib", "summarised_mib", "report_mib"):
        assert ten[stage] < GROWTH * one[stage], stage


def test_ten_times_the_eps_take_less_than_a_tenth_more_memory(tmp_path: Path) -> None:
    one, ten = run(tmp_path / "one", 400, 3), run(tmp_path / "ten", 400, 30)
    assert ten["cells"] == 10 * one["cells"]
    for stage in ("run_mib", "summarised_mib", "report_mib"):
        assert ten[stage] < GROWTH * one[stage], stage


@pytest.mark.slow
def test_a_million_records_are_written_and_summarised_within_a_gibibyte(tmp_path: Path) -> None:
    """Everything is in it: Python and torch (700 MiB), the net and its attacks; the seconds are
    those of writing and reading alone, six times what was measured."""
    told = run(tmp_path / "million", 10000, 34)
    assert told["rows"] >= A_MILLION
    assert told["summarised_mib"] < GIB
    spent = told["seconds"]
    assert spent["write"] + spent["read"] + spent["hash"] < PATIENCE
