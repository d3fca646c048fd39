"""Runs -> a web page of their results, to be put on any server of files or opened from disk.

index.html holds table, charts, audit and provenance; beside it lie, in plots/, copies of the runs'
example grids, which a browser loads when they are looked at, and whatever tables the publication
wrote, to be downloaded. Every figure is spelled by `formats`, and nothing is counted here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from bench.analysis import tables
from bench.core.files import slug, write_atomic
from bench.evaluation.audit.symptoms import ObservedSymptom
from bench.reporting import templates
from bench.reporting.formats import numbers
from bench.reporting.formats import numbers as formats_numbers
from bench.reporting.formats.numbers import (
    DASH,
    format_eps,
    format_norm,
    format_percent,
    format_plural,
    format_rate,
    format_text,
    is_missing,
    map_eps_texts,
)
from bench.reporting.report import audit_view, views, writer
from bench.reporting.report.views import Row
from bench.reporting.site.sources import PublishedRun
from bench.reporting.site.svg_chart import HEIGHT, WIDTH, Chart, build_charts
from bench.suite.plan import Cell

DOWNLOADS = {
    "results.csv": "one row for each cell, as text",
    "results.parquet": "the same, typed, for pandas, R or DuckDB",
    "tables.md": "tables in Markdown",
    "tables.tex": "tables in LaTeX, booktabs",
}
"""What a publication may hold beside the page, and what each is."""
EXAMPLE_FIGURES = ("examples", "perturbations")
"""Figures that the charts do not replace: what the attacks did to the images."""


_COLUMNS = [*tables.COLUMNS, *tables.ADDITIONAL_COLUMNS]


class SortableText(NamedTuple):
    """One field of a row: how it is read, and what it is sorted by (a text by itself)."""

    text: str
    order: float | None = None


class CellRow(NamedTuple):
    """One cell of a run, as a row of the page's table."""

    run: str
    model: str
    attack: str
    norm: str
    eps: SortableText
    goal: str
    implementation: str
    n: SortableText
    clean: SortableText
    robust: SortableText
    success: SortableText
    violations: SortableText
    floor: SortableText
    share: str
    """Of the robust accuracy, for the bar under it: a percentage, or nothing."""
    status: str
    signs: list[tuple[str, str]]
    """What the audit found against this cell: name and what was seen."""
    parameters: list[tuple[str, str]]
    columns: list[str]
    """Every column of table.csv, those of the row among them."""


class RunSection(NamedTuple):
    """What the page says of one run below the table."""

    name: str
    title: str
    charts: list[Chart]
    grids: list[tuple[str, str]]
    """(path beside the page, what it shows)."""
    audit: list[audit_view.ModelAuditView]
    command: str
    facts: list[tuple[str, str]]
    suite: str
    """The TOML it was run from."""


def write_site(gathered: Sequence[PublishedRun], out: Path) -> Path:
    """Write out/index.html and out/plots/; returns the page's path. The same runs, the same bytes.

    Raises: SuiteError if the folder cannot be written.
    """
    lines = [line for each in gathered for line in build_rows(each)]
    runs = [_run(each, out, f"plots/{k}-{slug(each.name)}") for k, each in enumerate(gathered, 1)]
    context = {
        "title": _title(gathered),
        "summary": _summary(gathered),
        "lines": lines,
        "columns": {"names": _COLUMNS, "rows": [line.columns for line in lines]},
        "filters": _filters(lines),
        "many_runs": len(gathered) > 1,
        "runs": runs,
        "width": WIDTH,
        "height": HEIGHT,
        "downloads": [(name, what) for name, what in DOWNLOADS.items() if (out / name).is_file()],
        "counting": writer.COUNTING_RULES,
    }
    return write_atomic(out / "index.html", templates.render_page("site.html", context))


def _title(gathered: Sequence[PublishedRun]) -> str:
    if len(gathered) == 1:
        return format_text(gathered[0].found.provenance["suite"]["title"])
    return f"Robustness in {format_plural(len(gathered), 'run')}"


def _summary(gathered: Sequence[PublishedRun]) -> str:
    tables = [each.found.table for each in gathered]
    models = {(each.name, model) for each, table in zip(gathered, tables, strict=True)
              for model in table["model"]}  # fmt: skip
    attacks = {attack for table in tables for attack in table["attack"]}
    told = [str(status) for table in tables for status in table["status"]]
    counts = [f"{told.count(status)} {status}" for status in dict.fromkeys(["ok", *told])]
    sizes = [
        format_plural(len(models), "model"),
        format_plural(len(attacks), "attack"),
        format_plural(len(told), "cell"),
    ]
    return f"{', '.join(sizes)}: {', '.join(counts)}."


# ---------------------------------------------------------------------------------------- the table


def build_rows(run: PublishedRun) -> list[CellRow]:
    table = run.found.table
    names, cells = map_eps_texts(table), {cell.identity: cell for cell in run.found.plan}
    return [_line(run, row, cells[row["cell"]], names) for row in views.to_rows(table)]


def _line(run: PublishedRun, row: Row, cell: Cell, names: Mapping[float, str]) -> CellRow:
    robust = format_rate(row["robust_correct"], row["n"], row["robust_low"], row["robust_high"])
    return CellRow(
        run=run.name,
        model=format_text(row["model"]),
        attack=format_text(row["attack"]),
        norm=format_norm(row["norm"]),
        eps=_field(format_eps(row["eps"], names), row["eps"]),
        goal=format_text(row["goal"]),
        implementation=format_text(row["implementation"]),
        n=_field(formats_numbers.format_whole(row["n"]), row["n"]),
        clean=_field(
            format_rate(row["clean_correct"], row["n"], None, None), row["clean_accuracy"]
        ),
        robust=_field(robust, row["robust_accuracy"]),
        success=_field(format_percent(row["attack_success_rate"]), row["attack_success_rate"]),
        violations=_field(formats_numbers.format_whole(row["violations"]), row["violations"]),
        floor=_field(numbers.format_factor(row["floor_ratio"]), row["floor_ratio"]),
        share="" if is_missing(row["robust_accuracy"]) else f"{100 * row['robust_accuracy']:.1f}%",
        status=format_text(row["status"]),
        signs=[(sign.name, sign.evidence) for sign in run.found.audit.signs if _against(sign, row)],
        parameters=[(format_text(key), format_text(value)) for key, value in _parameters(cell)],
        columns=[writer.format_field(name, row, names) for name in _COLUMNS],
    )


def _field(text: str, order: Any) -> SortableText:
    return SortableText(text, None if is_missing(order) else float(order))


def _against(sign: ObservedSymptom, row: Row) -> bool:
    """Whether a sign speaks of this cell; one that names no attack, of all that see the model."""
    named = sign.attack == row["attack"] if sign.attack else row["threat_model"] == "white-box"
    there = sign.norm in ("", row["norm"]) and (is_missing(sign.eps) or sign.eps == row["eps"])
    return bool(sign.model == row["model"] and named and there and row["eps"] > 0)


def _parameters(cell: Cell) -> list[tuple[str, Any]]:
    """What the attack ran with, and how much of the model it was shown."""
    told = {
        **cell.traits,
        "stop": cell.stop,
        "access": cell.threat_model,
        "target": cell.target,
        "crafted on": cell.source,
        "seed": cell.seed,
        "most forward passes per example": numbers.format_number(cell.passes),
        "most gradients per example": numbers.format_number(cell.gradients),
    }
    return [(key, value) for key, value in told.items() if not is_missing(value) and value != DASH]


def _filters(lines: Sequence[CellRow]) -> list[tuple[str, list[str]]]:
    """For each thing to choose by, its values; eps in the order of size."""
    radii = sorted({line.eps for line in lines}, key=lambda eps: (eps.order or 0.0, eps.text))
    chosen = {
        "run": [line.run for line in lines],
        "model": [line.model for line in lines],
        "attack": [line.attack for line in lines],
        "norm": [line.norm for line in lines],
        "eps": [eps.text for eps in radii],
    }
    return [(name, list(dict.fromkeys(values))) for name, values in chosen.items()]


# ---------------------------------------------------------------------------------- below the table


def _run(run: PublishedRun, out: Path, plots: str) -> RunSection:
    found = run.found
    return RunSection(
        name=run.name,
        title=format_text(found.provenance["suite"]["title"]),
        charts=build_charts(found.table, found.worst),
        grids=_grids(run, out, plots),
        audit=audit_view.build_audit_views(found.audit, map_eps_texts(found.table)),
        command=run.command,
        facts=_facts(run),
        suite=found.provenance["suite"]["text"],
    )


def _grids(run: PublishedRun, out: Path, plots: str) -> list[tuple[str, str]]:
    """Copy the run's example grids to out/plots/..., which `plots` names."""
    told = _captions(run.found.table)
    files = [
        path
        for kind in EXAMPLE_FIGURES
        for path in sorted((run.folder / "plots").glob(f"{kind}-*.png"))
    ]
    for path in files:
        write_atomic(out / plots / path.name, path.read_bytes())
    return [(f"{plots}/{path.name}", told.get(path.stem, path.stem)) for path in files]


def _captions(table: pd.DataFrame) -> dict[str, str]:
    """What a figure shows, by its file's name; labels that come to one name tell nothing."""
    pairs = dict.fromkeys(zip(table["model"], table["attack"], strict=True))
    told = [
        (slug(f"examples-{m}-{a}"), f"{format_text(m)} under {format_text(a)}") for m, a in pairs
    ]
    told += [(slug(f"perturbations-{m}"), f"What was added to attack {format_text(m)}")
             for m in dict.fromkeys(table["model"])]  # fmt: skip
    stems = [stem for stem, _ in told]
    return {stem: caption for stem, caption in told if stems.count(stem) == 1}


def _facts(run: PublishedRun) -> list[tuple[str, str]]:
    """Where the run's numbers come from: data, models, versions, device, commit."""
    document = run.found.provenance
    session, data = document["sessions"][-1], document["data"]
    facts = {
        "records, sha256": run.records_hash or "the run's folder holds none",
        "finished": session["finished"],
        "seed": document["suite"]["seed"],
        "data": {key: data[key] for key in ("name", "n", "fingerprint")},
        "model": {label: {"fingerprint": model["fingerprint"]}
                  for label, model in document["models"].items()},
        **session["environment"],
    }  # fmt: skip
    return writer.flatten_facts("", facts)
