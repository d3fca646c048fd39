"""`bench merge`: join the shards of a run."""

from pathlib import Path

import click

from bench.cli.main import FOLDER, cli, echo, progress_options, tell
from bench.cli.report import AUDIT, write_report
from bench.cli.tracker_options import tracker_option

MAX_LISTED = 10
"""Missing pieces that are named, at most."""


@cli.command()
@click.argument("folders", type=FOLDER, nargs=-1, required=True)
@click.option("-o", "--out", type=FOLDER, required=True, help="Folder for the complete run.")
@AUDIT
@tracker_option
@progress_options
def merge(folders: tuple[Path, ...], out: Path, audit: bool) -> int:
    """Join the shards of a run and write its report.

    Each of FOLDERS is a shard made by `bench run --shard`, or a folder that holds such shards.
    """
    from bench.execution.merge import merge_runs

    merged = merge_runs(folders, out)
    echo(f"merged {len(merged.folders)} folders: {merged.pieces} of {merged.wanted} pieces")
    for phrase in merged.missing[:MAX_LISTED]:
        tell("missing", phrase)
    if len(merged.missing) > MAX_LISTED:
        tell("missing", f"and {len(merged.missing) - MAX_LISTED} more")
    if merged.missing:
        tell("note", f"bench run --out {out} with the suite does what is missing")
    return write_report(out, audit)
