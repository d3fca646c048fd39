"""`bench attack`: one image."""

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from bench.cli.main import DATA_DIR, DEVICE, FOLDER, cli, echo
from bench.core.errors import SuiteError


@cli.command()
@click.argument("image")
@click.option(
    "--model", required=True, help="A name of `bench list models`, file.py:NAME, net.pt2."
)
@click.option("--weights", help="Published name, file, or random [the first published].")
@click.option("--trust", is_flag=True, help="Read net.pt2 although it can run code.")
@click.option("--attack", help="A name of `bench list attacks`, or file.py:NAME [pgd].")
@click.option("--eps", default="2/255", show_default=True, help="Radius, a number or a fraction.")
@click.option("--norm", default="linf", show_default=True)
@click.option("--target", help="Class to reach, by name or index [untargeted].")
@click.option("--param", "params", multiple=True, metavar="KEY=VALUE", help="Of the attack.")
@click.option("--every", type=click.IntRange(1), default=5, show_default=True, help="Steps told.")
@click.option("--magnify", type=float, help="Factor to show the change by [computed].")
@DEVICE
@click.option("--out", type=FOLDER, default=Path(), help="Folder for PNG, figure, page [here].")
@DATA_DIR
def attack(
    image: str,
    model: str,
    weights: str | None,
    trust: bool,
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
    from bench.attacks.common import ONE_IMAGE
    from bench.core import files
    from bench.core.validation import Validator
    from bench.evaluation import loading
    from bench.suite.reader import parse_attack
    from bench.suite.schema import ModelEntry
    from bench.workflows.single_image import attack as single
    from bench.workflows.single_image import page

    chosen = weights or loading.find_default_weights(model)
    check = Validator("bench attack: --model")
    about = {"name": model, "label": model, "weights": chosen, "trust": trust}
    entry = check.fill(ModelEntry, about, "")
    check.stop_if_wrong()
    raw: dict[str, Any] = {
        "name": attack or ONE_IMAGE,
        "norm": norm,
        "eps": [eps],
        "params": _params(params),
        "stop": "never",
    }
    if target is not None:
        raw |= {"goal": "targeted", "target": target}
    checked = parse_attack(raw, "bench attack")
    files.check_writable(out)
    told = single.attack(
        image,
        entry,
        checked,
        device=loading.select_device(device),
        out=out,
        data_dir=loading.data_folder(data_dir),
        magnify=magnify,
    )
    for line in page.lines(told, every):
        echo(line)
    command = shlex.join(["bench", *sys.argv[1:]])
    echo(f"page: {page.page(told, every, command, out)}")


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
