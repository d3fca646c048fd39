"""Published results say whether the present code would make them."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from bench.suite import identity

ROOT = Path(__file__).parents[1]
SECTION = "## Made by an older version"


def load_script(name: str) -> ModuleType:
    """Load a script of .ci, which is no module of a package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


stale, claims = load_script("stale"), load_script("claims")
RUNS = {run.report: run for run in stale.read_published_runs()}
"""Page that says whether a run is stale -> the run, or one entry of the leaderboard."""


@pytest.fixture(scope="module")
def reasons() -> dict[Path, list[str]]:
    """Page -> why its run is stale."""
    return {report: stale.find_reasons(run) for report, run in RUNS.items()}


def test_a_page_says_below_its_title_whether_its_run_is_stale(
    reasons: dict[Path, list[str]],
) -> None:
    wrong = [
        report
        for report, run in RUNS.items()
        if report.read_text(encoding="utf-8")
        != stale.mark_report(report.read_text(encoding="utf-8"), run, reasons[report])
    ]
    assert wrong == []


def test_the_overview_names_every_stale_folder_and_no_other(
    reasons: dict[Path, list[str]],
) -> None:
    overview = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    section = overview.partition(f"\n{SECTION}\n")[2].partition("\n## ")[0]
    named = re.findall(r"^\| \[([\w-]+)\]", section, flags=re.MULTILINE)
    assert sorted(named) == sorted(report.parent.name for report in RUNS if reasons[report])
    for report, run in RUNS.items():
        if reasons[report]:
            row = next(line for line in section.splitlines() if f"[{report.parent.name}]" in line)
            assert f"| {run.commit}, {run.started[:10]} |" in row


def test_a_raised_version_makes_a_current_run_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    run = RUNS[ROOT / "results" / "fgsm" / "report.md"]
    assert stale.find_reasons(run) == []
    monkeypatch.setattr(identity, "NUMERICS_VERSION", identity.NUMERICS_VERSION + 1)
    (reason,) = stale.find_reasons(run)
    assert reason.startswith("FGSM (code: version 1, numerics 1, judge 1 then, version 1, ")


def test_a_changed_suite_or_another_plan_makes_a_current_run_stale() -> None:
    run = RUNS[ROOT / "results" / "fgsm" / "report.md"]
    manifest = {**run.manifest, "suite": {**run.manifest["suite"], "text": "another"}}
    (reason,) = stale.find_reasons(run._replace(manifest=manifest))
    assert reason == "suites/fgsm.toml has changed since"
    (reason,) = stale.find_reasons(run._replace(identities=dict(list(run.identities.items())[1:])))
    assert reason == "1 cells are planned only then or only now"


def test_a_run_of_before_the_versions_is_stale_however_its_cells_are_recorded() -> None:
    run = RUNS[ROOT / "results" / "fgsm" / "report.md"]
    (reason,) = stale.find_reasons(run._replace(started="2026-11-21T05:35:22"))
    assert reason.startswith("before the versions")


def test_the_overview_states_the_figures_of_the_stored_tables() -> None:
    page = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    assert page == claims.replace_section(page)


def test_a_figure_of_a_cell_that_is_not_stored_is_an_error() -> None:
    with pytest.raises(LookupError, match=r"results/fgsm: 0 cells are LeNet · FGSM · 0\.31"):
        claims.robust("fgsm", "LeNet", "FGSM", 0.31)()


def test_a_mark_is_written_once_and_removed() -> None:
    run = RUNS[ROOT / "results" / "fgsm" / "report.md"]
    page = "<!-- generated -->\n\n# Title\n\nText.\n"
    marked = stale.mark_report(page, run, ["why"])
    assert marked.startswith(f"<!-- generated -->\n\n# Title\n\n{run.mark}: why. ")
    assert stale.mark_report(marked, run, ["why"]) == marked
    assert stale.mark_report(marked, run, []) == page
