"""The verbs of the command line: parse, call, print. Progress bars and colour live here alone.

Exit codes: 0 all well; 1 a cell failed or none ran; 2 the user's mistake, told in one sentence on
stderr; 130 interrupted, with everything that was finished kept.
"""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.errors import RecordError, SuiteError

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from bench.results import Results
    from bench.runner import Event

_FOLDER = click.Path(file_okay=False, path_type=Path)


class _Verbs(click.Group):
    """Turns the errors of users into one sentence each and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (SuiteError, RecordError) as error:
            for line in str(error).splitlines():
                click.echo(f"bench: {line}", err=True)
            ctx.exit(2)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="robustness-bench", prog_name="bench")
def cli() -> None:
    """Measure how robust image classifiers really are."""


def main() -> None:
    """Run the command line; Ctrl-C ends it with 130 and keeps what was finished."""
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("interrupted: what was finished is kept, run again to go on", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


# --------------------------------------------------------------------------------------------- run


@cli.command()
@click.argument("suite")
@click.option("--out", type=_FOLDER, help="Folder of the run [results/runs/NAME].")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda[:N].")
@click.option("--limit", type=click.IntRange(1), help="Only the first N examples.")
@click.option("--batch-size", type=click.IntRange(1), help="Rows a model pass holds [by rule].")
@click.option("--data-dir", type=_FOLDER, help="Where data lie [$BENCH_DATA_DIR, user cache].")
@click.option("--fresh", is_flag=True, help="Forget what the folder holds and start over.")
def run(
    suite: str,
    out: Path | None,
    device: str,
    limit: int | None,
    batch_size: int | None,
    data_dir: Path | None,
    fresh: bool,
) -> int:
    """Run SUITE (a path, or a shipped name) and write its report; resumes what was begun."""
    from bench import loading, results, runner
    from bench.suite import read

    checked = read(suite)
    folder = out or runner.default_folder(checked.name)
    options = runner.Options(
        device=device,
        limit=limit,
        batch_size=batch_size,
        data_dir=loading.data_folder(data_dir),
        fresh=fresh,
    )
    with _Progress() as progress:
        runner.run(checked, folder, options, progress.hear)
    return _report(results.read(folder), folder)


@cli.command()
@click.argument("folder", type=_FOLDER)
def report(folder: Path) -> int:
    """Write tables, plots and pages of a run again from its records, running nothing."""
    from bench import results

    return _report(results.read(folder), folder)


def _report(found: "Results", folder: Path) -> int:
    """Write everything that people read of a run; 1 if a cell failed or is missing, or none ran."""
    from bench import publication

    page = publication.write(found, folder)
    _print_summary(found)
    click.echo(f"report: {page}")
    without = found.table[found.table["status"] != "ok"]
    for row in without.drop_duplicates(["model", "attack", "reason"]).itertuples():
        click.echo(f"{row.status}: {row.model} · {row.attack}: {row.reason}", err=True)
    return 1 if len(found.unfinished()) or len(without) == len(found.table) else 0


def _print_summary(found: "Results") -> None:
    """The closing table: robust accuracy of each attack at each eps, and the worst case."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = found.table
    for (model, norm, goal), group in table.groupby(["model", "norm", "goal"], sort=False):
        radii = group.drop_duplicates("eps").sort_values("eps")
        n = found.provenance["data"]["n"]
        console.print(f"{model}: robust accuracy by eps, {norm}, {goal}, n = {n}", style="italic")
        shown = Table()
        shown.add_column("eps", overflow="fold")
        for text in radii["eps_text"]:
            shown.add_column(str(text), justify="right", no_wrap=True)
        worst = found.worst.query("model == @model and norm == @norm and goal == @goal")
        lines = [*group.groupby("attack", sort=False)]
        if len(lines) > 1:
            lines.append(("worst case", worst))
        for label, rows in lines:
            cells = _percents(rows, radii["eps"])
            shown.add_row(str(label), *cells, style="bold" if rows is worst else None)
        console.print(shown)
    verdicts = found.crosschecks["verdict"].value_counts()
    if len(verdicts):
        told = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
        console.print(f"cross-checks: {told}")
    if len(found.violations):
        console.print(f"violations: {len(found.violations)}, see the report", style="bold red")


def _percents(rows: "pd.DataFrame", radii: "pd.Series[float]") -> list[str]:
    from bench.formats import DASH, absent, percent

    by_eps = rows.set_index("eps")["robust_accuracy"]
    values = [by_eps.get(eps) for eps in radii]
    return [DASH if absent(value) else percent(value) for value in values]


class _Progress:
    """A bar on a terminal, plain lines elsewhere; the time left is in the bar's own pace."""

    def __enter__(self) -> "_Progress":
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
            disable=not self.console.is_terminal,
            speed_estimate_period=600,
        )
        self.bar.__enter__()
        self.task = self.bar.add_task("loading", total=None)
        self.total, self.done = 0.0, 0.0
        self.last = ""
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)

    def hear(self, event: "Event") -> None:
        """Show what the runner says."""
        self.done += event.work if event.what == "done" else 0.0
        if event.what == "start":
            self.total = event.work
            self.bar.update(self.task, total=max(event.work, 1e-9), description=event.text)
            if not event.work:
                self.console.print("nothing to run: every cell is done")
                self.bar.update(self.task, completed=1e-9)
        elif event.what in ("note", "failed"):
            self.console.print(f"{event.what}: {event.text}", markup=False, highlight=False)
        self.bar.update(self.task, completed=self.done)
        if event.what == "begin":
            self.bar.update(self.task, description=event.text)
            if self.bar.disable and event.text != self.last:
                share = self.done / self.total if self.total else 1.0
                self.console.print(f"{share:4.0%} {event.text}", markup=False, highlight=False)
            self.last = event.text


# ------------------------------------------------------------------------------------ plan and list


@cli.command()
@click.argument("suite")
def plan(suite: str) -> None:
    """Every cell of SUITE, its skip reason and its cost in model passes; runs nothing."""
    from rich.console import Console
    from rich.table import Table

    from bench import plan
    from bench.suite import read

    checked = read(suite)
    shown = Table(title=checked.title, title_justify="left")
    for name in ("model", "attack", "norm", "goal", "seed", "eps"):
        shown.add_column(name)
    shown.add_column("forwards/example", justify="right")
    shown.add_column("gradients/example", justify="right")
    shown.add_column("skipped because")
    cells = [c for task in plan.tasks(checked, plan.known_facts(checked)) for c in task.cells]
    for cell in cells:
        aim = f"{cell.goal} {cell.target}".strip()
        cost = ["?" if p is None else f"{p:.3g}" for p in (cell.passes, cell.gradients)]
        seed = str(checked.seed)
        about = (cell.model, cell.attack, cell.norm, aim, seed, cell.eps_text)
        shown.add_row(*about, *cost, cell.reason)
    console = Console()
    console.print(shown)
    known = [cell.passes for cell in cells if cell.passes is not None and not cell.reason]
    console.print(
        f"{len(cells)} cells, at most {sum(known):,.0f} forward passes per example"
        + ("" if len(known) == len(cells) else " where the cost is known")
    )


@cli.command(name="list")
@click.argument("kind", type=click.Choice(["models", "attacks", "datasets", "suites", "recipes"]))
def list_(kind: str) -> None:
    """What there is, with one line and source each."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=None, show_header=False, pad_edge=False)
    for name, summary, source in _listings(kind):
        shown.add_row(name, summary, source)
    Console().print(shown)


def _listings(kind: str) -> list[tuple[str, str, str]]:
    from bench import registry, suite
    from bench.training import recipe

    read: dict[str, Callable[[], list[tuple[str, str, str]]]] = {
        "suites": lambda: [
            (name, suite.read(name).title, str(suite.SHIPPED / f"{name}.toml"))
            for name in suite.shipped()
        ],
        "recipes": lambda: [(name, *recipe.about(name)) for name in recipe.names()],
    }
    if kind in read:
        return read[kind]()
    return [(name, *registry.about(kind, name)) for name in registry.names(kind)]


# ------------------------------------------------------------------------------------------- train


@cli.command()
@click.argument("recipe")
@click.option("--out", type=_FOLDER, default=Path(), help="Folder for weights and card [here].")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda[:N].")
@click.option("--data-dir", type=_FOLDER, help="Where data lie [$BENCH_DATA_DIR, user cache].")
@click.option("--seed", type=int, help="Train this seed only [every seed of the recipe].")
@click.option("--fresh", is_flag=True, help="Forget an interrupted run and start over.")
def train(
    recipe: str,
    out: Path,
    device: str,
    data_dir: Path | None,
    seed: int | None,
    fresh: bool,
) -> None:
    """Train a model, or an attack that must learn, by RECIPE (a path, or a shipped name).

    Goes on where it was interrupted.
    Of several seeds, the best on the validation images is kept. Writes weights, their card, a page
    about them, the history of epochs, and figures of it.
    """
    from dataclasses import replace

    from bench import files, loading
    from bench.training import card, standard
    from bench.training.recipe import kind, read

    where, folder = loading.device(device), loading.data_folder(data_dir)
    if kind(recipe) == "attack":
        _train_attack(recipe, out, where, folder, seed, fresh)
        return
    checked = read(recipe)
    files.check_writable(out)  # found out now, not after an hour of training
    many = (
        range(checked.seed, checked.seed + checked.seeds) if seed is None else range(seed, seed + 1)
    )
    # A finished seed's progress stays until all are published: an interruption loses none of them.
    progress = {each: out / f"{checked.name}.{each}.progress" for each in many}

    def hear(epoch: standard.Epoch) -> None:
        attacked = ""
        if epoch.validation_adversarial_correct is not None:
            attacked = f" (attacked {epoch.validation_adversarial_correct})"
        click.echo(
            f"epoch {epoch.epoch}/{checked.epochs}: loss {epoch.train_loss:.4f}, validation "
            f"{epoch.validation_correct}/{epoch.validation_n}{attacked}, {epoch.seconds:.1f} s",
            err=True,
        )

    runs = []
    for each, path in progress.items():
        if fresh:
            path.unlink(missing_ok=True)
        if len(progress) > 1:
            click.echo(f"seed {each}", err=True)
        trained = standard.train(replace(checked, seed=each), folder, where, hear, path)
        runs.append(card.Run(each, trained))
    weights = card.publish(checked, runs, folder, out)
    if len(runs) > 1:
        click.echo(f"kept: seed {card.best(runs).seed} of {', '.join(map(str, progress))}")
    click.echo(f"weights: {weights}")
    click.echo(f"page: {weights.with_suffix('.md')}")
    for path in progress.values():
        path.unlink(missing_ok=True)


def _train_attack(
    name: str, out: Path, device: "torch.device", data_dir: Path, seed: int | None, fresh: bool
) -> None:
    """Train an attack that has to learn, by the recipe `name`."""
    from dataclasses import replace

    from bench import files
    from bench.training import attacker, attacker_card, attacker_recipe

    recipe = attacker_recipe.read(name)
    recipe = recipe if seed is None else replace(recipe, seed=seed)
    files.check_writable(out)
    progress = out / f"{recipe.name}.{recipe.seed}.progress"
    if fresh:
        progress.unlink(missing_ok=True)

    def hear(epoch: attacker.Epoch) -> None:
        losses = ", ".join(
            f"{network} " + " ".join(f"{part} {loss:.3f}" for part, loss in parts.items())
            for network, parts in epoch.losses.items()
        )
        click.echo(
            f"epoch {epoch.epoch}/{recipe.epochs}: {losses}, validation fooled "
            f"{epoch.validation_fooled}/{epoch.validation_n}, {epoch.seconds:.1f} s",
            err=True,
        )

    trained = attacker.train(recipe, data_dir, device, hear, progress)
    weights = attacker_card.publish(recipe, trained, data_dir, out)
    click.echo(f"weights: {weights}")
    click.echo(f"page: {weights.with_suffix('.md')}")
    progress.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------- one image


@cli.command()
@click.argument("image")
@click.option("--model", required=True, help="A name of `bench list models`, or file.py:NAME.")
@click.option("--weights", help="Published name, file, or random [the first published].")
@click.option("--attack", help="A name of `bench list attacks`, or file.py:NAME [raw gradient].")
@click.option("--eps", default="2/255", show_default=True, help="Radius, a number or a fraction.")
@click.option("--norm", default="linf", show_default=True)
@click.option("--target", help="Class to reach, by name or index [untargeted].")
@click.option("--param", "params", multiple=True, metavar="KEY=VALUE", help="Of the attack.")
@click.option("--every", type=click.IntRange(1), default=5, show_default=True, help="Steps told.")
@click.option("--magnify", type=float, help="Factor to show the change by [computed].")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda[:N].")
@click.option("--out", type=_FOLDER, default=Path(), help="Folder for PNG, figure, page [here].")
@click.option("--data-dir", type=_FOLDER, help="Where data lie [$BENCH_DATA_DIR, user cache].")
def attack(
    image: str,
    model: str,
    weights: str | None,
    attack: str | None,
    eps: str,
    norm: str,
    target: str | None,
    params: tuple[str, ...],
    every: int,
    magnify: float | None,
    device: str,
    out: Path,
    data_dir: Path | None,
) -> None:
    """Attack one IMAGE, a file or an example such as digits:17: before, after, the change."""
    from bench import files, loading, single, story
    from bench.attacks import ONE_IMAGE
    from bench.suite import ModelEntry, attack_entry

    chosen = weights or loading.first_published(model)
    entry = ModelEntry(name=model, label=model, weights=chosen)
    raw: dict[str, Any] = {
        "name": attack or ONE_IMAGE,
        "norm": norm,
        "eps": [eps],
        "params": _params(params),
        "stop": "never",
    }
    if target is not None:
        raw |= {"goal": "targeted", "target": target}
    checked = attack_entry(raw, "bench attack")
    files.check_writable(out)
    told = single.attack(
        image,
        entry,
        checked,
        device=loading.device(device),
        out=out,
        data_dir=loading.data_folder(data_dir),
        magnify=magnify,
    )
    for line in story.lines(told, every):
        click.echo(line)
    command = shlex.join(["bench", *sys.argv[1:]])
    click.echo(f"page: {story.page(told, every, command, out)}")


def _params(given: tuple[str, ...]) -> dict[str, Any]:
    """KEY=VALUE pairs as TOML would read the values; what is no TOML value is text."""
    import tomllib

    found: dict[str, Any] = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals:
            raise SuiteError(f"--param {pair}: expected KEY=VALUE")
        try:
            found[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[key] = value
    return found
