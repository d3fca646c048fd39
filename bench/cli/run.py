"""`bench run`: run a suite and write its report."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.cli.backend_options import BackendOptions, backend_options
from bench.cli.main import DATA_DIR, DEVICE, FOLDER, cli, echo, progress_options
from bench.cli.progress import show_progress
from bench.cli.report import AUDIT, write_report
from bench.cli.suite_options import SuiteOptions, suite_options
from bench.cli.tracker_options import requested_trackers, tracker_option
from bench.core.errors import SuiteError

if TYPE_CHECKING:
    from bench.execution.sharding import Shard


@cli.command()
@suite_options
@click.option("--out", type=FOLDER, help="Folder for the run [results/runs/NAME].")
@DEVICE
@click.option("--limit", type=click.IntRange(1), help="Use only the first N examples.")
@click.option(
    "--batch-size", type=click.IntRange(1), help="Images per model pass [by model and device]."
)
@DATA_DIR
@click.option(
    "--keep-adversarial", metavar="SIZE",
    help="Save all adversarial images, up to this size in total, such as 2GiB.",
)  # fmt: skip
@click.option("--fresh", is_flag=True, help="Discard what the folder holds and start again.")
@click.option(
    "--no-copy", is_flag=True, help="Attack the model itself instead of an accelerated copy."
)
@click.option(
    "--deterministic",
    is_flag=True,
    help="Make the results repeatable to the last bit on this device.",
)
@click.option(
    "--shard", metavar="I/N", default="1/1",
    help="Run only shard I of N, into a subfolder; `bench merge` joins the shards.",
)  # fmt: skip
@backend_options
@AUDIT
@tracker_option
@progress_options
def run(
    chosen: SuiteOptions,
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
    """Run a suite and write its report.

    SUITE is the path of a TOML file or the name of a shipped suite (`bench list suites`). Without a
    file, --model, --data, --attack and --eps mean a suite, which is written into the run's folder.
    SUITE with --model runs the suite's data and attacks on that model in place of its own.
    Cells whose records the folder already holds are not run again.

    The exit code is 1 if a cell failed or none could run.
    """
    from bench.core import files, validation
    from bench.engine import malloc
    from bench.execution import sharding
    from bench.execution.options import RunOptions, default_run_folder

    part = sharding.parse_shard(shard)
    if part != sharding.WHOLE and requested_trackers():
        raise SuiteError(
            "--track: a shard is not a complete run; give --track to bench merge instead"
        )
    name = chosen.read(limit).name  # mistakes are named as on the command line
    whole = out or default_run_folder(chosen.run_name(limit, name))
    folder = part.folder(whole)
    options = RunOptions(
        device=device,
        limit=limit,
        batch_size=batch_size,
        data_dir=files.data_folder(data_dir),
        image_quota=(
            validation.byte_size("--keep-adversarial", keep_adversarial) if keep_adversarial else 0
        ),
        fresh=fresh,
        copied=not no_copy,
        deterministic=deterministic,
        shard=part,
    )
    malloc.keep_freed_memory()
    with chosen.store(whole, folder, limit, fresh) as checked, show_progress() as listen:
        place.run(checked, folder, options, listen)
    if part != sharding.WHOLE:
        return _finish_shard(part, folder, whole)
    return write_report(folder, audit)


def _finish_shard(shard: "Shard", folder: Path, whole: Path) -> int:
    """Print how to join the shards; return 1 if a cell of this one failed."""
    from bench.storage import reader

    echo(f"shard {shard.number} of {shard.of} is done: {folder}")
    echo(f"when all are: bench merge {whole} -o {whole}")
    return 1 if reader.read_failures(folder) else 0
