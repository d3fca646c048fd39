"""A work, loaded: model, images and labels on one device; and what a contestant brings back."""

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
from bench.workflows.speed.workloads import Victim, Work

SEARCH_STEPS = 2
"""Steps of an attack that is run only to find a batch size."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What every contestant is given; the model is in evaluation mode, its parameters frozen."""

    work: Work
    victim: Victim
    data: Data
    fingerprint: str
    """Of the model."""
    classes: int
    model: nn.Module
    x: Tensor
    """(n, c, h, w), float32 in [0, 1]."""
    y: Tensor
    """(n,), int64: labels, or the model's clean predictions where there are none to speak of."""
    clean: Tensor
    """(n,), bool: whether the model is right before any attack."""
    rows: int
    """Rows that a pass holds by bench's rule."""
    attack: Attack
    params: Any
    """The attack's params dataclass, defaults written out."""
    eps: tuple[float, ...]
    labels: str
    """Where y comes from."""

    @property
    def device(self) -> torch.device:
        return self.x.device

    @property
    def steps(self) -> int:
        return int(self.params.steps)

    def alpha(self, eps: float) -> float:
        """The absolute step size at `eps`; of an attack that has none, eps itself."""
        return step_size(getattr(self.params, "alpha", eps), eps, self.steps)

    def shortened(self, n: int) -> "Task":
        """The first n examples and few steps at the largest eps alone."""
        params, eps = self.params, (max(self.eps),)
        less = {"steps": SEARCH_STEPS, "targets": 1, "queries": SEARCH_STEPS}
        less = {key: few for key, few in less.items() if getattr(params, key, 0) > few}
        params = dataclasses.replace(params, **less)
        x, y, clean = self.x[:n], self.y[:n], self.clean[:n]
        return dataclasses.replace(self, params=params, eps=eps, x=x, y=y, clean=clean)


def load(
    work: Work,
    victim: Victim,
    *,
    device: torch.device,
    data_dir: Path,
    limit: int | None = None,
    data: str | None = None,
) -> Task:
    """The work against one of its models, on `limit` examples (its own number unless given).

    With another data set than its own, a model has that set's weights where such are shipped.
    Raises: SuiteError for data or weights that are not there, or a model that they do not fit.
    """
    n = limit or work.limit
    images = _data(work, data or work.data, n, data_dir)
    if data not in (None, work.data) and _shipped(victim.name, str(data)):
        victim = Victim(name=victim.name, weights=str(data))
    model = ModelEntry(name=victim.name, label=victim.name, weights=victim.weights)
    subject = loading.load_model(model, Path(), 0, images, device, data_dir)
    subject.model.requires_grad_(False)
    x = torch.cat([images.read(at, min(at + 256, images.n)) for at in range(0, images.n, 256)])
    x = x.to(device)
    rows = timing.rows_per_pass(subject.model, x)
    predicted = judge.judge(subject.model, x, rows).pred
    given = images.labels is not None and victim.weights != "random"
    y = images.labels.to(device) if given and images.labels is not None else predicted
    raw = {"name": work.attack, "norm": "linf", "eps": [*work.eps], "params": dict(work.params)}
    entry = parse_attack(raw, f"work '{work.name}'")
    return Task(
        work=work,
        victim=victim,
        data=images,
        fingerprint=subject.fingerprint,
        classes=subject.classes,
        model=subject.model,
        x=x,
        y=y,
        clean=predicted == y,
        rows=rows,
        attack=entry.attack,
        params=entry.params,
        eps=tuple(eps.value for eps in entry.eps),
        labels="the data set's" if given else "the model's clean predictions",
    )


def _data(work: Work, name: str, n: int, data_dir: Path) -> Data:
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
    """Uniform noise at ResNet50's size: what a pass costs does not depend on what is seen."""
    ids = torch.arange(n)
    noise = Noise(0, "speed images", ids, torch.zeros_like(ids))
    x = noise.uniform(torch.empty(n, 3, 224, 224)).add(1).div(2).clamp(0, 1)
    return make_data("random images", x, torch.zeros(n, dtype=torch.int64), ())


def _shipped(model: str, weights: str) -> bool:
    return (published_weights.WEIGHTS / f"{model}-{weights}.safetensors").is_file()


# ------------------------------------------------------------------------------------ contestants


class Brought(NamedTuple):
    """What a contestant brings back: e eps in the work's order, the first m of n examples."""

    x_adv: Tensor | None
    """(e, m, c, h, w); None of one that only makes the passes."""
    right: list[int]
    """How many of the m it counted as still right, at each eps."""


Run = Callable[[int], Brought]
"""Rows a pass may hold -> the whole work done: this is what is timed."""


class Contestant(NamedTuple):
    """One way to do a work."""

    name: str
    """In tables."""
    prepare: Callable[[Task], Run]
    """What is done once for a model, outside the timed work: objects built, tensors converted."""
    library: str = ""
    """The distribution that must be installed; empty for what is written here."""
    peer: str = ""
    """The library's name for --peer."""
    note: str = ""
    """How its work differs from the others', if it does."""
    refusal: str = ""
    """Why it cannot do this work; it is then not asked."""
    rows: int | None = None
    """The only batch size it has."""
    share: Callable[[Task], float] = lambda task: 1.0
    """Share of the examples that it is run on; its seconds are divided by it."""


def library(
    work: Work,
    prepare: Callable[[Task], Run],
    *,
    name: str,
    distribution: str,
    peer: str,
    notes: Mapping[str, str],
) -> Contestant:
    """A library as a contestant; `notes` says of each attack that it has how its rule differs, ""
    if it does not."""
    return Contestant(
        name=name,
        prepare=prepare,
        library=distribution,
        peer=peer,
        note=notes.get(work.attack, ""),
        refusal="" if work.attack in notes else f"no {work.attack} here",
    )


class Made(NamedTuple):
    """What a library made of one batch."""

    x_adv: Tensor
    right: int | None = None
    """How many it said are still right; None if it does not count, so that the loop must."""


def looped(task: Task, rows: int, attack: Callable[[Tensor, Tensor, float], Made]) -> Brought:
    """A user's loop around a library: eps by eps, batch by batch, the survivors counted.

    It is called at eps = 0, too, where the ball holds the image alone: published loops do.
    """
    x_adv = task.x.new_empty(len(task.eps), *task.x.shape)
    right = torch.zeros(len(task.eps), dtype=torch.int64, device=task.device)
    for index, eps in enumerate(task.eps):
        for at in range(0, len(task.x), rows):
            x, y = task.x[at : at + rows], task.y[at : at + rows]
            made = attack(x, y, eps)
            x_adv[index, at : at + rows] = made.x_adv
            if made.right is None:
                right[index] += still_right(task.model, made.x_adv, y, rows)
            else:
                right[index] += made.right
    return Brought(x_adv, right.tolist())


def still_right(model: nn.Module, x: Tensor, y: Tensor, rows: int) -> Tensor:
    """How many of x (n, c, h, w) the model puts into their classes y (n,): one forward pass."""
    with torch.no_grad():
        found = [model(part).argmax(1) for part in x.split(rows)]
    return (torch.cat(found) == y).sum()


def judged(task: Task, brought: Brought) -> tuple[Tensor, int] | None:
    """Which examples are robust, (e, m) bool, and how many images break the threat model.

    By the rules of every bench run: the untouched model, float32, and an image outside ball or
    box fools nobody. None where there is nothing to judge.
    """
    if brought.x_adv is None:
        return None
    robust, broken = [], 0
    m = brought.x_adv.shape[1]
    x, y, clean = task.x[:m], task.y[:m], task.clean[:m]
    for eps, x_adv in zip(task.eps, brought.x_adv, strict=True):
        pred = judge.judge(task.model, x_adv, task.rows).pred
        found = verify.find_violations(x_adv, x, eps, "linf", pred)
        sound = torch.tensor([not text for text in found], device=pred.device)
        robust.append(clean & ~((pred != y) & sound))
        broken += int((~sound).sum())
    return torch.stack(robust).cpu(), broken


def names_of(eps: Sequence[float | str]) -> list[str]:
    """Each eps as the work wrote it.

    >>> names_of([0, 0.05, "2/255"])
    ['0', '0.05', '2/255']
    """
    return [eps if isinstance(eps, str) else f"{eps:g}" for eps in eps]
