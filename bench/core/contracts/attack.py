"""What a plug-in promises: the plain values that attacks, models and data sets are made of.

A file of bench/attacks, bench/models or bench/datasets ends in one ATTACK, MODEL or DATASET
record of the types below; so does a file of the user's own. Nothing here has behaviour beyond
checking itself: the engine drives rules, loading builds models, the planner reads capabilities.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from annotated_types import Ge
from pydantic import AfterValidator, BeforeValidator
from torch import Tensor, nn

from bench.core.contracts.types import Goal, Loss, Norm, Precision, Shape, Stop, Sweep, Threat
from bench.core.errors import ContractError
from bench.core.rng import Noise
from bench.core.validation import parse_fraction

# ---------------------------------------------------------------------------------------- lengths


def _parse_length(written: object) -> object:
    try:
        return parse_fraction(written) if isinstance(written, str) else written
    except ValueError:
        raise ValueError("expected a number or a fraction such as '8/255'") from None


Length = Annotated[float, BeforeValidator(_parse_length)]
"""A setting that is a length in pixels of [0, 1], written as a number or a fraction."""

Real = TypeVar("Real", float, Tensor)
_EPS_SHARE = re.compile(r"(?:(?P<times>[\d.eE+-]+)\s*\*\s*)?eps(?:\s*/\s*(?P<over>steps|[\d.]+))?")


def step_size(alpha: float | str, eps: Real, steps: int) -> Real:
    """The absolute step size meant by `alpha`: a number, a fraction, or a share of eps as text.

    Shapes: a float eps gives a float, eps (n,) gives (n,). Units: those of eps.
    Raises: ValueError if the text is neither a number, nor a fraction such as "2/255", nor
    "[number*]eps[/number]" or "[number*]eps[/steps]".

    >>> step_size(0.01, 0.3, 40), step_size("eps/10", 0.3, 40), step_size("2.5*eps/steps", 2.0, 50)
    (0.01, 0.03, 0.1)
    >>> step_size("2/255", 0.3, 40) == 2 / 255
    True
    """
    match = _EPS_SHARE.fullmatch(alpha.strip()) if isinstance(alpha, str) else None
    if match is None:
        try:
            return eps * 0.0 + parse_fraction(alpha)
        except ValueError:
            raise ValueError(
                "expected a number, a fraction such as '2/255' or a share of eps such as 'eps/10' "
                "or '2.5*eps/steps'"
            ) from None
    over = match["over"]
    divisor = float(steps) if over == "steps" else float(over or 1)
    return eps * float(match["times"] or 1) / divisor


def _check_step_size(alpha: float | str) -> float | str:
    if not step_size(alpha, 1.0, 1) > 0:  # so that NaN is refused, too
        raise ValueError("expected a step size above 0")
    share = isinstance(alpha, str) and _EPS_SHARE.fullmatch(alpha.strip())
    return alpha if share else parse_fraction(alpha)


Alpha = Annotated[float | str, AfterValidator(_check_step_size)]
Count = Annotated[int, Ge(1)]


class AttackBatch(NamedTuple):
    """What the engine knows of the rows of a batch; every field is per row."""

    x: Tensor
    """Clean images, (n, c, h, w), in [0, 1]."""
    y: Tensor
    """The class to leave (untargeted: the label) or to reach (targeted), (n,), int64."""
    label: Tensor
    """The true label, (n,), int64."""
    eps: Tensor
    """Radius of each row's ball, (n,)."""
    k: Tensor
    """Steps that each row has made, (n,), int64."""
    aim: Tensor
    """The wrong class that this restart is driven to, (n,), int64, under a rule that aims; -1
    under any other."""
    restart: Tensor
    """Runs made before this one, (n,), int64; under a rule that aims, towards the same class."""
    nearest: Tensor
    """Least distance that those before this one found, (n,), under a rule that seeks it; infinite
    if they found nothing, and under any other rule."""


class StepInput(NamedTuple):
    """What one pass showed of a batch of iterates; every field is per row."""

    logits: Tensor
    """(n, classes); their mean over the samples of a randomised model."""
    loss: Tensor
    """What is ascended, (n,)."""
    gradient: Tensor
    """Of each row's loss with respect to that row, as the images; empty for a rule that asks for
    scores alone."""
    fooled: Tensor
    """Whether the iterate reached the attack's goal, (n,), bool."""


class RuleParams(Protocol):
    """The fields that the engine reads from any rule's params."""

    @property
    def steps(self) -> int: ...
    @property
    def restarts(self) -> int: ...
    @property
    def loss(self) -> Loss: ...


@dataclass(frozen=True, kw_only=True)
class Rule:
    """An attack that the engine drives: pure functions over per-row state.

    A state is a NamedTuple of tensors whose first axis is the row and whose field `x` is the
    iterate. The gradient is that of the loss to ascend (already turned around when targeted), with
    respect to the iterate. No row reads another. A rule has `step` or, if it reads more than the
    gradient, `respond`; a rule of an attack that needs "scores" is shown no gradient.
    """

    init: Callable[[AttackBatch, Noise, Any, Norm], Any]
    """(items, noise, params, norm) -> state at step 0."""
    step: Callable[[Any, Tensor, AttackBatch, Any, Norm], Any] | None = None
    """(state, gradient (n, c, h, w), items, params, norm) -> next state."""
    respond: Callable[[Any, StepInput, AttackBatch, Any, Norm], Any] | None = None
    """(state, seen, items, params, norm) -> next state."""
    result: Callable[[Any], Tensor] | None = None
    """(state) -> what a row returns that made its last step; the iterate if None."""
    seeks: bool = False
    """True if it seeks the least distance and keeps the nearest adversarial example: its state has
    a field `nearest`, (n,), that example's distance, infinite as long as there is none."""
    aims: Callable[[Any], int] | None = None
    """(params) -> wrong classes that are tried one after another, the likeliest on the clean image
    first, each in a restart of its own and with the loss of a targeted attack on it; success is
    the attack's own goal all the same."""
    within: Callable[[AttackBatch, Any, Norm], Tensor] | None = None
    """(items, params, norm) -> whether each iterate is in its ball, (n,), bool; None if all always
    are. Outside the ball nothing counts as a success."""
    one_gradient: bool = False
    """True if there is one step and it starts at x for every eps: then a sweep over eps costs
    one gradient."""

    def __post_init__(self) -> None:
        if (self.step is None) == (self.respond is None):
            raise ContractError("a Rule has either a step or a respond function")
        if self.seeks and self.result is None:
            raise ContractError("a Rule that seeks the least distance says what it found: result")

    def next(self, state: Any, seen: StepInput, items: AttackBatch, params: Any, norm: Norm) -> Any:
        """The state after one step."""
        if self.respond is not None:
            return self.respond(state, seen, items, params, norm)
        assert self.step is not None
        return self.step(state, seen.gradient, items, params, norm)


AttackFunction = Callable[[nn.Module, Tensor, Tensor, Threat, Any, Noise], Tensor]
"""(model, x, y, threat, params, noise) -> x_adv: an attack that runs its own loop."""


class TrainingBatch(NamedTuple):
    """One batch that an attack learns from."""

    target: nn.Module
    """The model to be fooled: in evaluation mode, its parameters frozen."""
    x: Tensor
    """Clean images, (n, c, h, w), in [0, 1]."""
    y: Tensor
    """True labels, (n,), int64."""
    threat: Threat


Losses = Mapping[str, Mapping[str, Tensor]]
"""Network -> part of its loss -> that part's mean over a batch, a detached scalar."""


@dataclass(frozen=True, kw_only=True)
class Learner:
    """How an attack learns before it attacks: pure functions over networks, each called by name.

    bench/training owns the loop, the data, the optimisers (one per network) and the files.
    """

    params: type
    """A frozen dataclass of what the training may set, such as the weights of the loss's parts."""
    build: Callable[[Shape, Any], Mapping[str, nn.Module]]
    """(an image's shape, params) -> networks that a run starts from."""
    step: Callable[
        [Mapping[str, nn.Module], Mapping[str, torch.optim.Optimizer], TrainingBatch, Any], Losses
    ]
    """(networks, their optimisers, lesson, params) -> losses seen: every network makes a step."""
    published: str
    """The network that attacks once all have learned."""
    craft: Callable[[nn.Module, Tensor, Threat], Tensor]
    """(published network, x, threat) -> x_adv."""
    metadata: Callable[[Shape, Threat], Mapping[str, str]]
    """What a weights file must say of its training beside the tensors."""


def _no_files(params: Any) -> Sequence[Path]:
    return ()  # a function by name, so that an Attack can be pickled


class Part(NamedTuple):
    """One of the attacks that an ensemble is made of."""

    label: str
    """What tables call it."""
    name: str
    """Its registered name, which keys its noise."""
    attack: "Attack"
    params: Any


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One attack: what it is, what it can do, and a rule, a whole function or its parts."""

    summary: str
    source: str
    params: type
    """A frozen dataclass whose defaults are the attack's; its annotations are checked."""
    version: int = 1
    """Part of the identity of its cells. Raise it when its outcomes change: of bench's own attacks
    it stands for their source text, so that rewording one leaves its finished cells valid."""
    norms: tuple[Norm, ...]
    goals: tuple[Goal, ...] = ("untargeted", "targeted")
    needs: Literal["gradient", "scores", "labels", "nothing"] = "gradient"
    """What it asks of the model while it attacks; "nothing" of one that learned beforehand."""
    stochastic: bool = False
    scale_free: bool = True
    """Whether its steps ignore the gradient's length; if not, a model with small gradients needs
    other params, and no strength can be promised of the defaults."""
    budget: Literal["fixed", "minimum"] = "fixed"
    """"fixed": runs at each eps. "minimum": seeks the least distance, runs once, is read at every
    eps."""
    min_classes: int = 2
    channels: tuple[int, ...] | None = None
    """Numbers of input channels it can attack; None for any."""
    implementation: str = "bench"
    distribution: str = ""
    """The package that its library comes in, where that is called otherwise."""
    unavailable: str = ""
    """Why it cannot run here, such as a library that is not installed; its cells are skipped."""
    counts_steps: bool = True
    """False if its own loop does not look at an image once a step of its params, so that its cost
    is not known before it has run."""
    reads: Callable[[Any], Sequence[Path]] = _no_files
    """(params) -> files that its outcome depends on, such as trained weights; their content
    belongs to the cell's identity."""
    batch_dependent: bool = False
    """True if an example's result depends on the batch it is in; the batch then belongs to the
    cell's identity."""
    rule: Rule | None = None
    run: AttackFunction | None = None
    parts: Callable[[Any, Norm], Sequence[Part]] | None = None
    """(params, norm) -> an ensemble's attacks, each a rule, each tried on what those before it
    left standing."""
    learn: Learner | None = None
    """How it is trained, if it must be before it can attack."""
    traits: Callable[[Any, Norm, float], Mapping[str, str]] = lambda params, norm, eps: {}
    """(params, norm, eps) -> what a cross-check compares by name: start, alpha, steps, ..."""
    caveats: Callable[[Any, Norm, float], Sequence[str]] = lambda params, norm, eps: ()
    """(params, norm, eps) -> sentences a reader of the number must know, e.g. that alpha * steps
    does not reach eps; printed in the report."""

    def __post_init__(self) -> None:
        if [self.rule, self.run, self.parts].count(None) != 2:
            raise ContractError("an Attack has either a rule, a run function or parts")


@dataclass(frozen=True, kw_only=True)
class AttackSpec:
    """One attack against one model over a list of eps: what the engine runs as one stream."""

    name: str
    """The attack's registered name; with the seed it keys the noise, so that two entries of one
    attack share their starts."""
    attack: Attack
    params: Any
    norm: Norm
    eps: tuple[float, ...]
    goal: Goal = "untargeted"
    stop: Stop = "first-success"
    sweep: Sweep = "independent"
    seed: int = 0
    precision: Precision = "float32"
    samples: int = 1
    """Passes over which each look is averaged: expectation over transformation, for a model that
    answers at random (Athalye et al. 2018, https://arxiv.org/abs/1707.07397)."""
    predictions: int = 1
    """Times that a model that answers at random is asked for one verdict."""
    random: bool = False
    """Whether the model answers at random, or is looked at as if it did: then its draws are seeded,
    and it is attacked itself, by no copy and no recording of it."""
    trace: bool = False
    """Keep the loss of every iterate."""
