"""`bench gpu-check`: what the GPU path does on this GPU."""

from pathlib import Path

import click

from bench.cli.main import DATA_DIR, FOLDER, POSITIVE, cli, echo


@cli.command("gpu-check")
@click.argument("out", type=FOLDER)
@click.option(
    "--device", default="cuda", show_default=True, help="cuda or cuda:N; cpu rehearses the parts."
)
@click.option(
    "--minutes", type=POSITIVE, default=8.0, show_default=True,
    help="Time after which no measurement begins.",
)  # fmt: skip
@DATA_DIR
def gpu_check(out: Path, device: str, minutes: float, data_dir: Path | None) -> int:
    """Check the GPU path on a GPU, and time it.

    Are the steps of all attacks captured as CUDA graphs, with the same bits as single launches? How
    fast are PGD, ResNet50 and AutoAttack, and does memory grow? Every result is written at once to
    OUT/gpu_check.jsonl, and the summary to OUT/gpu_check.md. Exit code 1 if a measurement failed or
    results differ.
    """
    from bench.core import files
    from bench.evaluation import loading
    from bench.workflows.gpu_check import check
    from bench.workflows.gpu_check.setup import FULL, TINY, load_setup

    where, folder = loading.select_device(device), files.data_folder(data_dir)
    files.check_writable(out)
    gpu = where.type != "cpu"
    setup = load_setup(where, folder, FULL if gpu else TINY)

    def report(line: check.Line) -> None:
        found = line.get("failed") or line.get("skipped") or "done"
        echo(f"{line['part']}, {line['job']}: {found}", err=True)

    lines = check.run_check(setup, out, 60 * minutes, report)
    problems = check.find_problems(lines, gpu)
    for problem in problems:
        echo(problem)
    echo(f"page: {out / check.PAGE}")
    return 1 if problems else 0
