"""Published results say whether the present code would make them."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

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
PAGES = stale.read_pages()
"""Page that says whether a run is stale -> the run, or the entries of the leaderboard."""
FGSM = PAGES[ROOT / "results" / "fgsm" / "report.md"][0]


@pytest.fixture(scope="module")
def found() -> dict[Path, tuple[Any, list[str]]]:
    """Page -> its first stale run, and why it is stale."""
    return {report: stale.find_page_reasons(runs) for report, runs in PAGES.items()}


def test_a_page_says_below_its_title_whether_its_run_is_stale(
    found: dict[Path, tuple[Any, list[str]]],
) -> None:
    wrong = [
        report
        for report, (run, reasons) in found.items()
        if report.read_text(encoding="utf-8")
        != stale.mark_report(report.read_text(encoding="utf-8"), run, reasons)
    ]
    assert wrong == []


def test_the_overview_names_every_stale_folder_and_no_other(
    found: dict[Path, tuple[Any, list[str]]],
) -> None:
    overview = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    section = overview.partition(f"\n{SECTION}\n")[2].partition("\n## ")[0]
    named = re.findall(r"^\| \[([\w-]+)\]", section, flags=re.MULTILINE)
    assert sorted(named) == sorted(report.parent.name for report in found if found[report][1])
    for report, (run, reasons) in found.items():
        if reasons:
            row = next(line for line in section.splitlines() if f"[{report.parent.name}]" in line)
            assert f"| {run.commit}, {run.started[:10]} |" in row


def test_a_raised_version_makes_a_current_run_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stale.find_reasons(FGSM) == []
    monkeypatch.setattr(identity, "NUMERICS_VERSION", identity.NUMERICS_VERSION + 1)
    (reason,) = stale.find_reasons(FGSM)
    assert reason.startswith("FGSM (code: version 1, numerics 1, judge 1 then, version 1, ")


def test_a_changed_suite_or_another_plan_makes_a_current_run_stale() -> None:
    manifest = {**FGSM.manifest, "suite": {**FGSM.manifest["suite"], "text": "another"}}
    (reason,) = stale.find_reasons(FGSM._replace(manifest=manifest))
    assert reason == "suites/fgsm.toml has changed since"
    (reason,) = stale.find_reasons(
        FGSM._replace(identities=dict(list(FGSM.identities.items())[1:]))
    )
    assert reason == "1 cells are planned only then or only now"


def test_a_run_of_before_the_versions_is_stale_however_its_cells_are_recorded() -> None:
    (reason,) = stale.find_reasons(FGSM._replace(started="2026-11-21T05:35:22"))
    assert reason.startswith("before the versions")


def test_each_entry_of_a_leaderboard_is_compared() -> None:
    runs = PAGES[ROOT / "results" / "leaderboard" / "README.md"]
    assert len(runs) > 5
    old = runs[-1]._replace(started="2026-11-21T05:35:22")
    run, reasons = stale.find_page_reasons([*runs[:-1], old])
    assert run == old
    assert [each.partition(": before")[0] for each in reasons] == [f"entry {old.entry}"]


def test_the_overview_states_the_figures_of_the_stored_tables() -> None:
    page = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    assert page == claims.replace_section(page)


def test_a_figure_of_a_cell_that_is_not_stored_is_an_error() -> None:
    with pytest.raises(LookupError, match=r"results/fgsm: 0 cells are LeNet · FGSM · 0\.31"):
        claims.robust("fgsm", "LeNet", "FGSM", 0.31)()


def test_a_mark_is_written_once_and_removed() -> None:
    page = "<!-- generated -->\n\n# Title\n\nText.\n"
    marked = stale.mark_report(page, FGSM, ["why"])
    assert marked.startswith(f"<!-- generated -->\n\n# Title\n\n{FGSM.mark}: why. ")
    assert stale.mark_report(marked, FGSM, ["why"]) == marked
    assert stale.mark_report(marked, FGSM, []) == page
