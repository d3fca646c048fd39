"""`bench plan` and `bench list`: what would run, and what there is."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.cli.main import DATA_DIR, cli, echo, tell
from bench.cli.suite_options import SuiteOptions, suite_options

if TYPE_CHECKING:
    from bench.reporting.formats.terminal_table import Kind
    from bench.suite.catalog import CatalogEntry
    from bench.suite.plan import Cell
    from bench.suite.schema import Suite

COLUMNS: "dict[str, Kind]" = {
    "model": "name",
    "attack": "name",
    "norm": "word",
    "goal": "text",
    "eps": "text",
    "forward passes": "number",
    "gradient passes": "number",
    "skipped because": "text",
}
"""Columns of a plan."""
IN_TITLE = ("norm", "goal", "skipped because")
"""Those that are left out where all attacks share the value, which the title states."""


@cli.command()
@suite_options
@click.option("--limit", type=click.IntRange(1), help="Use only the first N examples.")
@DATA_DIR
def plan(chosen: SuiteOptions, limit: int | None, data_dir: Path | None) -> None:
    """Show the cells, the cost and the data of a suite.

    SUITE is the path of a TOML file or the name of a shipped suite; the options of `bench run` that
    mean a suite may take its place. Each attack on each model is listed with its eps and its cost
    in model passes, or with the reason why it is skipped. Nothing is run.
    """
    from bench.cli.console import console
    from bench.core import files
    from bench.reporting.formats.numbers import format_plural
    from bench.reporting.formats.terminal_table import Column, print_table
    from bench.suite import plan

    checked = chosen.read(limit)
    tasks = plan.plan_tasks(checked, plan.collect_declared_facts(checked))
    cells = [cell for task in tasks for cell in task.cells]
    data = _data_lines(checked, files.data_folder(data_dir), limit)
    screen = console()
    rows = _attack_rows(cells, checked.seed)
    single = {key: rows[0][key] for key in IN_TITLE if len({row[key] for row in rows}) == 1}
    screen.print(checked.title, style="italic")
    screen.print(
        ", ".join([*filter(None, single.values()), "passes per example over all eps"]),
        style="italic",
    )
    kinds = {key: kind for key, kind in COLUMNS.items() if key not in single}
    columns = [Column(key, kind) for key, kind in kinds.items()]
    print_table(screen, columns, [[row[key] for key in kinds] for row in rows])
    run = [cell for cell in cells if not cell.reason]
    known = [cell.passes for cell in run if cell.passes is not None]
    passes = f"{sum(known):,.0f} forward pass" + ("" if round(sum(known)) == 1 else "es")
    screen.print(
        f"{format_plural(len(cells), 'cell')}, at most {passes} per example"
        + ("" if len(known) == len(run) else " where the cost is known")
    )
    for line in data:
        click.echo(line)


def _attack_rows(cells: list["Cell"], seed: int) -> list[dict[str, str]]:
    """Describe the cells, a row for those that differ in their eps alone."""
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in cells:
        own = seed if cell.seed is None else cell.seed
        aim = f"{cell.goal} {cell.target}".strip() + ("" if own == seed else f", seed {own}")
        groups.setdefault((cell.model, cell.attack, cell.norm, aim, cell.reason), []).append(cell)
    return [
        {
            "model": model,
            "attack": attack,
            "norm": norm,
            "goal": aim,
            "eps": _eps_range(group),
            "forward passes": _passes([cell.passes for cell in group]),
            "gradient passes": _passes([cell.gradients for cell in group]),
            "skipped because": reason,
        }
        for (model, attack, norm, aim, reason), group in groups.items()
    ]


def _eps_range(cells: list["Cell"]) -> str:
    """Write the eps of some cells: one or two as they are, more as a range."""
    texts = list(dict.fromkeys(cell.eps_text for cell in cells))
    return f"{len(texts)} from {texts[0]} to {texts[-1]}" if len(texts) > 2 else ", ".join(texts)


def _passes(counts: list[float | None]) -> str:
    """Write the passes that some cells together need at most per example, if all are known."""
    known = [count for count in counts if count is not None]
    return f"{sum(known):,.0f}" if len(known) == len(counts) else "?"


def _data_lines(suite: "Suite", data_dir: Path, limit: int | None) -> list[str]:
    """How the data of a suite are read, in lines.

    Data that are absent are no mistake of a plan: the first line says so. Nothing is downloaded.

    Raises:
        SuiteError: If the data are there and cannot be used.
    """
    from bench.core import registry
    from bench.core.errors import MissingDataError
    from bench.core.sanitize import escape_controls
    from bench.datasets import inputs
    from bench.evaluation import loading

    entry = suite.data
    dataset = registry.find("datasets", entry.name, suite.base)
    reads = getattr(dataset, "reads", None)
    files_read = () if reads is None else reads(entry.split, data_dir)
    absent = next((path for path in files_read if not path.is_file()), None)
    if absent is not None:
        return [f"data: {entry.name}, not looked at: {absent} is not there"]
    try:
        data = loading.load_data(entry, suite.base, data_dir, limit)
    except MissingDataError as error:
        return [escape_controls(f"data: not looked at: {error}")]
    lines = [
        f"data: {data.name}, {data.n} images of {inputs.format_size(data.shape)}, "
        f"fingerprint {data.fingerprint[:16]}"
    ]
    lines += [f"  {key}: {text}" for key, text in data.mapping.items()]
    return [escape_controls(line) for line in lines]


KINDS = ("models", "attacks", "datasets", "suites", "recipes", "formats", "trackers")


@cli.command(name="list")
@click.argument("kind", type=click.Choice(KINDS), required=False)
@click.argument("library", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: entries by kind.")
def list_(kind: str | None, library: str | None, as_json: bool) -> None:
    """List what there is: models, attacks, data sets and more.

    Without KIND all kinds are listed. Each line gives the name, a summary and the source, and for
    what an installed package offers its name and version. LIBRARY, such as torchvision:, lists
    what that library offers.
    """
    listed = {each: _entries(each, library) for each in ([kind] if kind else KINDS)}
    for _, problems in listed.values():
        for sentence in problems:
            tell("warning", sentence)
    if as_json:
        entries = {name: [row._asdict() for row in rows] for name, (rows, _) in listed.items()}
        click.echo(json.dumps(entries, indent=2))
        return
    for name, (rows, _) in listed.items():
        if not kind:
            echo(f"{name}:")
        _print_entries(rows)


def _entries(kind: str, library: str | None = None) -> tuple[list["CatalogEntry"], list[str]]:
    """Return the entries of a kind, and a sentence for each extension that cannot be used."""
    from bench.suite import catalog

    if library:
        return catalog.list_library(kind, library), []
    if kind == "formats":
        from bench.reporting.formats import registered

        return registered.list_formats()
    if kind == "trackers":
        from bench.reporting import trackers

        return trackers.list_trackers()
    rows = catalog.list_entries(kind)
    if kind in ("suites", "recipes"):
        return rows, []
    others, problems = catalog.list_extensions(kind)
    return [*rows, *others], problems


def _print_entries(rows: list["CatalogEntry"]) -> None:
    from rich.table import Table

    from bench.cli.console import console

    names = [row.name for row in rows]
    shown = Table(box=None, show_header=False, pad_edge=False)
    shown.add_column(no_wrap=True, min_width=max(map(len, names), default=0))  # names are typed
    shown.add_column()
    shown.add_column()
    for name, summary, source, origin in rows:
        own = origin == "bench"
        shown.add_row(name, summary, source if own else f"{source} (from {origin})")
    console().print(shown)
