"""What a file of an attack defines: one ATTACK record.

The kind of the record says who runs the attack: `IterativeAttack` is a rule that the engine
iterates, `ExternalAttack` a function with its own loop (everything that comes from another
library), `EnsembleAttack` a sequence of attacks. The records hold data and pure
functions: the suite reads their capabilities, the engine and the evaluation run them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from bench.core.contracts.adaptation import Adaptation
from bench.core.contracts.input_transforms import InputTransforms
from bench.core.contracts.learner import Learner
from bench.core.contracts.rule import Rule
from bench.core.contracts.threat import TransformedBatch, VerifierInput
from bench.core.contracts.types import Goal, Norm, Precision, Stop, Sweep, Threat
from bench.core.errors import ContractError
from bench.core.rng import Noise

AttackFunction = Callable[
    [nn.Module, Tensor, Tensor, Threat, Any, Noise], Tensor | TransformedBatch
]
"""(model, x, y, threat, params, noise) -> x_adv: an attack with its own loop. On a family of images
it returns the parameters of each image, too."""


class Part(NamedTuple):
    """One of the attacks of an ensemble."""

    label: str
    """Name in tables."""
    name: str
    """Registered name, which keys the noise."""
    attack: "Attack"
    params: Any


class _AttackKind(type):
    """Metaclass that picks the kind of an attack by the one of `rule`, `run` and `parts` given.

    `Attack(rule=...)`, `Attack(run=...)` and `Attack(parts=...)` are the form in which users' files
    define attacks. Through the call of the class, `dataclasses.replace(attack, rule=None, run=f)`
    changes the kind as well.
    """

    def __call__(cls, **fields: Any) -> Any:
        """Build the attack.

        Args:
            **fields: Fields of the record; exactly one of `rule`, `run` and `parts` is not None.

        Returns:
            An instance of `cls`, or of the kind that the fields belong to.

        Raises:
            ContractError: None or several of the three are given.
        """
        kinds = {"rule": IterativeAttack, "run": ExternalAttack, "parts": EnsembleAttack}
        given = [name for name in kinds if fields.get(name) is not None]
        if len(given) != 1:
            raise ContractError("an Attack has either a rule, a run function or parts")
        kind = kinds[given[0]]
        shared = {key: value for key, value in fields.items() if key not in kinds}
        return type.__call__(
            cls if issubclass(cls, kind) else kind, **shared, **{given[0]: fields[given[0]]}
        )


def _no_files(params: Any) -> Sequence[Path]:
    return ()


def _no_traits(params: Any, norm: Norm, eps: float) -> Mapping[str, str]:
    return {}


def _no_caveats(params: Any, norm: Norm, eps: float) -> Sequence[str]:
    return ()


@dataclass(frozen=True, kw_only=True)
class Attack(metaclass=_AttackKind):
    """Description and capabilities of an attack; every instance is of one of the three kinds."""

    summary: str
    source: str
    params: type
    """Frozen dataclass whose defaults are the attack's; its annotations are checked."""
    version: int = 1
    """Part of the identity of the attack's cells, for bench's own attacks in place of their source
    text. Raise it when the outcomes of the attack change."""
    norms: tuple[Norm, ...]
    goals: tuple[Goal, ...] = ("untargeted", "targeted")
    needs: Literal["gradient", "scores", "labels", "nothing"] = "gradient"
    """What the attack asks of the model; "nothing" for one that was trained beforehand."""
    stochastic: bool = False
    scale_free: bool = True
    """Whether steps ignore the length of the gradient. If not, a model with small gradients needs
    other params, and no strength can be promised of the defaults."""
    budget: Literal["fixed", "minimum"] = "fixed"
    """"fixed": runs at each eps. "minimum": minimises the distance, runs once and is read at every
    eps."""
    min_classes: int = 2
    channels: tuple[int, ...] | None = None
    """Numbers of input channels that the attack supports; None for any."""
    implementation: str = "bench"
    """"bench" or the import name of a library."""
    distribution: str = ""
    """Name of the library's distribution if it differs from `implementation`."""
    unavailable: str = ""
    """Why the attack cannot run here, such as a missing library; its cells are skipped."""
    counts_steps: bool = True
    """Whether an example costs one pass per step of the params. If not, the cost is unknown before
    the attack has run."""
    reads: Callable[[Any], Sequence[Path]] = _no_files
    """(params) -> files that the outcome depends on, such as trained weights; their content
    belongs to the identity of a cell."""
    anytime: bool = False
    """Whether an attack that asks for scores or labels begins with the same queries however many
    steps it is given. Its result at each smaller number of queries is then that of a run of as
    many; if not, that of one moment of a longer run."""
    batch_dependent: bool = False
    """Whether the result of an example depends on the batch it is in; the batch size then belongs
    to the identity of a cell."""
    spares_rejected: bool = False
    """Whether an attack with its own loop knows that the rejection of a detector is no success
    (`bench.engine.rejection.spare_rejected`). If not, and a rejection counts as robust, it is given
    the classifier without the detector. Rules need not know."""
    verify: Callable[[VerifierInput], list[str]] | None = None
    """What the attack promises beyond its ball: for each image why it breaks that; "" if it does
    not. None if it promises nothing more."""
    learn: Learner | None = None
    """How the attack is trained; None if it needs no training."""
    traits: Callable[[Any, Norm, float], Mapping[str, str]] = _no_traits
    """(params, norm, eps) -> properties that a cross-check compares by name: start, alpha, steps,
    ..."""
    caveats: Callable[[Any, Norm, float], Sequence[str]] = _no_caveats
    """(params, norm, eps) -> sentences that qualify the result, such as that alpha * steps does
    not reach eps; printed in the report."""


@dataclass(frozen=True, kw_only=True)
class IterativeAttack(Attack):
    """An attack whose rule the engine iterates."""

    rule: Rule


@dataclass(frozen=True, kw_only=True)
class ExternalAttack(Attack):
    """An attack that runs its own loop, batch by batch."""

    run: AttackFunction


@dataclass(frozen=True, kw_only=True)
class EnsembleAttack(Attack):
    """Attacks run one after another, each on the examples that are still robust."""

    parts: Callable[[Any, Norm], Sequence[Part]]
    """(params, norm) -> the attacks in order."""


@dataclass(frozen=True, kw_only=True)
class AttackSpec:
    """One attack against one model over a list of eps: the unit that the engine runs at once."""

    name: str
    """Registered name of the attack. It keys the noise together with the seed, so that two entries
    of one attack share their random starts."""
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
    """Passes that each gradient is averaged over: expectation over transformation, for a randomised
    model (Athalye et al. 2018, https://arxiv.org/abs/1707.07397)."""
    transforms: InputTransforms | None = None
    """Transformations at every gradient of an iterative attack; None for none."""
    predictions: int = 1
    """Predictions of a randomised model that are combined into one verdict."""
    random: bool = False
    """Whether the model is randomised or treated as if it were. Its draws are then seeded, and no
    accelerated model or recorded graph takes its place."""
    trace: bool = False
    """Whether to record the loss at every iterate."""
    adaptation: Adaptation | None = None
    """Loss and gradients of the user's own; None without any."""
    budgets: tuple[int, ...] = ()
    """Numbers of queries, ascending, at which the least distance of a search is recorded; empty for
    an attack that is no search or uses gradients."""
    radii: tuple[float, ...] = ()
    """Radii of one search for all eps, for which it records the query that first came so near."""
    victim_queries: int = 0
    """Most images of one example and eps that an attack on a source shows to the judged model; 0
    for an attack that shows none."""
