"""`bench run`, `bench merge` and `bench report`: a suite's cells, and what people read of them."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.cli.backend_options import BackendOptions, placed
from bench.cli.main import DATA_DIR, DEVICE, FOLDER, cli, echo, narrated, tell
from bench.cli.progress import shown
from bench.cli.tracker_options import tell as track
from bench.cli.tracker_options import tracked, wanted
from bench.core.errors import SuiteError

if TYPE_CHECKING:
    import pandas as pd

    from bench.analysis.results import RunResults
    from bench.execution.sharding import Shard

AUDIT = click.option(
    "--audit", is_flag=True, help="Exit with 1 if there is a sign that an attack has failed."
)

TOLD = 10
"""Missing pieces that are named, at most."""


@cli.command()
@click.argument("suite")
@click.option("--out", type=FOLDER, help="Folder of the run [results/runs/NAME].")
@DEVICE
@click.option("--limit", type=click.IntRange(1), help="Only the first N examples.")
@click.option("--batch-size", type=click.IntRange(1), help="Rows a model pass holds [by rule].")
@DATA_DIR
@click.option(
    "--keep-adversarial", metavar="SIZE",
    help="Keep every adversarial image, while all take no more than that, such as 2GiB.",
)  # fmt: skip
@click.option("--fresh", is_flag=True, help="Forget what the folder holds and start over.")
@click.option("--no-copy", is_flag=True, help="Attack the model itself, not a faster copy of it.")
@click.option("--deterministic", is_flag=True, help="Give the same bits again on this device.")
@click.option(
    "--shard", metavar="I/N", default="1/1",
    help="Only the I-th of N shares, into a folder of its own below; join them by bench merge.",
)  # fmt: skip
@placed
@AUDIT
@tracked
@narrated
def run(
    suite: str,
    out: Path | None,
    device: str,
    limit: int | None,
    batch_size: int | None,
    data_dir: Path | None,
    keep_adversarial: str | None,
    fresh: bool,
    no_copy: bool,
    deterministic: bool,
    shard: str,
    place: BackendOptions,
    audit: bool,
) -> int:
    """Run SUITE (a path, or a shipped name) and write its report; resumes what was begun."""
    from bench.core import validation
    from bench.engine import malloc
    from bench.evaluation import loading
    from bench.execution import options as runner
    from bench.execution import sharding
    from bench.suite.reader import read_suite

    share = sharding.parse_shard(shard)
    if share != sharding.WHOLE and wanted():
        raise SuiteError("--track: a share is no whole run; give it to bench merge instead")
    checked = read_suite(suite)
    whole = out or runner.default_run_folder(checked.name)
    folder = share.folder(whole)
    options = runner.RunOptions(
        device=device,
        limit=limit,
        batch_size=batch_size,
        data_dir=loading.data_folder(data_dir),
        keep=validation.byte_size("--keep-adversarial", keep_adversarial)
        if keep_adversarial
        else 0,
        fresh=fresh,
        copied=not no_copy,
        deterministic=deterministic,
        share=share,
    )
    malloc.keep_freed_memory()
    with shown() as listen:
        place.run(checked, folder, options, listen)
    if share != sharding.WHOLE:
        return _share_done(share, folder, whole)
    return _report(folder, audit)


def _share_done(share: "Shard", folder: Path, whole: Path) -> int:
    """Say how one share becomes a part of the whole; 1 if a cell of it failed."""
    from bench.storage import reader

    echo(f"shard {share.number} of {share.of} is done: {folder}")
    echo(f"when all are: bench merge {whole} -o {whole}")
    return 1 if reader.read_failures(folder) else 0


@cli.command()
@click.argument("folders", type=FOLDER, nargs=-1, required=True)
@click.option("-o", "--out", type=FOLDER, required=True, help="Folder of the whole run.")
@AUDIT
@tracked
@narrated
def merge(folders: tuple[Path, ...], out: Path, audit: bool) -> int:
    """Join FOLDERS, shares of one run or folders of shares, and write the report of the whole."""
    from bench.execution import merge as merging

    merged = merging.merge_runs(folders, out)
    echo(f"merged {len(merged.folders)} folders: {merged.pieces} of {merged.wanted} pieces")
    for phrase in merged.missing[:TOLD]:
        tell("missing", phrase)
    if len(merged.missing) > TOLD:
        tell("missing", f"and {len(merged.missing) - TOLD} more")
    if merged.missing:
        tell("note", f"bench run --out {out} with the suite does what is missing")
    return _report(out, audit)


@cli.command()
@click.argument("folder", type=FOLDER)
@AUDIT
@tracked
@narrated
def report(folder: Path, audit: bool) -> int:
    """Write tables, plots and pages of a run again from its records, running nothing."""
    return _report(folder, audit)


def _report(folder: Path, strict: bool) -> int:
    """Write everything that people read of a run; 1 if a cell failed or is missing, or none ran,
    or, if that is `strict`, the audit found a sign."""
    from bench.analysis import results
    from bench.reporting import run_output  # what they import, no cell of a run waits for
    from bench.reporting.report import certified_view

    found = results.read_results(folder)
    page = run_output.write_run_output(found, folder)
    _print_summary(found)
    echo(f"report: {page}")
    track(found, folder)
    without = found.table[found.table["status"] != "ok"]
    for row in without.drop_duplicates(["model", "attack", "reason"]).itertuples():
        tell(str(row.status), f"{row.model} · {row.attack}: {row.reason}")
    for sentence in certified_view.describe_contradictions(found.certified.contradictions):
        tell("contradiction", sentence)
    bounds = found.certified
    undone = len(found.unfinished()) + int((bounds.table["status"] == "missing").sum())
    failed = undone or len(bounds.contradictions) or len(without) == len(found.table)
    return 1 if failed or (strict and found.audit.signs) else 0


def _print_summary(found: "RunResults") -> None:
    """The closing table: robust accuracy of each attack at each eps, and the worst case."""
    from rich.table import Table

    from bench.cli.console import console
    from bench.reporting.report import audit_view, pairwise_view
    from bench.reporting.report import certified_view as bracketed

    screen = console()
    table = found.table
    for (model, norm, goal), group in table.groupby(["model", "norm", "goal"], sort=False):
        radii = group.drop_duplicates("eps").sort_values("eps")
        n = found.provenance["data"]["n"]
        worst = found.worst.query("model == @model and norm == @norm and goal == @goal")
        size = f"n = {n}{_reach([group, worst])}"
        screen.print(f"{model}: robust accuracy by eps, {norm}, {goal}, {size}", style="italic")
        shown = Table()
        shown.add_column("eps", overflow="fold")
        for text in radii["eps_text"]:
            shown.add_column(str(text), justify="right", no_wrap=True)
        lines = [*group.groupby("attack", sort=False)]
        if len(lines) > 1:
            lines.append(("worst case", worst))
        for label, rows in lines:
            cells = _percents(rows, radii["eps"])
            shown.add_row(str(label), *cells, style="bold" if rows is worst else None)
        screen.print(shown)
    verdicts = found.crosschecks["verdict"].value_counts()
    if len(verdicts):
        told = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
        screen.print(f"cross-checks: {told}")
    if len(found.comparisons):
        screen.print(pairwise_view.summarize_comparisons(found.comparisons))
    for model in found.audit.models:
        screen.print(f"audit of {model}: {audit_view.summarize_audit(found.audit, model)}")
    for sentence in bracketed.describe_bounds(found.certified, found.worst):
        screen.print(sentence, soft_wrap=True)
    if len(found.violations):
        screen.print(f"violations: {len(found.violations)}, see the report", style="bold red")


def _reach(frames: "list[pd.DataFrame]") -> str:
    """How far the intervals behind a table of robust accuracies reach at most, in points."""
    reaches = [
        reach
        for rows in frames
        for sides in (("robust_high", "robust_accuracy"), ("robust_accuracy", "robust_low"))
        for reach in (rows[sides[0]] - rows[sides[1]]).dropna()
    ]
    return f", 95 % intervals within {100 * max(reaches):.1f} points" if reaches else ""


def _percents(rows: "pd.DataFrame", radii: "pd.Series[float]") -> list[str]:
    from bench.reporting.formats.numbers import DASH, format_percent, is_missing

    by_eps = rows.set_index("eps")["robust_accuracy"]
    values = [by_eps.get(eps) for eps in radii]
    return [DASH if is_missing(value) else format_percent(value) for value in values]
