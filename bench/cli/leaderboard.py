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
    "--suite", help="Suite that defines the threat model [that of the entries, else leaderboard]."
)
@click.option("-o", "--out", type=FOLDER, help="Folder for the pages [FOLDER].")
@click.option("--add", type=FOLDER, help="Folder of a run of the suite, to submit its model.")
@click.option(
    "--card",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Card of the model, with --add [RUN/card.toml, written from the run and these options].",
)
@click.option("--model", help="Label of the model in the run, if it has several.")
@click.option("--name", help="Name on the leaderboard [the label].")
@click.option("--source", help="Paper or page that describes the model.")
@click.option("--url", help="Address of that.")
@click.option("--training", help="How it was trained, and against what.")
@click.option("--trained-on", "data", help="Training data.")
@click.option("--licence", help="Licence of the weights.")
@click.option("--contact", help="Who is responsible for the entry.")
@click.option(
    "--limit", type=click.IntRange(1), help="Verify only the first N examples of a submission."
)
@DEVICE
@DATA_DIR
@progress_options
def leaderboard(
    folder: Path,
    suite: str | None,
    out: Path | None,
    add: Path | None,
    card: Path | None,
    model: str | None,
    limit: int | None,
    device: str,
    data_dir: Path | None,
    **texts: str | None,
) -> int:
    """Rank models by worst-case robust accuracy.

    FOLDER holds the entries of the leaderboard. An example counts as robust if no attack of the
    suite fools the model on it.

    With --add a model is submitted first: its run is checked against the suite, the model is built
    and run again, which executes its code, and every outcome is compared. If the submission is
    refused, the reasons are printed and the exit code is 1. The model's card, which describes it,
    is written into the run's folder; what the options do not say must be filled in there.

    \b
    bench run leaderboard --model mine.py:net --weights w.pt --out mine
    bench leaderboard FOLDER --add mine --source "my thesis" --licence MIT ...
    """  # noqa: D301 - click's mark of lines to keep is the character
    from bench.core import files
    from bench.execution.options import RunOptions
    from bench.reporting.formats.numbers import format_plural
    from bench.suite import reader
    from bench.workflows.leaderboard import entries, page

    given = {key: text for key, text in texts.items() if text is not None}
    if add is None and (card or model or given):
        raise click.UsageError("--card and what describes a model go with --add")
    if card is not None and (model or given):
        raise click.UsageError("--card says what the other options say; leave one of them out")
    checked = reader.read_suite(suite or entries.find_suite_name(folder))
    if add is not None:
        options = RunOptions(
            device=device,
            limit=limit,
            data_dir=files.data_folder(data_dir),
            command=f"bench run {checked.name}",
        )
        if not _enter(folder, add, card or _write_card(add, model, given), checked, options):
            return 1
    models = entries.read_entries(folder, checked)
    for path in page.write_leaderboard(models, checked, out or folder):
        echo(f"leaderboard: {path} ({format_plural(len(models), 'model')})")
    return 0


def _write_card(run: Path, label: str | None, given: "dict[str, str]") -> Path:
    """Write the card of a model into the folder of its run."""
    from bench.workflows.leaderboard import card_writing

    path = card_writing.write_card(run, label, given)
    echo(f"card: {path}")
    return path


def _enter(folder: Path, run: Path, card: Path, suite: "Suite", options: "RunOptions") -> bool:
    """Admit the model of a card, and return whether it entered; print why if it did not."""
    from bench.workflows.leaderboard import admission, entries, model_card

    description = model_card.read_card(card)
    place = entries.entry_folder(folder, description)
    claimed = admission.read_claim(run, description.model.label)
    entries.check_place(place, description, claimed)
    with show_progress() as listen:
        admitted = admission.admit_model(description, claimed, suite, options, listen)
    if admitted.snapshot is None or admitted.recheck is None:
        for problem in admitted.problems:
            tell("not entered", f"{description.name}: {problem}")
        return False
    entries.write_entry(place, card, admitted.snapshot, admitted.recheck)
    again = admitted.recheck
    echo(
        f"entered: {description.name}: run again on {again.examples} of {claimed.data.n} examples, "
        f"{again.differ} of {again.compared} outcomes otherwise ({place})"
    )
    return True
