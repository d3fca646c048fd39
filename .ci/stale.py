"""Find published results that the present code would not make.

    python .ci/stale.py [--data-dir DIR] [--mark]

Nothing is run. The suite of each folder of results/ is planned again, and the settings of its
cells, among them the versions of the attack, the numerics, the judge and the library, are compared
with the recorded ones, except those of a library that is not installed. With --data-dir the models
are loaded, too, and the identities of all cells are compared. A stale folder must say so below the
title of its report; --mark writes the sentence there, and removes it where it no longer holds. The
exit code is 1 if a report is wrong about this, or an identity differs where no setting does.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bench.core.errors import SuiteError
from bench.execution.options import RunOptions
from bench.execution.preparation import load_evaluator
from bench.suite import plan
from bench.suite.plan import Cell
from bench.suite.reader import read_suite
from bench.suite.schema import Suite

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
MARK = "**Made by an older version of bench**"
VERSIONED = "2026-11-28T12:31"
"""When identities were first made of versions. Those of earlier runs were rewritten for attacks
whose own file had not changed since; whether the engine had is not recorded."""
SHOWN = 3
"""Differing attacks that a sentence names."""

Key = tuple[str, str, float]
"""Model, attack and eps of a cell."""


class PublishedRun(NamedTuple):
    """What a folder of results/ records of its making."""

    report: Path
    suite: str
    started: str
    commit: str
    session: Mapping[str, Any]
    manifest: Mapping[str, Any]
    settings: Mapping[tuple[str, str], Mapping[str, Any]]
    """Model and attack -> recorded settings."""
    identities: Mapping[Key, str]
    entry: str = ""
    """Name of an entry of a leaderboard."""

    @property
    def mark(self) -> str:
        """How the sentence below the title of a stale report begins."""
        return f"{MARK} (commit {self.commit}, {self.started[:10]})"


def read_published_runs(results: Path = RESULTS) -> list[PublishedRun]:
    """Read what all folders of results/ record.

    Args:
        results: The folder of the published results.

    Returns:
        Runs in order, then the entries of the leaderboard.
    """
    runs = [_read_run(path) for path in sorted(results.glob("*/provenance.json"))]
    entries = sorted(results.glob("*/entries/*/baseline.json"))
    return [*runs, *(_read_entry(path) for path in entries)]


def _read_run(path: Path) -> PublishedRun:
    manifest = json.loads(path.read_text(encoding="utf-8"))
    session, cells = manifest["sessions"][-1], manifest["cells"]
    return PublishedRun(
        report=path.with_name("report.md"),
        suite=manifest["suite"]["name"],
        started=session["started"],
        commit=_commit(session["environment"]),
        session=session,
        manifest=manifest,
        settings={(each["model"], each["attack"]): each.get("settings") or {} for each in cells},
        identities={
            (each["model"], each["attack"], each["eps"]): each["identity"] for each in cells
        },
    )


def _read_entry(path: Path) -> PublishedRun:
    baseline = json.loads(path.read_text(encoding="utf-8"))
    about = baseline["provenance"]
    return PublishedRun(
        # A test makes leaderboard.md again byte for byte.
        report=path.parents[2] / "README.md",
        suite=baseline["suite"],
        started=about["started"],
        commit=_commit(about),
        session=about,
        manifest=baseline,
        settings={(each["model"], each["attack"]): each["settings"] for each in baseline["tasks"]},
        identities={},
        entry=path.parent.name,
    )


def read_pages(results: Path = RESULTS) -> dict[Path, list[PublishedRun]]:
    """Read what all folders of results/ record, by the page that says whether it is stale.

    Args:
        results: The folder of the published results.

    Returns:
        Page -> its run; its entries, where it is that of a leaderboard.
    """
    pages: dict[Path, list[PublishedRun]] = {}
    for run in read_published_runs(results):
        pages.setdefault(run.report, []).append(run)
    return pages


def _commit(about: Mapping[str, Any]) -> str:
    return str((about.get("git") or {}).get("commit", "unknown"))[:7]


# ---------------------------------------------------------------------------------- the comparison


def find_reasons(run: PublishedRun, data_dir: Path | None = None) -> list[str]:
    """Compare a published run with what the present code plans for the same suite.

    Args:
        run: What the folder records.
        data_dir: Folder of the data sets; None: models are not loaded, nor identities compared.

    Returns:
        Clauses that say why it is stale; empty if the present code would make the same cells.
    """
    if not (ROOT / "suites" / f"{run.suite}.toml").is_file():
        return [f"there is no suites/{run.suite}.toml any more"]
    return list(_list_reasons(run, read_suite(run.suite), data_dir))


def find_page_reasons(
    runs: list[PublishedRun], data_dir: Path | None = None
) -> tuple[PublishedRun, list[str]]:
    """Compare all runs of a page.

    Args:
        runs: What the folder records.
        data_dir: As for `find_reasons`.

    Returns:
        The first stale run, or the first of all; clauses that name the entry they are about.
    """
    found = [(run, find_reasons(run, data_dir)) for run in runs]
    reasons = [
        f"entry {run.entry}: {each}" if run.entry else each for run, own in found for each in own
    ]
    return next((run for run, own in found if own), runs[0]), reasons


def _list_reasons(run: PublishedRun, suite: Suite, data_dir: Path | None) -> Iterator[str]:
    if run.started < VERSIONED:
        yield "before the versions of attacks, numerics and judge were recorded"
    if "suite" in run.manifest and run.identities:
        if suite.text != run.manifest["suite"]["text"]:
            yield f"suites/{run.suite}.toml has changed since"
        planned = {
            (model.label, entry.label, eps.value)
            for model in suite.models
            for entry in suite.attacks
            for eps in entry.eps
        }
        if planned != run.identities.keys():
            yield f"{len(planned ^ run.identities.keys())} cells are planned only then or only now"
    changed = {
        attack: change
        for (_, attack), change in _list_changed_settings(run, _plan_settings(suite, run))
    }
    if changed:
        yield _shorten([f"{attack} ({changed[attack]})" for attack in sorted(changed)])
    if data_dir is None or not run.identities:
        return
    try:
        cells = _plan_loaded(suite, run, data_dir)
    except SuiteError as error:  # weights that do not ship
        print(f"{run.suite}: identities are not compared: {error}", file=sys.stderr)
        return
    other = {
        f"{cell.model} · {cell.attack}"
        for cell in cells
        if not _lacks_library(cell)
        and run.identities.get((cell.model, cell.attack, cell.eps), cell.identity) != cell.identity
    }
    if other:
        yield f"other model, data or settings now: {_shorten(sorted(other))}"


def _plan_settings(suite: Suite, run: PublishedRun) -> list[Cell]:
    """Plan a suite without its models; what was measured of them is taken from the manifest."""
    facts = plan.collect_declared_facts(suite)
    for label, declared in facts.items():
        models = run.manifest["models"]
        recorded = models.get(label, {}) if isinstance(models, dict) else {}
        facts[label] = declared._replace(
            model_fingerprint="any",  # settings do not depend on it
            predictions=recorded.get("predictions", declared.predictions),
            random=recorded.get("random", declared.random),
        )
    return [cell for task in plan.plan_tasks(suite, facts) for cell in task.cells]


def _plan_loaded(suite: Suite, run: PublishedRun, data_dir: Path) -> list[Cell]:
    options = run.session.get("options") or {}
    asked = RunOptions(
        device="cpu",
        limit=options.get("limit"),
        batch_size=options.get("batch_size"),
        data_dir=data_dir,
    )
    evaluator = load_evaluator(suite, None, asked)
    facts = {label: evaluator.model_facts(label) for label in evaluator.models}
    return [cell for task in plan.plan_tasks(suite, facts) for cell in task.cells]


def _list_changed_settings(
    run: PublishedRun, cells: list[Cell]
) -> Iterator[tuple[tuple[str, str], str]]:
    for cell in cells:
        if _lacks_library(cell):
            continue
        before = run.settings.get((cell.model, cell.attack))
        for name in sorted({*(before or {}), *cell.settings}) if before else ():
            if before.get(name) != cell.settings.get(name):
                change = f"{name}: {before.get(name)} then, {cell.settings.get(name)} now"
                yield (cell.model, cell.attack), change
                break


def _lacks_library(cell: Cell) -> bool:
    """Return whether the attack is of a library that is not installed, which alone knows it."""
    return cell.reason.startswith("library '")


def _shorten(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


# --------------------------------------------------------------------------------------- the marks


def mark_report(text: str, run: PublishedRun, reasons: list[str]) -> str:
    """Write below the title of a report that its run is stale, or remove that.

    Args:
        text: The report.
        run: What its folder records.
        reasons: Why it is stale; empty if it is not.

    Returns:
        The report with at most one such sentence.
    """
    blocks = [block for block in text.strip().split("\n\n") if not block.startswith(MARK)]
    title = next(at for at, block in enumerate(blocks) if block.startswith("# "))
    if reasons:
        why = "; ".join(reasons)
        sentence = f"{run.mark}: {why}. The numbers in this folder are those of that version."
        blocks.insert(title + 1, sentence)
    return "\n\n".join(blocks) + "\n"


def main() -> int:
    """Check all folders.

    Returns:
        1 if a report is wrong about whether its run is stale.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", type=Path, help="compare identities, with the data in here")
    parser.add_argument("--mark", action="store_true", help="write into the reports what is stale")
    options = parser.parse_args()
    wrong = 0
    for runs in read_pages().values():
        run, reasons = find_page_reasons(runs)  # a report does not depend on the data at hand
        name, text = run.report.relative_to(ROOT), run.report.read_text(encoding="utf-8")
        if options.mark:
            run.report.write_text(mark_report(text, run, reasons), encoding="utf-8")
        elif text != mark_report(text, run, reasons):
            wrong += 1
            print(f"{name}: does not say this below its title; write it there with --mark")
        if options.data_dir is not None:
            run, found = find_page_reasons(runs, options.data_dir)
            wrong += bool(found) and not reasons
            reasons = found
        print(f"{name}: {f'stale: {run.commit}, ' + '; '.join(reasons) if reasons else 'current'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
