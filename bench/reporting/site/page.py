"""Write the web page of published runs, for any file server or a local disk.

index.html holds table, charts, audit and provenance. The folder plots/ beside it holds copies of
the runs' example grids, loaded when they are displayed; the tables of the publication are offered
for download. Every number is formatted by `formats.numbers`; nothing is computed here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.analysis import tables
from bench.core.files import slug, write_atomic
from bench.evaluation.audit.symptoms import ObservedSymptom
from bench.reporting import templates
from bench.reporting.formats.numbers import (
    DASH,
    format_eps,
    format_factor,
    format_norm,
    format_number,
    format_percent,
    format_plural,
    format_rate,
    format_text,
    format_whole,
    is_missing,
    map_eps_texts,
)
from bench.reporting.report import (
    accuracy_view,
    audit_view,
    class_view,
    query_view,
    rejection_view,
    union_view,
    views,
    writer,
)
from bench.reporting.report.views import Row, View
from bench.reporting.site import model_tables, pivots, svg_chart
from bench.reporting.site.sources import PublishedRun
from bench.reporting.site.svg_chart import (
    Chart,
    build_charts,
    build_query_charts,
)
from bench.suite.plan import Cell

DOWNLOADS = {
    "results.csv": "one row for each cell, as text",
    "results.parquet": "the same, typed, for pandas, R or DuckDB",
    "tables.md": "tables in Markdown",
    "tables.tex": "tables in LaTeX, booktabs",
}
"""Files of a publication besides the page, with descriptions."""
EXAMPLE_FIGURES = ("examples", "perturbations")
"""Kinds of figures that the page copies: images of examples and perturbations."""
CONTENTS = {
    "charts": "Curves",
    "models": "Models",
    "results": "Attacks by eps",
    "detectors": "Detectors",
    "queries": "Queries",
    "unions": "Threat models together",
    "classes": "By class",
    "examples": "Examples",
    "audit": "Audit",
    "provenance": "Provenance",
    "every-cell": "Every cell",
    "counting": "Counting",
}
"""Sections of the page in order; one without content is absent."""
_COLUMNS = [*tables.COLUMNS, *tables.ADDITIONAL_COLUMNS]


class SortableText(NamedTuple):
    """Text of a field and the number to sort it by; without a number, the text."""

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
    bar_width: str
    """CSS width of the bar under the robust accuracy; empty without a number."""
    status: str
    symptoms: list[tuple[str, str]]
    """Symptoms that the audit found for this cell: name and evidence."""
    parameters: list[tuple[str, str]]
    columns: list[str]
    """Every column of table.csv, formatted."""


class RunSection(NamedTuple):
    """What the page prints about one run below the table."""

    name: str
    title: str
    charts: list[Chart]
    pivots: list[View]
    """Attacks by eps, with clean accuracy and worst case."""
    grids: list[tuple[str, str]]
    """Pairs of relative path and caption."""
    detectors: list[str]
    """A sentence for each model with a detector."""
    rejections: View | None
    unions: View | None
    """Robustness to several threat models together; None if each model is attacked in one norm."""
    classes: class_view.ClassViews | None
    queries: list[View]
    """Results within a number of queries, of attacks that search by scores or labels."""
    query_charts: list[Chart]
    audit: list[audit_view.ModelAuditView]
    command: str
    facts: list[tuple[str, str]]
    suite: str
    """The suite as TOML."""


def write_site(runs: Sequence[PublishedRun], out: Path) -> Path:
    """Write out/index.html and out/plots/; the same runs give the same bytes.

    Args:
        runs: The runs, in order of publication.
        out: Folder to write to.

    Returns:
        Path of the page.

    Raises:
        SuiteError: The folder cannot be written.
    """
    lines = [line for each in runs for line in build_rows(each)]
    sections = [_run(each, out, f"plots/{k}-{slug(each.name)}") for k, each in enumerate(runs, 1)]
    context: dict[str, Any] = {
        "title": _title(runs),
        "summary": _summary(runs),
        "lines": lines,
        "columns": {"names": _COLUMNS, "rows": [line.columns for line in lines]},
        "filters": _filters(lines),
        "many_runs": len(runs) > 1,
        "runs": sections,
        "models": _tabulate_models(runs),
        **{
            part: [section for section in sections if getattr(section, part)]
            for part in ("charts", "detectors", "unions", "classes", "queries")
        },
        "frame": svg_chart.FRAME,
        "downloads": [(name, what) for name, what in DOWNLOADS.items() if (out / name).is_file()],
    }
    context["contents"] = [
        (part, title) for part, title in CONTENTS.items() if context.get(part, True)
    ]
    return write_atomic(out / "index.html", templates.render_html("site.html", context))


def _title(runs: Sequence[PublishedRun]) -> str:
    if len(runs) == 1:
        return format_text(runs[0].found.provenance["suite"]["title"])
    return f"Robustness in {format_plural(len(runs), 'run')}"


def _summary(runs: Sequence[PublishedRun]) -> str:
    tables = [each.found.table for each in runs]
    models = {(each.name, model) for each, table in zip(runs, tables, strict=True)
              for model in table["model"]}  # fmt: skip
    attacks = {attack for table in tables for attack in table["attack"]}
    statuses = [str(status) for table in tables for status in table["status"]]
    counts = [f"{statuses.count(status)} {status}" for status in dict.fromkeys(["ok", *statuses])]
    sizes = [
        format_plural(len(models), "model"),
        format_plural(len(attacks), "attack"),
        format_plural(len(statuses), "cell"),
    ]
    return f"{', '.join(sizes)}: {', '.join(counts)}."


def _tabulate_models(runs: Sequence[PublishedRun]) -> list[View]:
    """Tabulate the models of several runs under one threat model."""
    return [
        View(
            table.caption,
            [*map(str, table.frame.columns)],
            table.frame.to_numpy().tolist(),
            [*table.notes],
        )
        for table in model_tables.build_model_tables(runs)
    ]


# ---------------------------------------------------------------------------------------- the table


def build_rows(run: PublishedRun) -> list[CellRow]:
    """Build the rows of the page's table from one run.

    Args:
        run: The run.

    Returns:
        One row per cell, in the order of table.csv.
    """
    table = run.found.table
    eps_texts, cells = map_eps_texts(table), {cell.identity: cell for cell in run.found.plan}
    return [_line(run, row, cells[row["cell"]], eps_texts) for row in views.to_rows(table)]


def _line(run: PublishedRun, row: Row, cell: Cell, eps_texts: Mapping[float, str]) -> CellRow:
    robust = format_rate(row["robust_correct"], row["n"], row["robust_low"], row["robust_high"])
    if phrase := accuracy_view.describe_certified(row):
        robust = f"{robust}; {phrase}"
    return CellRow(
        run=run.name,
        model=format_text(row["model"]),
        attack=format_text(row["attack"]),
        norm=format_norm(row["norm"]),
        eps=_field(format_eps(row["eps"], eps_texts), row["eps"]),
        goal=format_text(row["goal"]),
        implementation=format_text(row["implementation"]),
        n=_field(format_whole(row["n"]), row["n"]),
        clean=_field(
            format_rate(row["clean_correct"], row["n"], None, None), row["clean_accuracy"]
        ),
        robust=_field(robust, row["robust_accuracy"]),
        success=_field(format_percent(row["attack_success_rate"]), row["attack_success_rate"]),
        violations=_field(format_whole(row["violations"]), row["violations"]),
        floor=_field(format_factor(row["floor_ratio"]), row["floor_ratio"]),
        bar_width=""
        if is_missing(row["robust_accuracy"])
        else f"{100 * row['robust_accuracy']:.1f}%",
        status=format_text(row["status"]),
        symptoms=[
            (symptom.name, symptom.evidence)
            for symptom in run.found.audit.symptoms
            if _against(symptom, row)
        ],
        parameters=[(format_text(key), format_text(value)) for key, value in _parameters(cell)],
        columns=[writer.format_field(name, row, eps_texts) for name in _COLUMNS],
    )


def _field(text: str, order: Any) -> SortableText:
    return SortableText(text, None if is_missing(order) else float(order))


def _against(symptom: ObservedSymptom, row: Row) -> bool:
    """Check whether a symptom concerns a cell; without attack it concerns all white-box cells."""
    named = (
        symptom.attack == row["attack"] if symptom.attack else row["threat_model"] == "white-box"
    )
    there = symptom.norm in ("", row["norm"]) and (
        is_missing(symptom.eps) or symptom.eps == row["eps"]
    )
    return bool(symptom.model == row["model"] and named and there and row["eps"] > 0)


def _parameters(cell: Cell) -> list[tuple[str, Any]]:
    """List the attack's parameters and its access to the model."""
    values = {
        **cell.traits,
        "stop": cell.stop,
        "access": cell.threat_model,
        "target": cell.target,
        "crafted on": cell.source,
        "seed": cell.seed,
        "maximum forward passes per example": format_number(cell.passes),
        "maximum gradients per example": format_number(cell.gradients),
    }
    return [
        (key, value) for key, value in values.items() if not is_missing(value) and value != DASH
    ]


def _filters(lines: Sequence[CellRow]) -> list[tuple[str, list[str]]]:
    """List the values of each filter; eps sorted by size."""
    radii = sorted({line.eps for line in lines}, key=lambda eps: (eps.order or 0.0, eps.text))
    values_by_filter = {
        "run": [line.run for line in lines],
        "model": [line.model for line in lines],
        "attack": [line.attack for line in lines],
        "norm": [line.norm for line in lines],
        "eps": [eps.text for eps in radii],
    }
    return [(name, list(dict.fromkeys(values))) for name, values in values_by_filter.items()]


# ---------------------------------------------------------------------------------- below the table


def _run(run: PublishedRun, out: Path, plots: str) -> RunSection:
    found = run.found
    eps_texts = map_eps_texts(found.table)
    return RunSection(
        name=run.name,
        title=format_text(found.provenance["suite"]["title"]),
        charts=build_charts(found.table, found.worst),
        pivots=pivots.pivot_attacks(found),
        grids=_grids(run, out, plots),
        detectors=rejection_view.describe_detectors(found.rejections, found.provenance["models"]),
        rejections=rejection_view.tabulate_rejections(found.rejections, eps_texts),
        unions=union_view.tabulate_unions(found.unions),
        classes=class_view.build_class_views(found.classes, eps_texts),
        queries=query_view.tabulate_queries(found.queries),
        query_charts=build_query_charts(found.queries),
        audit=audit_view.build_audit_views(found.audit, eps_texts),
        command=run.command,
        facts=_facts(run),
        suite=found.provenance["suite"]["text"],
    )


def _grids(run: PublishedRun, out: Path, plots: str) -> list[tuple[str, str]]:
    """Copy the run's example grids to out/`plots` and list them with captions."""
    captions = _captions(run)
    files = [
        path
        for kind in EXAMPLE_FIGURES
        for path in sorted((run.folder / "plots").glob(f"{kind}-*.png"))
    ]
    for path in files:
        write_atomic(out / plots / path.name, path.read_bytes())
    return [(f"{plots}/{path.name}", captions.get(path.stem, path.stem)) for path in files]


def _captions(run: PublishedRun) -> dict[str, str]:
    """Map the names of figure files to captions; ambiguous names are left out."""
    table, own = run.found.table, {shown: label for label, shown in run.shared.items()}
    pairs = dict.fromkeys(zip(table["model"], table["attack"], strict=True))
    captions = [
        (slug(f"examples-{own.get(m, m)}-{a}"), f"{format_text(m)} under {format_text(a)}")
        for m, a in pairs
    ]
    captions += [(slug(f"perturbations-{own.get(m, m)}"), f"Perturbations of {format_text(m)}")
                 for m in dict.fromkeys(table["model"])]  # fmt: skip
    stems = [stem for stem, _ in captions]
    return {stem: caption for stem, caption in captions if stems.count(stem) == 1}


def _facts(run: PublishedRun) -> list[tuple[str, str]]:
    """List where the run's numbers come from: data, models, versions, device, commit."""
    manifest = run.found.provenance
    session, data = manifest["sessions"][-1], manifest["data"]
    facts = {
        "records, sha256": run.records_hash or "not in the run's folder",
        "finished": session["finished"],
        "seed": manifest["suite"]["seed"],
        "data": {key: data[key] for key in ("name", "n", "fingerprint")},
        "model": {label: {"fingerprint": model["fingerprint"]}
                  for label, model in manifest["models"].items()},
        **session["environment"],
    }  # fmt: skip
    return writer.flatten_facts("", facts)
