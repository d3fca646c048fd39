"""`bench plan` and `bench list`: what would run, and what there is."""

from pathlib import Path

import click

from bench.cli.main import DATA_DIR, cli


@cli.command()
@click.argument("suite")
@click.option("--limit", type=click.IntRange(1), help="Use only the first N examples.")
@DATA_DIR
def plan(suite: str, limit: int | None, data_dir: Path | None) -> None:
    """Show the cells, the cost and the data of a suite.

    SUITE is the path of a TOML file or the name of a shipped suite. Each cell is listed with its
    cost in model passes, or with the reason why it is skipped. Nothing is run.
    """
    from rich.table import Table

    from bench.cli.console import console
    from bench.core import files
    from bench.suite import plan_cache

    told = plan_cache.read(suite, files.data_folder(data_dir), limit)
    shown = Table(title=told.title, title_justify="left")
    for name in ("model", "attack", "norm", "goal", "seed", "eps"):
        shown.add_column(name)
    shown.add_column("forwards/example", justify="right")
    shown.add_column("gradients/example", justify="right")
    shown.add_column("skipped because")
    for cell in told.lines:
        aim = f"{cell.goal} {cell.target}".strip()
        cost = ["?" if p is None else f"{p:.3g}" for p in (cell.passes, cell.gradients)]
        seed = told.seed if cell.seed is None else cell.seed
        about = (cell.model, cell.attack, cell.norm, aim, str(seed), cell.eps_text)
        shown.add_row(*about, *cost, cell.reason)
    screen = console()
    screen.print(shown)
    known = [cell.passes for cell in told.lines if cell.passes is not None and not cell.reason]
    screen.print(
        f"{len(told.lines)} cells, at most {sum(known):,.0f} forward passes per example"
        + ("" if len(known) == len(told.lines) else " where the cost is known")
    )
    for line in told.data:
        click.echo(line)


@cli.command(name="list")
@click.argument("kind", type=click.Choice(["models", "attacks", "datasets", "suites", "recipes"]))
def list_(kind: str) -> None:
    """List models, attacks, data sets, suites or recipes.

    Each line gives the name, a summary and the source.
    """
    from rich.table import Table

    from bench.cli.console import console
    from bench.suite import catalog

    rows = catalog.lines(kind)
    names = [row.name for row in rows]
    shown = Table(box=None, show_header=False, pad_edge=False)
    shown.add_column(no_wrap=True, min_width=max(map(len, names), default=0))  # names are typed
    shown.add_column()
    shown.add_column()
    for row in rows:
        shown.add_row(*row)
    console().print(shown)
