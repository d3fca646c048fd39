"""`bench leaderboard`: models ranked under one threat model, and how one enters."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.cli.main import DATA_DIR, DEVICE, FOLDER, cli, echo, progress_options, tell
from bench.cli.progress import show_progress

if TYPE_CHECKING:
    from bench.execution.options import RunOptions
    from bench.suite.schema import Suite


@cli.command()
@click.argument("folder", type=FOLDER)
@click.option(
    "--suite", default="leaderboard", show_default=True, help="Suite that defines the threat model."
)
@click.option("-o", "--out", type=FOLDER, help="Folder for the pages [FOLDER].")
@click.option("--add", type=FOLDER, help="Folder of a run of the suite, to submit its model.")
@click.option(
    "--card", type=click.Path(dir_okay=False, path_type=Path), help="Card of the model, with --add."
)
@click.option(
    "--limit", type=click.IntRange(1), help="Verify only the first N examples of a submission."
)
@DEVICE
@DATA_DIR
@progress_options
def leaderboard(
    folder: Path,
    suite: str,
    out: Path | None,
    add: Path | None,
    card: Path | None,
    limit: int | None,
    device: str,
    data_dir: Path | None,
) -> int:
    """Rank models by worst-case robust accuracy.

    FOLDER holds the entries of the leaderboard. An example counts as robust if no attack of the
    suite fools the model on it.

    With --add and --card a model is submitted first: its run is checked against the suite, the
    model that the card names is built and run again, which executes its code, and every outcome is
    compared. If the submission is refused, the reasons are printed and the exit code is 1.
    """
    from bench.core import files
    from bench.execution.options import RunOptions
    from bench.suite import reader
    from bench.workflows.leaderboard import entries, page

    checked = reader.read_suite(suite)
    if (add is None) != (card is None):
        raise click.UsageError("--add and --card go together: a run, and the card of its model")
    if add is not None and card is not None:
        options = RunOptions(
            device=device,
            limit=limit,
            data_dir=files.data_folder(data_dir),
            command=f"bench run {checked.name}",
        )
        if not _enter(folder, add, card, checked, options):
            return 1
    for path in page.write_leaderboard(
        entries.read_entries(folder, checked), checked, out or folder
    ):
        echo(f"leaderboard: {path}")
    return 0


def _enter(folder: Path, run: Path, card: Path, suite: "Suite", options: "RunOptions") -> bool:
    """Whether the model of a card entered the board, or why it did not."""
    from bench.workflows.leaderboard import admission, entries, model_card

    description = model_card.read_card(card)
    claimed = admission.read_claim(run, description.model.label)
    with show_progress() as listen:
        admitted = admission.admit_model(description, claimed, suite, options, listen)
    if admitted.snapshot is None or admitted.recheck is None:
        for problem in admitted.problems:
            tell("not entered", f"{description.name}: {problem}")
        return False
    place = entries.entry_folder(folder, description)
    entries.write_entry(place, card, admitted.snapshot, admitted.recheck)
    again = admitted.recheck
    echo(
        f"entered: {description.name}: run again on {again.examples} of {claimed.data.n} examples, "
        f"{again.differ} of {again.compared} outcomes otherwise ({place})"
    )
    return True
