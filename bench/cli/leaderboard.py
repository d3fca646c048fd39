"""`bench leaderboard`: models ranked under one threat model, and how one enters."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.cli.main import DATA_DIR, DEVICE, FOLDER, cli, echo, narrated, tell
from bench.cli.progress import shown

if TYPE_CHECKING:
    from bench.execution.options import RunOptions
    from bench.suite.schema import Suite


@cli.command()
@click.argument("folder", type=FOLDER)
@click.option(
    "--suite", default="leaderboard", show_default=True, help="The threat model, a suite."
)
@click.option("-o", "--out", type=FOLDER, help="Where the pages go [FOLDER].")
@click.option("--add", type=FOLDER, help="Folder of a run of the suite: its model wants to enter.")
@click.option(
    "--card", type=click.Path(dir_okay=False, path_type=Path), help="The model's card, with --add."
)
@click.option("--limit", type=click.IntRange(1), help="Run only the first N examples again.")
@DEVICE
@DATA_DIR
@narrated
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
    """Rank the models in FOLDER, by what every attack of the suite together leaves of each.

    With --add and --card a model enters first: its run is held against the suite, the card's model
    is run again, and every outcome is compared. Building it runs the code that its card names.
    Ends with 1, and says what differs, if it may not enter.
    """
    from bench.evaluation import loading
    from bench.execution import options as runner
    from bench.suite import reader as suites
    from bench.workflows.leaderboard import entries, page

    checked = suites.read_suite(suite)
    if (add is None) != (card is None):
        raise click.UsageError("--add and --card go together: a run, and the card of its model")
    if add is not None and card is not None:
        options = runner.RunOptions(
            device=device,
            limit=limit,
            data_dir=loading.data_folder(data_dir),
            command=f"bench run {checked.name}",
        )
        if not _enter(folder, add, card, checked, options):
            return 1
    for path in page.write(entries.read(folder, checked), checked, out or folder):
        echo(f"leaderboard: {path}")
    return 0


def _enter(folder: Path, run: Path, card: Path, suite: "Suite", options: "RunOptions") -> bool:
    """Whether the model of a card entered the board, or why it did not."""
    from bench.workflows.leaderboard import admission, entries
    from bench.workflows.leaderboard import model_card as cards

    made = cards.read(card)
    claimed = admission.claim(run, made.model.label)
    with shown() as listen:
        found = admission.admit(made, claimed, suite, options, listen)
    if found.snapshot is None or found.recheck is None:
        for problem in found.problems:
            tell("not entered", f"{made.name}: {problem}")
        return False
    place = entries.folder_of(folder, made)
    entries.write(place, card, found.snapshot, found.recheck)
    again = found.recheck
    echo(
        f"entered: {made.name}: run again on {again.examples} of {claimed.data.n} examples, "
        f"{again.differ} of {again.compared} outcomes otherwise ({place})"
    )
    return True
