"""Load a workload onto a device, and define competitors and their results."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.core.contracts.attack import Attack
from bench.core.contracts.dataset import Data
from bench.core.contracts.parameters import step_size
from bench.core.errors import SuiteError
from bench.core.rng import Noise
from bench.datasets.in_memory import make_data
from bench.engine import timing
from bench.evaluation import judge, loading, verify
from bench.models import published_weights
from bench.suite.reader import parse_attack
from bench.suite.schema import DataEntry, ModelEntry
from bench.workflows.speed.workloads import TargetModel, Workload

SEARCH_STEPS = 2
"""Steps of an attack that is run to find a batch size."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RaceTask:
    """The input of every competitor; the model is in evaluation mode, its parameters frozen."""

    work: Workload
    victim: TargetModel
    data: Data
    fingerprint: str
    """Fingerprint of the model."""
    classes: int
    model: nn.Module
    x: Tensor
    """(n, c, h, w), float32 in [0, 1]."""
    y: Tensor
    """(n,), int64: labels, or the model's clean predictions without labels or weights."""
    clean: Tensor
    """(n,), bool: whether the clean prediction is correct."""
    rows: int
    """Rows of a pass by bench's rule."""
    attack: Attack
    params: Any
    """The attack's params dataclass, with defaults filled in."""
    eps: tuple[float, ...]
    labels: str
    """Origin of y, in words."""

    @property
    def device(self) -> torch.device:
        """Device of the images and the model."""
        return self.x.device

    @property
    def steps(self) -> int:
        """Number of steps of the attack."""
        return int(self.params.steps)

    def alpha(self, eps: float) -> float:
        """Compute the absolute step size.

        Args:
            eps: Radius.

        Returns:
            Step size in the unit of eps; eps itself for an attack without one.
        """
        return step_size(getattr(self.params, "alpha", eps), eps, self.steps)

    def shortened(self, n: int) -> "RaceTask":
        """Shorten the work to few examples and steps, at the largest eps alone.

        Args:
            n: Number of examples.

        Returns:
            The shortened work.
        """
        params, eps = self.params, (max(self.eps),)
        less = {"steps": SEARCH_STEPS, "targets": 1, "queries": SEARCH_STEPS}
        less = {key: few for key, few in less.items() if getattr(params, key, 0) > few}
        params = dataclasses.replace(params, **less)
        x, y, clean = self.x[:n], self.y[:n], self.clean[:n]
        return dataclasses.replace(self, params=params, eps=eps, x=x, y=y, clean=clean)


def load_task(
    work: Workload,
    victim: TargetModel,
    *,
    device: torch.device,
    data_dir: Path,
    limit: int | None = None,
    data: str | None = None,
) -> RaceTask:
    """Load model and data of a workload.

    With another data set, a model uses that set's weights if such are shipped.

    Args:
        work: The workload.
        victim: One of its models.
        device: Where to load.
        data_dir: Folder of the data sets.
        limit: Number of examples; None: the workload's.
        data: Another data set; None: the workload's.

    Returns:
        The loaded work.

    Raises:
        SuiteError: Data or weights are missing, or do not fit the model.
    """
    n = limit or work.limit
    images = _data(work, data or work.data, n, data_dir)
    if data not in (None, work.data) and _shipped(victim.name, str(data)):
        victim = TargetModel(name=victim.name, weights=str(data))
    model = ModelEntry(name=victim.name, label=victim.name, weights=victim.weights)
    loaded = loading.load_model(model, Path(), 0, images, device, data_dir)
    loaded.model.requires_grad_(False)
    x = torch.cat([images.read(at, min(at + 256, images.n)) for at in range(0, images.n, 256)])
    x = x.to(device)
    rows = timing.rows_per_pass(loaded.model, x)
    predicted = judge.judge(loaded.model, x, rows).pred
    given = images.labels is not None and victim.weights != "random"
    y = images.labels.to(device) if given and images.labels is not None else predicted
    raw = {"name": work.attack, "norm": "linf", "eps": [*work.eps], "params": dict(work.params)}
    entry = parse_attack(raw, f"work '{work.name}'")
    return RaceTask(
        work=work,
        victim=victim,
        data=images,
        fingerprint=loaded.fingerprint,
        classes=loaded.classes,
        model=loaded.model,
        x=x,
        y=y,
        clean=predicted == y,
        rows=rows,
        attack=entry.attack,
        params=entry.params,
        eps=tuple(eps.value for eps in entry.eps),
        labels="the data set's" if given else "the model's clean predictions",
    )


def _data(work: Workload, name: str, n: int, data_dir: Path) -> Data:
    folder = data_dir / work.folder
    if name == work.data and work.folder and not folder.is_dir():
        return _random_images(n)
    try:
        entry = DataEntry(name=name)
        return loading.load_data(entry, Path(), folder if name == work.data else data_dir, n)
    except SuiteError as error:
        if name == "digits":
            raise
        raise SuiteError(
            f"work '{work.name}': {error}; or take images that ship with --data digits"
        ) from error


def _random_images(n: int) -> Data:
    """Draw uniform noise of ResNet50's input size; a pass costs the same as on photographs."""
    ids = torch.arange(n)
    noise = Noise(0, "speed images", ids, torch.zeros_like(ids))
    x = noise.uniform(torch.empty(n, 3, 224, 224)).add(1).div(2).clamp(0, 1)
    return make_data("random images", x, torch.zeros(n, dtype=torch.int64), ())


def _shipped(model: str, weights: str) -> bool:
    return (published_weights.WEIGHTS / f"{model}-{weights}.safetensors").is_file()


# ------------------------------------------------------------------------------------ competitors


class WorkResult(NamedTuple):
    """The result of a competitor, for e eps in the workload's order and m of n examples."""

    x_adv: Tensor | None
    """Attacked images, (e, m, c, h, w); None from a bare loop."""
    right: list[int]
    """Correct predictions that the competitor counted, at each eps."""


RunWork = Callable[[int], WorkResult]
"""Rows of a pass -> result; the timed work."""


class Competitor(NamedTuple):
    """One way to run a workload."""

    name: str
    """Name in tables."""
    prepare: Callable[[RaceTask], RunWork]
    """Done once for a model, outside the timed work: builds objects, converts tensors."""
    library: str = ""
    """The distribution that must be installed; empty for code of this package."""
    peer: str = ""
    """The library's name for --peer."""
    note: str = ""
    """How its work differs from that of others; empty if it does not."""
    refusal: str = ""
    """Why it cannot run this workload; empty if it can."""
    rows: int | None = None
    """Its fixed batch size, if it has one."""
    needs_tf32: bool = False
    """Whether it runs where the device has TF32 alone: elsewhere it would be the float32 row."""
    share: Callable[[RaceTask], float] = lambda task: 1.0
    """Fraction of the examples that it runs on; its seconds are divided by it."""


def library_competitor(
    work: Workload,
    prepare: Callable[[RaceTask], RunWork],
    *,
    name: str,
    distribution: str,
    peer: str,
    notes: Mapping[str, str],
) -> Competitor:
    """Describe a library as a competitor.

    Args:
        work: The workload.
        prepare: See `Competitor`.
        name: See `Competitor`.
        distribution: The distribution that must be installed.
        peer: See `Competitor`.
        notes: Attack -> how the library's rule differs, "" if it does not.

    Returns:
        The competitor; it refuses attacks without a note.
    """
    return Competitor(
        name=name,
        prepare=prepare,
        library=distribution,
        peer=peer,
        note=notes.get(work.attack, ""),
        refusal="" if work.attack in notes else f"no {work.attack} here",
    )


class BatchResult(NamedTuple):
    """A library's result for one batch."""

    x_adv: Tensor
    right: int | None = None
    """Correct predictions that the library counted; None if it does not count."""


def run_library_loop(
    task: RaceTask, rows: int, attack: Callable[[Tensor, Tensor, float], BatchResult]
) -> WorkResult:
    """Run a library eps by eps and batch by batch, and count correct predictions.

    The library is also called at eps = 0, as in published loops.

    Args:
        task: Model, images and parameters.
        rows: Batch size.
        attack: Attacks images and labels at an eps.

    Returns:
        Attacked images and counts.
    """
    x_adv = task.x.new_empty(len(task.eps), *task.x.shape)
    right = torch.zeros(len(task.eps), dtype=torch.int64, device=task.device)
    for index, eps in enumerate(task.eps):
        for at in range(0, len(task.x), rows):
            x, y = task.x[at : at + rows], task.y[at : at + rows]
            result = attack(x, y, eps)
            x_adv[index, at : at + rows] = result.x_adv
            if result.right is None:
                right[index] += count_correct(task.model, result.x_adv, y, rows)
            else:
                right[index] += result.right
    return WorkResult(x_adv, right.tolist())


def count_correct(model: nn.Module, x: Tensor, y: Tensor, rows: int) -> Tensor:
    """Count correct predictions.

    Args:
        model: Maps images to logits (n, classes).
        x: Images, (n, c, h, w).
        y: Labels, (n,).
        rows: Rows of a pass.

    Returns:
        The count, a scalar on the device.
    """
    with torch.no_grad():
        preds = [model(part).argmax(1) for part in x.split(rows)]
    return (torch.cat(preds) == y).sum()


def judge_result(task: RaceTask, result: WorkResult) -> tuple[Tensor, int] | None:
    """Judge attacked images as in a suite run: by the model itself, in float32.

    An image outside the ball or the box counts as a failed attack.

    Args:
        task: Model, images and parameters.
        result: Result of a competitor.

    Returns:
        Whether each example is robust, (e, m) bool, and the number of images that break the threat
        model; None without images.
    """
    if result.x_adv is None:
        return None
    robust, broken = [], 0
    m = result.x_adv.shape[1]
    x, y, clean = task.x[:m], task.y[:m], task.clean[:m]
    for eps, x_adv in zip(task.eps, result.x_adv, strict=True):
        pred = judge.judge(task.model, x_adv, task.rows).pred
        problems = verify.find_violations(x_adv, x, eps, "linf", pred)
        sound = torch.tensor([not text for text in problems], device=pred.device)
        robust.append(clean & ~((pred != y) & sound))
        broken += int((~sound).sum())
    return torch.stack(robust).cpu(), broken


def format_eps(eps: Sequence[float | str]) -> list[str]:
    """Format each eps as in the workload.

    Args:
        eps: Values, or fractions as text.

    Returns:
        Text of each.

    >>> format_eps([0, 0.05, "2/255"])
    ['0', '0.05', '2/255']
    """
    return [eps if isinstance(eps, str) else f"{eps:g}" for eps in eps]
