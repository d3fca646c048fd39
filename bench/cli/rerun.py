"""`bench rerun`: a run repeated from its own provenance, and held against itself."""

import shlex
import sys
from pathlib import Path

import click

from bench.cli.main import DATA_DIR, FOLDER, cli, echo, progress_options
from bench.cli.progress import show_progress


@cli.command()
@click.argument("folder", type=FOLDER)
@click.option("--out", type=FOLDER, help="Folder for the new run [results/runs/NAME-rerun].")
@click.option("--device", help="auto, cpu, cuda, cuda:N or xpu [as in the first run].")
@DATA_DIR
@click.option(
    "--base", type=FOLDER, help="Folder of the files that the suite names [as in the first run]."
)
@progress_options
def rerun(
    folder: Path, out: Path | None, device: str | None, data_dir: Path | None, base: Path | None
) -> int:
    """Repeat a run and compare the outcome of every example.

    The suite and the options come from provenance.json in FOLDER. What differs between the two
    environments is printed first. Code in files that the suite names is executed.

    The exit code is 0 if every outcome is equal (every bit, if the run was made with
    --deterministic and neither a version nor the device differs), 1 if one is not, and 3 if
    nothing could be compared.
    """
    from bench.analysis import results
    from bench.core import files
    from bench.engine import malloc
    from bench.execution import options, runner
    from bench.workflows import reproduce

    first = results.read_results(folder)
    command = shlex.join(["bench", *sys.argv[1:]])
    again = reproduce.plan_repetition(folder, base, device, files.data_folder(data_dir), command)
    place = out or options.default_run_folder(f"{again.suite.name}-rerun")
    reproduce.check_output_folder(folder, place)
    differ = [*again.notes, *reproduce.list_environment_differences(folder, again.options)]
    for sentence in differ:
        echo(f"differs: {sentence}")
    malloc.keep_freed_memory()
    with show_progress() as listen:
        runner.run_suite(again.suite, place, again.options, listen)
    second = results.read_results(place)
    for sentence in reproduce.list_identity_changes(first, second):
        echo(f"differs: {sentence}")
    comparison = reproduce.compare_repetition(first, second)
    if comparison.refusal:
        echo(f"not compared: {comparison.refusal} (A: {folder}, B: {place})")
        return 3
    for sentence in reproduce.describe_cells(comparison.cells):
        echo(sentence)
    for sentence in comparison.apart:
        echo(f"otherwise: {sentence}")
    bits = again.options.deterministic and not differ
    agree = comparison.agree(bits)
    wanted = "to the last bit" if bits else "in every outcome"
    echo(f"rerun: {place}: {'the same' if agree else 'not the same'} {wanted}")
    return 0 if agree else 1
