"""One image under one attack: the same engine and judgement as a suite, told step by step."""

import dataclasses
import re
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from bench.core import registry
from bench.core.contracts.dataset import Data
from bench.core.contracts.model import Model
from bench.core.contracts.types import Shape
from bench.core.errors import SuiteError
from bench.datasets import image_files
from bench.engine.functional.logits import probabilities
from bench.engine.model_state import call_model, eval_mode
from bench.evaluation import loading
from bench.evaluation.evaluator import Evaluator
from bench.reporting.plots import figures
from bench.reporting.plots.style import STYLE
from bench.suite import plan
from bench.suite.schema import AttackEntry, DataEntry, ModelEntry

TOP = 5
_EXAMPLE = re.compile(r"(?P<data>\w+):(?P<index>\d+)")


class Answer(NamedTuple):
    """What the model says of one image."""

    top: list[tuple[str, float]]
    """The likeliest classes with their probabilities, at most TOP."""
    true: float
    """Probability of the label."""
    pred: int


class SingleImageResult(NamedTuple):
    """One image, before and after."""

    name: str
    model: str
    attack: AttackEntry
    label: str
    known: bool
    """Whether the label is the data set's; else it is the model's own clean prediction."""
    target: str
    losses: list[float]
    """What was ascended at each iterate; empty for an attack that runs its own loop."""
    before: Answer
    after: Answer
    read_back: Answer
    """Of the adversarial image after it was written to a PNG and read again."""
    record: dict[str, Any]
    """The example's record, as a suite would keep it."""
    png: Path
    figure: Path
    magnified: float
    """The factor by which the figure shows the perturbation."""


def attack(
    image: str,
    model: ModelEntry,
    entry: AttackEntry,
    *,
    device: torch.device,
    out: Path,
    data_dir: Path = Path(),
    seed: int = 0,
    magnify: float | None = None,
) -> SingleImageResult:
    """Attack one image: a file, or an example of a data set, "digits:17".

    The label of a file is the model's own clean prediction. Writes the adversarial image as PNG
    and a figure into `out`.
    Raises: SuiteError for an image, model, weights or target that cannot be used; ContractError
    if the attack breaks its promise.
    """
    found = registry.find("models", model.name, Path())
    known = isinstance(found, Model)
    told = found.names() if known and found.names else ()
    data = _data(image, found.shape if known else None, told, data_dir)
    names, x, stem, shape = data.classes, data.read(0, 1)[0], data.name, data.shape
    subject = loading.load_model(model, Path(), seed, data, device, data_dir)
    if entry.goal == "targeted":
        plan.resolve_target(entry, subject.classes, names)
    session = Evaluator(
        suite="", seed=seed, device=device, data=data,
        subjects={model.label: subject}, rows={model.label: 1}, copied=False,
    )  # fmt: skip
    task = plan.plan_task(model.label, entry, session.facts(model.label), seed, "independent")
    task = task._replace(spec=dataclasses.replace(task.spec, trace=True))
    shard = session.shard(task, 0, 1)
    record = {str(key): value for key, value in shard.frame.iloc[0].items()}
    x_adv = shard.x_adv[0, 0]

    label = record["label"]
    answers = [_answer(subject.model, each.to(device), label, names) for each in (x, x_adv)]
    png = image_files.write_png(x_adv, out / f"{stem}-adversarial.png")
    again = image_files.decode_image(png, min(shape[1:]), min(shape[1:]), shape[0])
    factor = magnify or _factor(x_adv - x)
    figure = _figure(x, x_adv, factor, [answer.top[0] for answer in answers])
    drawn, _ = figures.save_figure(figure, out / f"{stem}-attack")
    return SingleImageResult(
        name=image,
        model=model.label,
        attack=entry,
        known=data.labels is not None,
        label=_name(names, label),
        target=_name(names, record["target"]) if entry.goal == "targeted" else "",
        losses=[] if shard.losses is None else shard.losses[0, 0].tolist(),
        before=answers[0],
        after=answers[1],
        read_back=_answer(subject.model, again.to(device), label, names),
        record=record,
        png=png,
        figure=drawn,
        magnified=factor,
    )


def _data(image: str, wanted: Shape | None, names: tuple[str, ...], data_dir: Path) -> Data:
    """One image as a data set of its own; its name is what files made of it are called.

    `wanted` is the shape that the model takes, if that is known; else a photograph is read as
    ImageNet's are, and an example of a data set as it is.
    """
    example = _EXAMPLE.fullmatch(image)
    if example is None or Path(image).exists():
        path, shape = Path(image), wanted or (3, 224, 224)
        x = image_files.decode_image(path, min(shape[1:]), min(shape[1:]), shape[0])
        labels, name = None, path.stem
    else:
        index = int(example["index"])
        entry = DataEntry(name=example["data"], limit=index + 1)
        whole = loading.load_data(entry, Path(), data_dir, None)
        if index >= whole.n:
            raise SuiteError(f"{image}: expected an index below {whole.n}, got {index}")
        shape = whole.shape
        if wanted not in (None, shape):
            raise SuiteError(f"{image}: the model takes images {wanted}, got {shape}")
        x, name = whole.read(index, index + 1)[0], f"{example['data']}-{index}"
        labels = None if whole.labels is None else whole.labels[index : index + 1]
        names = names or whole.classes
    return Data(
        name=name, read=lambda first, last: x[None], labels=labels, n=1,
        shape=shape, classes=names, fingerprint=image,
    )  # fmt: skip


def _answer(model: nn.Module, image: Tensor, label: int, names: tuple[str, ...]) -> Answer:
    with eval_mode(model), torch.no_grad():
        logits = call_model(model, image[None])[0]
    shares = probabilities(logits)
    classes = logits.argsort(descending=True, stable=True)[:TOP]
    top = [
        (_name(names, index), share)
        for index, share in zip(classes.tolist(), shares[classes].tolist(), strict=True)
    ]
    return Answer(top, float(shares[label]), int(classes[0]))


def _name(names: tuple[str, ...], index: int) -> str:
    return names[index] if 0 <= index < len(names) else str(index)


def _factor(delta: Tensor) -> float:
    """A round factor that brings the largest change of a pixel near half the range of grey."""
    largest = float(delta.abs().max())
    if largest == 0:
        return 1.0
    return max(1.0, float(f"{0.5 / largest:.1g}"))


def _figure(image: Tensor, x_adv: Tensor, factor: float, told: list[tuple[str, float]]) -> Figure:
    change = (0.5 + factor * (x_adv - image)).clamp(0, 1)
    titles = [f"{name} {share:.4f}" for name, share in told] + [f"change, {factor:g} times"]
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(7.6, 2.8), layout="constrained")
        for axes, shown, title in zip(
            figure.subplots(1, 3), (image, x_adv, change), titles, strict=True
        ):
            axes.imshow(shown.permute(1, 2, 0).squeeze(2).numpy(), cmap="gray", vmin=0, vmax=1)
            axes.set(title=title, xticks=[], yticks=[])
        return figure
