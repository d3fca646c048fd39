"""A suite of threats without a norm: run, resumed, reported and checked by the gate."""

from pathlib import Path

import pytest
from cheap_runs import few_rows, no_figures
from click.testing import CliRunner

import bench
from bench.analysis.results import read_results
from bench.cli import cli
from bench.reporting.run_output import write_run_output

__all__ = ["few_rows", "no_figures"]

SUITE = """
schema = 1
name = "families"
[data]
name = "digits"
limit = 12
[[models]]
name = "lenet"
weights = "digits"
[[attacks]]
name = "rotation_translation"
norm = "rotation-translation"
eps = [0, 0.5]
params = { angles = 3, shifts = 3 }
[[attacks]]
name = "patch_pgd"
norm = "patch"
eps = [0.1]
params = { steps = 4, alpha = 0.3 }
[[attacks]]
name = "universal"
norm = "linf"
eps = [0.2]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "families.toml").write_text(SUITE, encoding="utf-8")
    bench.run(str(tmp_path / "families.toml"), out=tmp_path / "out", device="cpu")
    return tmp_path / "out"


def test_records_have_the_parameters_of_families_alone(folder: Path) -> None:
    frame = read_results(folder).stored.frame
    said = (frame["parameters"].astype(str) != "").groupby(frame["norm"].astype(str)).sum()
    assert said["linf"] == 0
    assert said["patch"] == frame[frame["norm"] == "patch"]["attacked"].sum() > 0
    assert said["rotation-translation"] > 0


def test_report_and_worst_case_treat_a_family_as_a_norm(folder: Path) -> None:
    results = read_results(folder)
    write_run_output(results, folder)
    assert (results.table["status"] == "ok").all()
    assert set(results.worst["norm"]) == {"rotation-translation", "patch", "linf"}
    page = (folder / "report.md").read_text(encoding="utf-8")
    assert "lenet, rotation-translation, untargeted: robust accuracy" in page
    assert not (folder / "corruptions.csv").exists()


def test_a_second_run_attacks_nothing_again(folder: Path) -> None:
    files = sorted(path.name for path in (folder / "records").iterdir())
    times = [path.stat().st_mtime_ns for path in sorted((folder / "records").iterdir())]
    bench.run(str(folder.parent / "families.toml"), out=folder, device="cpu")
    assert sorted(path.name for path in (folder / "records").iterdir()) == files
    assert [p.stat().st_mtime_ns for p in sorted((folder / "records").iterdir())] == times


def test_the_gate_compares_a_family_with_its_baseline(folder: Path) -> None:
    baseline = str(folder.parent / "base.json")
    made = CliRunner().invoke(cli, ["baseline", str(folder), "-o", baseline])
    assert made.exit_code == 0, made.output
    checked = CliRunner().invoke(cli, ["check", str(folder), "--baseline", baseline])
    assert checked.exit_code == 0, checked.output
