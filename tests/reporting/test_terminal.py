"""The closing table of a run in the terminal."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.cli import cli

SUITE = """
schema = 1
name = "closing"
data = { name = "digits", limit = 4 }
models = [{ name = "softmax", weights = "random" }]

[[attacks]]
name = "fgsm"
norm = "linf"
eps = [0.1, 0.5]

[[attacks]]
name = "noise"
norm = "linf"
eps = [0.1, 0.5]

[[attacks]]
name = "mine.py:ATTACK"
label = "broken"
norm = "linf"
eps = [0.5]
"""
BROKEN = """
import dataclasses
from bench.attacks.noise import ATTACK as noise

def run(model, x, y, threat, params, rng):
    raise RuntimeError("broken")

ATTACK = dataclasses.replace(noise, run=run, rule=None)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder of a run with an attack that fails at one eps, and what the run printed."""
    folder = tmp_path_factory.mktemp("closing")
    (folder / "suite.toml").write_text(SUITE)
    (folder / "mine.py").write_text(BROKEN)
    return folder / "out", bench("run", folder / "suite.toml", "--out", folder / "out")


def bench(*words: object) -> str:
    """Output of a command."""
    done = CliRunner(env={"COLUMNS": "200"}).invoke(cli, [str(word) for word in words])
    assert done.exception is None, done.output
    return done.output


def test_a_worst_case_over_fewer_attacks_says_so_below_the_table(run: tuple[Path, str]) -> None:
    said = "worst case at eps 0.5: over 2 of 3 attacks, the rest failed: an upper bound"
    assert said in run[1]
    assert run[1].count("worst case at eps") == 1
    assert run[1].index("└") < run[1].index(said)


def test_attacks_without_records_are_missing_from_a_worst_case(run: tuple[Path, str]) -> None:
    folder, _ = run
    for path in (folder / "records").glob("*noise*.parquet"):
        path.unlink()
    printed = bench("report", folder)
    assert "worst case at eps 0.1: over 1 of 2 attacks, the rest are missing" in printed
    assert "worst case at eps 0.5: over 1 of 3 attacks, the rest failed or are missing" in printed
