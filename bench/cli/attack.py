"""`bench attack`: one image."""

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from bench.cli.main import DATA_DIR, DEVICE, FOLDER, POSITIVE, cli, echo
from bench.cli.suite_options import parse_params


@cli.command()
@click.argument("image")
@click.option(
    "--model", required=True, help="A name of `bench list models`, file.py:NAME, or net.pt2."
)
@click.option(
    "--weights", help="Name of shipped weights, a file, FILE#PART, or random [the first shipped]."
)
@click.option("--trust", is_flag=True, help="Read the model's file although reading can run code.")
@click.option(
    "--output", help="What of the model's output is the logits: index, key, binary, or sigmoid."
)
@click.option("--attack", help="A name of `bench list attacks`, or file.py:NAME [pgd].")
@click.option("--eps", default="2/255", show_default=True, help="Radius: a number or a fraction.")
@click.option("--norm", default="linf", show_default=True, help="linf, l2, l1 or l0.")
@click.option("--target", help="Target class, by name or index [untargeted].")
@click.option(
    "--param", "params", multiple=True, metavar="KEY=VALUE", help="Parameter of the attack."
)
@click.option(
    "--every", type=click.IntRange(1), default=5, show_default=True, help="Print every N-th step."
)
@click.option(
    "--magnify", type=POSITIVE, help="Factor by which the change is magnified [computed]."
)
@DEVICE
@click.option(
    "--out", type=FOLDER, default=Path(), help="Folder for image, figure and page [current folder]."
)
@DATA_DIR
def attack(
    image: str,
    model: str,
    weights: str | None,
    trust: bool,
    output: str | None,
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
    """Attack a single image.

    IMAGE is a file or an example of a data set, such as digits:17. The adversarial image, a figure
    of the change and a page are written.
    """
    from bench.attacks.common import ONE_IMAGE
    from bench.core import files
    from bench.core.validation import Validator
    from bench.engine.device import enter_device
    from bench.evaluation import loading
    from bench.suite.reader import parse_attack
    from bench.suite.schema import ModelEntry
    from bench.workflows.single_image import page
    from bench.workflows.single_image.attack import attack_image

    chosen = weights or loading.find_default_weights(model)
    check = Validator("bench attack: --model")
    part = int(output) if output is not None and output.isdecimal() else output
    about = {
        "name": model, "label": model, "weights": chosen, "trust": trust, "output": part,
    }  # fmt: skip
    entry = check.fill(ModelEntry, about, "")
    check.stop_if_wrong()
    raw: dict[str, Any] = {
        "name": attack or ONE_IMAGE,
        "norm": norm,
        "eps": [eps],
        "params": parse_params(params),
        "stop": "never",
    }
    if target is not None:
        raw |= {"goal": "targeted", "target": target}
    checked = parse_attack(raw, "bench attack")
    where = loading.select_device(device)
    click.get_current_context().with_resource(enter_device(where))
    files.check_writable(out)
    result = attack_image(
        image,
        entry,
        checked,
        device=where,
        out=out,
        data_dir=files.data_folder(data_dir),
        magnify=magnify,
    )
    for line in page.format_lines(result, every):
        echo(line)
    command = shlex.join(["bench", *sys.argv[1:]])
    echo(f"page: {page.write_page(result, every, command, out)}")
