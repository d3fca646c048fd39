"""Views and figures → report: one self-contained HTML page and a Markdown page that say the same.

What went wrong comes first, numbers after it. Both pages are templates over the same views.
Everything that came from a file (labels, reasons, causes) is escaped by the template engine, in
HTML and in Markdown alike; only what a table format made passes as it is.
"""

import base64
import os
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import pandas as pd

from bench.analysis.columns import BY_NAME
from bench.analysis.results import RunResults
from bench.core.files import write_atomic
from bench.reporting.formats import markdown, numbers
from bench.reporting.formats import numbers as formats_numbers
from bench.reporting.formats.numbers import (
    DASH,
    format_number,
    format_percent,
    format_plural,
    format_rate,
    format_text,
    is_missing,
    map_eps_texts,
)
from bench.reporting.plots.figures import Plot
from bench.reporting.report import (
    accuracy_views,
    audit_view,
    certified_view,
    crosscheck_views,
    min_norm_views,
    pairwise_view,
    problem_views,
    reference_views,
    transfer_views,
    views,
)
from bench.reporting.report.views import View

MAX_SVG_BYTES = 400_000  # bytes; above it (photographs inside) the PNG is smaller and as sharp
COUNTING_RULES = (
    "n is the number of examples of a cell, those included that the model gets wrong already "
    "without attack. Such an example is not attacked, and it is not robust.",
    "Clean accuracy is the number correct before the attack, of n. Robust accuracy is the number "
    "correct before and after, of n.",
    "Attack success rate is the number correct before and wrong after, of those correct before. "
    "Targeted: the number that ends as the target, of those correct before whose label is not the "
    "target. Where nothing could be attacked there is no rate, and a dash.",
    "Worst case: an example is robust only if every attack left it correct.",
    "Certified: a bound proves that no image of the L-inf ball inside the box changes the label. "
    "What is neither certified nor broken by an attack is undecided.",
    "Intervals are 95 % Wilson intervals of the count behind the rate.",
    "An attack breaks an example that it succeeds on; with a target, by reaching the target. Two "
    "attacks are compared by what each breaks, two models by where each is robust, on the same "
    "examples and by the exact McNemar test. The p-values of a run are corrected together (Holm).",
    "The distance of an example under a search is 0 if the model gets it wrong without attack, and "
    "infinite if nothing was found. Local optimality is 1 - (A - A*) / (rho(0) eps_max - A*), A "
    "the area under the search's security curve, A* that of the least distance that any search "
    "found: 1 is the best at every eps, 0 finds nothing. The interval of a median lies between two "
    "order statistics and holds for any distribution.",
    "Every returned example is verified: shape, box, ball, finite, and the model asked again. One "
    "that breaks a rule is a violation and counts as an attack that failed on that example.",
    "A cell that failed or was skipped is a dash with its reason. It never counts as robust.",
)


def write_report(
    found: RunResults,
    folder: Path,
    *,
    notes: Sequence[str],
    provenance: Mapping[str, Any],
    plots: Sequence[Plot],
) -> tuple[Path, Path]:
    """Write report.html and report.md; each is complete or not written.

    The HTML page contains its figures and loads nothing from the network; the Markdown page links
    to the PNG files by relative path. The same input gives the same bytes.

    Args:
        found: The results of the run.
        folder: Folder to write to.
        notes: Sentences on the models and figures.
        provenance: Nested facts to print.
        plots: Figures to show.

    Returns:
        Paths of the HTML page and of the Markdown page.

    Raises:
        SuiteError: The folder cannot be written.
    """
    table, names = found.table, map_eps_texts(found.table)
    crosschecks, comparisons, worst = found.crosschecks, found.comparisons, found.worst
    checks = crosscheck_views.tabulate_pair_details(crosschecks, names)
    context: dict[str, Any] = {
        "title": format_text(found.provenance["suite"]["title"]),
        "summary": _summary(table, provenance),
        "outcome": _outcome(table),
        "violations": problem_views.list_violations(found.violations, names),
        "excluded": problem_views.list_excluded_cells(table, names),
        "caveats": problem_views.list_caveats(table, names),
        "audit": audit_view.build_audit_views(found.audit, names),
        "notes": list(dict.fromkeys(map(format_text, notes))),
        "certified": certified_view.build_certified_view(found.certified, worst, names),
        "worst": accuracy_views.tabulate_worst_case(worst, table, names),
        "worst_rows": accuracy_views.tabulate_worst_case_counts(worst, table, names),
        "headline": accuracy_views.tabulate_attacks(table, names),
        "rankings": min_norm_views.rank_searches(found.distances),
        "compared": pairwise_view.summarize_comparisons(comparisons),
        "differences": pairwise_view.tabulate_differences(comparisons, names),
        "sentences": pairwise_view.list_differences(comparisons, names),
        "seeds": pairwise_view.tabulate_seeds(found.seeds, names),
        "published": reference_views.tabulate_references(found.published, names),
        "transfers": transfer_views.tabulate_transfers(table),
        "sizes": transfer_views.tabulate_perturbation_sizes(table),
        "verdicts": crosscheck_views.summarize_verdicts(crosschecks),
        "pairs": crosscheck_views.tabulate_pairs(crosschecks),
        "explained": crosscheck_views.list_explanations(found.explanations),
        "unexplained": crosscheck_views.list_explain_commands(
            crosschecks, found.explanations, names
        ),
        "checks": [(view, _differs(view)) for view in checks],
        "full": _full(table, names),
        "counting": COUNTING_RULES,
        "provenance": _provenance(provenance),
        "regenerate": found.provenance["sessions"][-1]["command"].strip(),
        "figures": [_figure(plot, folder) for plot in plots],
    }
    html, text = _environments()
    pages = (html.get_template("report.html"), text.get_template("report.md"))
    paths = (folder / "report.html", folder / "report.md")
    for page, path in zip(pages, paths, strict=True):
        write_atomic(path, page.render(context).encode())
    return paths


def _environments() -> tuple[jinja2.Environment, jinja2.Environment]:
    """For HTML and for Markdown; both escape what is not marked as finished."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    settings: dict[str, Any] = {
        "loader": loader,
        "undefined": jinja2.StrictUndefined,
        "trim_blocks": True,
        "lstrip_blocks": True,
        "keep_trailing_newline": True,
    }
    html = jinja2.Environment(autoescape=True, **settings)
    text = jinja2.Environment(autoescape=False, finalize=markdown.escape, **settings)
    text.filters["table"] = _markdown_table
    text.filters["fenced"] = markdown.format_code_block
    # inside <summary> GitHub reads HTML, not Markdown
    text.filters["html"] = lambda value: markdown.MarkdownText(
        markupsafe.escape(format_text(value))
    )
    return html, text


def _markdown_table(view: View) -> markdown.MarkdownText:
    body = markdown.FORMAT.render(view.frame, view.caption)
    notes = [f"- [{k}] {markdown.escape(note)}" for k, note in enumerate(view.notes, 1)]
    return markdown.MarkdownText("\n".join([body, "", *notes] if notes else [body]))


def _summary(table: pd.DataFrame, provenance: Mapping[str, Any]) -> str:
    """Suite, size, device and day in one line, as far as they are known."""
    sizes = sorted({int(n) for n in table["n"].dropna()})
    size = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}" if sizes else ""
    suites = ", ".join(format_text(suite) for suite in dict.fromkeys(table["suite"]))
    device = _fact(provenance, "device_name") or _fact(provenance, "device")
    device = device or ", ".join(dict.fromkeys(table["device"].dropna().astype(str)))
    day = _fact(provenance, "date", "started", "finished", "created", "time")
    parts = {"Suite": suites, "n =": size, "on": device, "": day[:10]}
    return ", ".join(f"{name} {value}".strip() for name, value in parts.items() if value)


def _fact(facts: Mapping[str, Any], *names: str) -> str:
    """The first of `names` that has a value, at the top or one of the levels below."""
    for name in names:
        value = facts.get(name)
        if isinstance(value, (date, datetime)):
            return value.isoformat()
        if isinstance(value, str) and not is_missing(value):
            return format_text(value)
    inner = (_fact(value, *names) for value in facts.values() if isinstance(value, Mapping))
    return next(filter(None, inner), "")


def _outcome(table: pd.DataFrame) -> str:
    told = [str(status) for status in table["status"]]
    order = dict.fromkeys(["ok", "failed", "skipped", *told])
    parts = [f"{told.count(status)} {status}" for status in order if status in told]
    return (
        f"{format_plural(len(told), 'cell')}: {', '.join(parts)}." if told else "No cell was run."
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


def _full(table: pd.DataFrame, names: Mapping[float, str]) -> View:
    """Every cell and every column, by the names of table.csv; long caveats stand elsewhere."""
    columns = [name for name in table.columns if name not in ("eps_text", "caveats")]
    lines = [[format_field(name, row, names) for name in columns] for row in views.to_rows(table)]
    return View("", columns, lines)


def format_field(name: str, row: views.Row, names: Mapping[float, str]) -> str:
    """Format one column of a row of table.csv for readers.

    Args:
        name: Column.
        row: The whole row.
        names: eps -> its spelling.

    Returns:
        The text of the field.
    """
    value, column = row[name], BY_NAME.get(name)
    match column.format if column else "":
        case "rate" if column:
            return format_rate(row[column.count_column], row["n"], None, None)
        case "eps":
            return formats_numbers.format_eps(value, names)
        case "percent":
            return format_percent(value)
        case "seconds":
            return numbers.format_seconds(value)
        case "factor":
            return numbers.format_factor(value)
    if isinstance(value, float) and not is_missing(value):
        return formats_numbers.format_whole(value) if value.is_integer() else format_number(value)
    return format_text(value)


def _provenance(facts: Mapping[str, Any]) -> View:
    """Nested facts as a list of dotted names and values, in the order given."""
    return View("", ["fact", "value"], [[name, value] for name, value in flatten_facts("", facts)])


def flatten_facts(prefix: str, value: Any) -> list[tuple[str, str]]:
    """Nested facts as (dotted name, value), in the order given."""
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
