"""Attack one image, with the engine and verification of a suite, and record the loss per step."""

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
from bench.engine.float32_precision import allow_tf32
from bench.engine.functional.logits import probabilities
from bench.engine.model_state import call_model, eval_mode
from bench.evaluation import loading
from bench.evaluation.evaluator import Evaluator
from bench.reporting.plots.saving import save_figure
from bench.reporting.plots.style import STYLE
from bench.suite import plan, targets
from bench.suite.schema import AttackEntry, DataEntry, ModelEntry

TOP = 5
SEED = 0
"""Of the noise of the attack, and of weights that are drawn at random."""
_EXAMPLE = re.compile(r"(?P<data>\w+):(?P<index>\d+)")


class Prediction(NamedTuple):
    """The model's output for one image."""

    top: list[tuple[str, float]]
    """The most probable classes with their probabilities, at most TOP."""
    true: float
    """Probability of the label."""
    pred: int


class SingleImageResult(NamedTuple):
    """One image before and after the attack."""

    name: str
    model: str
    attack: AttackEntry
    label: str
    known: bool
    """Whether the label is the data set's; otherwise it is the model's clean prediction."""
    target: str
    losses: list[float]
    """The maximised loss at each iterate; empty for an attack with a loop outside the engine."""
    before: Prediction
    after: Prediction
    read_back: Prediction
    """For the adversarial image after writing it to a PNG and reading it back."""
    record: dict[str, Any]
    """The example's record, with the columns of a suite run."""
    png: Path
    figure: Path
    notes: tuple[str, ...]
    """What was done to the image, and findings about the model, a sentence each."""
    magnified: float
    """The factor by which the figure shows the perturbation."""


def attack_image(
    image: str,
    model: ModelEntry,
    entry: AttackEntry,
    *,
    device: torch.device,
    out: Path,
    data_dir: Path = Path(),
    magnify: float | None = None,
) -> SingleImageResult:
    """Attack one image; write the adversarial image as PNG, and a figure.

    The label of a file is the model's clean prediction.

    Args:
        image: Path of an image, or an example of a data set such as "digits:17".
        model: Model and weights.
        entry: Attack with one eps.
        device: Where to compute.
        out: Folder for PNG and figure.
        data_dir: Folder of the data sets.
        magnify: Factor by which the figure shows the perturbation; None: computed.

    Returns:
        Predictions, record and the paths of both files.

    Raises:
        SuiteError: Image, model, weights or target cannot be used.
        ContractError: The attack broke its contract.
    """
    registered = registry.find("models", model.name, Path())
    known = isinstance(registered, Model)
    class_names = registered.names() if known and registered.names else ()
    data = _data(image, registered.shape if known else None, class_names, data_dir)
    names, x, stem, shape = data.classes, data.read(0, 1)[0], data.name, data.shape
    loaded = loading.load_model(model, Path(), SEED, data, device, data_dir)
    if entry.goal == "targeted":
        targets.resolve_target(entry, loaded.classes, names)
    evaluator = Evaluator(
        suite="", seed=SEED, device=device, data=data,
        models={model.label: loaded}, rows={model.label: 1}, use_acceleration=False,
    )  # fmt: skip
    task = plan.plan_task(
        model.label, entry, evaluator.model_facts(model.label), SEED, "independent"
    )
    task = task._replace(spec=dataclasses.replace(task.spec, trace=True))
    chunk = evaluator.evaluate_chunk(task, 0, 1)
    record = {str(key): value for key, value in chunk.frame.iloc[0].items()}
    x_adv = chunk.x_adv[0, 0]

    label = record["label"]
    answers = [_answer(loaded.model, each.to(device), label, names) for each in (x, x_adv)]
    png = image_files.write_png(x_adv, out / f"{stem}-adversarial.png")
    again = image_files.decode_image(png, min(shape[1:]), min(shape[1:]), shape[0])
    factor = magnify or _factor(x_adv - x)
    figure = _figure(x, x_adv, factor, [answer.top[0] for answer in answers])
    drawn, _ = save_figure(figure, out / f"{stem}-attack")
    return SingleImageResult(
        name=image,
        model=model.label,
        attack=entry,
        known=data.labels is not None,
        label=_name(names, label),
        target=_name(names, record["target"]) if entry.goal == "targeted" else "",
        losses=[] if chunk.losses is None else chunk.losses[0, 0].tolist(),
        before=answers[0],
        after=answers[1],
        read_back=_answer(loaded.model, again.to(device), label, names),
        record=record,
        png=png,
        figure=drawn,
        notes=(*data.mapping.values(), *loaded.findings),
        magnified=factor,
    )


def _data(image: str, wanted: Shape | None, names: tuple[str, ...], data_dir: Path) -> Data:
    """Wrap one image as a data set whose name is the stem of output files.

    `wanted` is the model's input shape, if known; otherwise a file is resized to 3 x 224 x 224 and
    an example of a data set keeps its shape.
    """
    mapping: dict[str, str] = {}
    example = _EXAMPLE.fullmatch(image)
    if example is None or Path(image).exists():
        path, shape = Path(image), wanted or (3, 224, 224)
        x = image_files.decode_image(path, min(shape[1:]), min(shape[1:]), shape[0])
        labels, name = None, path.stem
        if shape[0] == 1 and image_files.is_coloured(path):
            mapping["channels"] = (
                f"{path.name} is in colour, and the model takes grey images: it is converted to "
                "grey; choose a model of 3 channels to attack its colours."
            )
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
        shape=shape, classes=names, fingerprint=image, mapping=mapping,
    )  # fmt: skip


def _answer(model: nn.Module, image: Tensor, label: int, names: tuple[str, ...]) -> Prediction:
    with eval_mode(model), torch.no_grad(), allow_tf32(False):
        logits = call_model(model, image[None])[0]
    shares = probabilities(logits)
    classes = logits.argsort(descending=True, stable=True)[:TOP]
    top = [
        (_name(names, index), share)
        for index, share in zip(classes.tolist(), shares[classes].tolist(), strict=True)
    ]
    return Prediction(top, float(shares[label]), int(classes[0]))


def _name(names: tuple[str, ...], index: int) -> str:
    return names[index] if 0 <= index < len(names) else str(index)


def _factor(delta: Tensor) -> float:
    """Return a round factor that scales the largest change of a pixel to about 0.5."""
    largest = float(delta.abs().max())
    if largest == 0:
        return 1.0
    return max(1.0, float(f"{0.5 / largest:.1g}"))


def _figure(image: Tensor, x_adv: Tensor, factor: float, tops: list[tuple[str, float]]) -> Figure:
    change = (0.5 + factor * (x_adv - image)).clamp(0, 1)
    titles = [f"{name} {share:.4f}" for name, share in tops] + [f"change, {factor:g} times"]
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(7.6, 2.8), layout="constrained")
        for axes, shown, title in zip(
            figure.subplots(1, 3), (image, x_adv, change), titles, strict=True
        ):
            axes.imshow(shown.permute(1, 2, 0).squeeze(2).numpy(), cmap="gray", vmin=0, vmax=1)
            axes.set(title=title, xticks=[], yticks=[])
        return figure
