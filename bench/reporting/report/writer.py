"""Write the report of a run: a self-contained HTML page and a Markdown page of the same content.

Failures come first, numbers after them. Both pages are templates over the same views.
"""

import base64
import os
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from bench.analysis import columns
from bench.analysis.results import RunResults
from bench.core.files import write_atomic
from bench.reporting import templates
from bench.reporting.formats.numbers import (
    DASH,
    format_eps,
    format_factor,
    format_number,
    format_percent,
    format_plural,
    format_rate,
    format_seconds,
    format_text,
    format_whole,
    is_missing,
    map_eps_texts,
)
from bench.reporting.plots.figures import Plot
from bench.reporting.report import (
    accuracy_view,
    audit_view,
    certified_view,
    class_view,
    corruption_view,
    crosscheck_view,
    min_norm_view,
    pairwise_view,
    problem_view,
    query_view,
    reference_view,
    rejection_view,
    smoothing_view,
    stage_view,
    transfer_view,
    union_view,
    victim_query_view,
    views,
)
from bench.reporting.report.views import View

MAX_SVG_BYTES = 400_000
"""Above this size (a figure with photographs) the PNG is embedded: smaller and as sharp."""


def write_report(
    results: RunResults,
    folder: Path,
    *,
    notes: Sequence[str],
    provenance: Mapping[str, Any],
    plots: Sequence[Plot],
) -> tuple[Path, Path]:
    """Write folder/report.html and folder/report.md, each atomically.

    The HTML page embeds its figures and requests nothing from the network; the Markdown page links
    the PNG files by relative path. The same input gives the same bytes.

    Args:
        results: The results of the run.
        folder: The run's folder.
        notes: Sentences to print under the failures.
        provenance: Nested facts to print at the end.
        plots: Figures, already saved.

    Returns:
        Paths of report.html and report.md.

    Raises:
        SuiteError: The folder cannot be written.
    """
    table, eps_texts = results.table, map_eps_texts(results.table)
    crosschecks, comparisons, worst = results.crosschecks, results.comparisons, results.worst
    checks = crosscheck_view.tabulate_pair_details(crosschecks, eps_texts)
    context: dict[str, Any] = {
        "title": format_text(results.provenance["suite"]["title"]),
        "summary": f"{_summary(table, provenance)}. {_outcome(table)}",
        "violations": problem_view.list_violations(results.violations, eps_texts),
        "excluded": problem_view.list_excluded_cells(table, eps_texts),
        "caveats": problem_view.list_caveats(table, eps_texts),
        "audit": audit_view.build_audit_views(results.audit, eps_texts),
        "notes": list(dict.fromkeys(map(format_text, notes))),
        "certified": certified_view.build_certified_view(results.certified, worst, eps_texts),
        "smoothed": smoothing_view.tabulate_smoothing(results.smoothed.table),
        "worst": accuracy_view.tabulate_worst_case(worst, table, eps_texts),
        "worst_rows": accuracy_view.tabulate_worst_case_counts(worst, table, eps_texts),
        "unions": union_view.tabulate_unions(results.unions),
        "detectors": rejection_view.describe_detectors(
            results.rejections, results.provenance["models"]
        ),
        "rejections": rejection_view.tabulate_rejections(results.rejections, eps_texts),
        "classes": class_view.build_class_views(results.classes, eps_texts),
        "headline": accuracy_view.tabulate_attacks(table, eps_texts),
        "rankings": min_norm_view.rank_searches(results.distances),
        "queries": query_view.tabulate_queries(results.queries),
        "query_pairs": query_view.tabulate_pairs(results.query_pairs),
        "compared": pairwise_view.summarize_comparisons(comparisons),
        "differences": pairwise_view.tabulate_differences(comparisons, eps_texts),
        "differing": pairwise_view.list_differences(comparisons, eps_texts),
        "seeds": pairwise_view.tabulate_seeds(results.seeds, eps_texts),
        "stages": stage_view.tabulate_stages(results.stages, eps_texts),
        "stage_sentences": stage_view.summarize_stages(results.stages, eps_texts),
        "corruptions": corruption_view.tabulate_corruptions(results.corruptions),
        "references": reference_view.tabulate_references(results.published, eps_texts),
        "transfers": [
            *transfer_view.tabulate_transfers(table),
            *victim_query_view.tabulate_victim_queries(table, eps_texts),
        ],
        "sizes": transfer_view.tabulate_perturbation_sizes(table),
        "verdicts": crosscheck_view.summarize_verdicts(crosschecks, results.missing_crosschecks),
        "pairs": crosscheck_view.tabulate_pairs(crosschecks),
        "explained": crosscheck_view.list_explanations(results.explanations),
        "unexplained": crosscheck_view.list_explain_commands(
            crosschecks, results.explanations, eps_texts
        ),
        "checks": [(view, _differs(view)) for view in checks],
        "full": _full(table, eps_texts),
        "provenance": _provenance(provenance),
        "regenerate": results.provenance["sessions"][-1]["command"].strip(),
        "figures": [_figure(plot, folder) for plot in plots],
    }
    return (
        write_atomic(folder / "report.html", templates.render_html("report.html", context)),
        write_atomic(folder / "report.md", templates.render_markdown("report.md", context)),
    )


def _summary(table: pd.DataFrame, provenance: Mapping[str, Any]) -> str:
    """Name the suite, size, device and day in one line, as far as they are known."""
    sizes = sorted({int(n) for n in table["n"].dropna()})
    size = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}" if sizes else ""
    suites = ", ".join(format_text(suite) for suite in dict.fromkeys(table["suite"]))
    device = _fact(provenance, "device_name") or _fact(provenance, "device")
    device = device or ", ".join(dict.fromkeys(table["device"].dropna().astype(str)))
    day = _fact(provenance, "date", "started", "finished", "created", "time")
    parts = {"Suite": suites, "n =": size, "on": device, "": day[:10]}
    return ", ".join(f"{name} {value}".strip() for name, value in parts.items() if value)


def _fact(facts: Mapping[str, Any], *names: str) -> str:
    """Find the first of `names` that has a value, at the top level or below it."""
    for name in names:
        value = facts.get(name)
        if isinstance(value, (date, datetime)):
            return value.isoformat()
        if isinstance(value, str) and not is_missing(value):
            return format_text(value)
    inner = (_fact(value, *names) for value in facts.values() if isinstance(value, Mapping))
    return next(filter(None, inner), "")


def _outcome(table: pd.DataFrame) -> str:
    statuses = [str(status) for status in table["status"]]
    order = dict.fromkeys(["ok", "failed", "skipped", *statuses])
    parts = [f"{statuses.count(status)} {status}" for status in order if status in statuses]
    return (
        f"{format_plural(len(statuses), 'cell')}: {', '.join(parts)}."
        if statuses
        else "No cell was run."
    )


def _differs(view: View) -> bool:
    place = view.columns.index("verdict")
    return any(row[place] == "different" for row in view.rows)


def _figure(plot: Plot, folder: Path) -> dict[str, Any]:
    svg = plot.svg.stat().st_size <= MAX_SVG_BYTES
    data = (plot.svg if svg else plot.png).read_bytes()
    kind = "svg+xml" if svg else "png"
    return {
        "name": plot.name,
        "caption": format_text(plot.caption),
        "source": f"data:image/{kind};base64,{base64.b64encode(data).decode()}",
        "path": Path(os.path.relpath(plot.png, folder)).as_posix(),
        "is_grid": plot.name.startswith("examples-"),
    }


def _full(table: pd.DataFrame, eps_texts: Mapping[float, str]) -> View:
    """Tabulate every cell with every column of table.csv but the caveats, listed separately."""
    names = [name for name in table.columns if name not in ("eps_text", "caveats")]
    lines = [[format_field(name, row, eps_texts) for name in names] for row in views.to_rows(table)]
    return View("", names, lines)


def format_field(name: str, row: views.Row, eps_texts: Mapping[float, str]) -> str:
    """Format one column of a row of table.csv.

    Args:
        name: The column.
        row: The row.
        eps_texts: Text of each eps.

    Returns:
        The value as a page shows it.
    """
    value = row[name]
    counts = {"clean_accuracy": "clean_correct", "robust_accuracy": "robust_correct"}
    if name in counts:
        return format_rate(row[counts[name]], row["n"], None, None)
    if name == "eps":
        return format_eps(value, eps_texts)
    if name in columns.BY_NAME and columns.BY_NAME[name].format == "percent":
        return format_percent(value)
    if name.endswith("seconds"):
        return format_seconds(value)
    if name == "floor_ratio":
        return format_factor(value)
    if isinstance(value, float) and not is_missing(value):
        return format_whole(value) if value.is_integer() else format_number(value)
    return format_text(value)


def _provenance(facts: Mapping[str, Any]) -> View:
    return View("", ["fact", "value"], [[name, value] for name, value in flatten_facts("", facts)])


def flatten_facts(prefix: str, value: Any) -> list[tuple[str, str]]:
    """Flatten nested facts into pairs, in the given order.

    Args:
        prefix: Dotted name of the value, empty at the top level.
        value: A mapping, a sequence or a scalar.

    Returns:
        Pairs of dotted name and formatted value.
    """
    if isinstance(value, Mapping):
        return [
            line
            for key, inner in value.items()
            for line in flatten_facts(
                f"{prefix}.{format_text(key)}" if prefix else format_text(key), inner
            )
        ]
    if isinstance(value, (list, tuple)):
        if any(isinstance(inner, Mapping) for inner in value):
            return [
                line
                for k, inner in enumerate(value)
                for line in flatten_facts(f"{prefix}.{k}", inner)
            ]
        return [(prefix, ", ".join(map(format_text, value)) or DASH)]
    return [(prefix, format_text(value))]
