"""`bench speed`: the same work through bench and other libraries, timed side by side."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.cli.main import DATA_DIR, DEVICE, FOLDER, cli, echo
from bench.core.errors import SuiteError, nearest

if TYPE_CHECKING:
    from bench.workflows.speed.race import Race
    from bench.workflows.speed.workloads import Workload


@cli.command()
@click.argument("names", metavar="[WORK]...", nargs=-1)
@click.option("--list", "listed", is_flag=True, help="List the workloads and run nothing.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Repetitions.")
@click.option("--limit", type=click.IntRange(1), help="Number of examples [by workload].")
@click.option(
    "--batch-size", type=click.IntRange(1), help="The same for all libraries [the best of each]."
)
@click.option("--threads", type=click.IntRange(1), help="Threads of PyTorch [PyTorch's default].")
@DEVICE
@click.option("--data", help="Data set, such as digits [by workload].")
@DATA_DIR
@click.option(
    "--peer",
    "peers",
    multiple=True,
    metavar="NAME",
    help="Compare only with this library; repeatable.",
)
@click.option(
    "--plain-heap", is_flag=True, help="Leave the settings of the memory allocator alone."
)
@click.option("--memory", is_flag=True, help="Also measure peak memory, in a process per library.")
@click.option("--out", type=FOLDER, help="Folder for speed.csv, speed.md and speed.json [none].")
def speed(
    names: tuple[str, ...],
    listed: bool,
    rounds: int,
    limit: int | None,
    batch_size: int | None,
    threads: int | None,
    device: str,
    data: str | None,
    data_dir: Path | None,
    peers: tuple[str, ...],
    plain_heap: bool,
    memory: bool,
    out: Path | None,
) -> int:
    """Compare the speed of bench and other libraries.

    Each WORK is a workload (all of them by default): bench, a loop of bare model passes and the
    other libraries attack the same examples with the same parameters, in one process and in rotated
    order. The robust accuracy that each reached is printed beside its time. Libraries that are not
    installed are named; `pip install "robustness-bench[peers]"` installs Foolbox, ART and
    pyautoattack.
    """
    from bench.workflows.speed import workloads

    chosen = workloads.select_workloads(names, workloads.read_workloads())
    if listed:
        _list(chosen)
        return 0

    import torch

    from bench.core import files
    from bench.engine import malloc
    from bench.engine.device import enter_device
    from bench.evaluation import loading
    from bench.workflows.speed import page, race
    from bench.workflows.speed.competitors import PEERS, list_competitors
    from bench.workflows.speed.setup import load_task

    for name in peers:
        if name not in PEERS:
            raise SuiteError(f"--peer '{name}' is unknown; {nearest(name, PEERS)}")
    where, folder = loading.select_device(device), files.data_folder(data_dir)
    click.get_current_context().with_resource(enter_device(where))
    if out is not None:
        files.check_writable(out)  # found out now, not after an hour of racing
    if threads is not None:
        torch.set_num_threads(threads)
    options: dict[str, object] = {
        "--rounds": rounds, "--limit": limit, "--batch-size": batch_size, "--threads": threads,
        "--device": device, "--data": data,
    }  # fmt: skip
    flags = {"--plain-heap": plain_heap, "--memory": memory}
    command = _command(names, options, peers, [key for key, on in flags.items() if on])
    kept = not plain_heap and malloc.keep_freed_memory()
    races: list[Race] = []
    for work in chosen:
        for index, victim in enumerate(work.models):
            task = load_task(work, victim, device=where, data_dir=folder, limit=limit, data=data)
            echo(f"{work.name}: {task.victim}", err=True)
            done = race.run_race(
                task,
                list(list_competitors(work, peers or PEERS, where)),
                rounds=rounds,
                rows=batch_size,
                heap_kept=kept,
                on_step=lambda text: echo(f"  {text}", err=True),
            )
            if memory:
                _remember(done, index, str(where), folder, data, batch_size)
            races.append(done)
            if out is not None:
                page.write_results(races, command, out)
            _print(done)
    if out is not None:
        echo(f"page: {out / 'speed.md'}")
    return 1 if any(each.status == "failed" for done in races for each in done.outcomes) else 0


def _remember(
    done: "Race", model: int, device: str, folder: Path, data: str | None, batch_size: int | None
) -> None:
    """Peak memory of everyone at one batch size: the one given, else bench's rule."""
    import torch

    from bench.workflows.speed import memory

    echo("  memory, a process each", err=True)
    memory.measure_memory(
        done,
        memory.MemoryJob(
            work=done.task.work.name,
            model=model,
            competitor="",
            device=device,
            data_dir=str(folder),
            limit=len(done.task.x),
            data=data,
            rows=min(batch_size or done.task.rows, len(done.task.x)),
            threads=torch.get_num_threads(),
        ),
    )


def _command(
    names: tuple[str, ...], options: dict[str, object], peers: tuple[str, ...], flags: list[str]
) -> str:
    """Compose the command as typed, without the folders, which are this machine's own."""
    import shlex

    words = [
        word for key, value in options.items() if value is not None for word in (key, str(value))
    ]
    words += [word for name in peers for word in ("--peer", name)]
    return shlex.join(["bench", "speed", *names, *words, *flags])


def _list(chosen: "tuple[Workload, ...]") -> None:
    from rich.table import Table

    from bench.cli.console import console

    shown = Table(box=None, show_header=False, pad_edge=False)
    for wraps in (False, True, True):
        shown.add_column(no_wrap=not wraps)
    for work in chosen:
        shown.add_row(work.name, work.title, "; ".join(map(str, work.models)))
    console().print(shown)


def _print(done: "Race") -> None:
    """The table of one race, what was raced above it, what to know below it."""
    from bench.cli.console import console
    from bench.reporting.formats.terminal_table import Column, print_table
    from bench.workflows.speed import page

    screen = console()
    frame = page.build_table(done)
    work = done.task.work
    screen.print(f"\n{work.name}: {work.title}", style="bold")
    for line in (page.describe_race(done), page.describe_timing(done)):
        screen.print(line, style="italic")
    accuracies = [name for name in frame.columns if name.startswith(page.ROBUST)]
    if len(accuracies) > 1:  # too wide beside the times
        times = frame.drop(columns=accuracies)
        parts = [times, frame[[page.NAME, *accuracies]]]
    else:
        parts = [frame]
    for part in parts:
        columns = [Column(name, "name" if name == page.NAME else "number") for name in part.columns]
        rows = [list(map(str, cells)) for cells in part.itertuples(index=False)]
        print_table(screen, columns, rows)
    for note in page.list_notes(done):
        screen.print(f"  {note}")
