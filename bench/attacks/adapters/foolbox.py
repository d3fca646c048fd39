"""Any attack of Foolbox that moves an image within a norm: `foolbox:LinfPGD`.

Kind, distance and parameters are read from Foolbox's classes. Parameters are those of the class's
`__init__` under their names and defaults there, without what the suite sets (eps; the norm, as
`distance` and `constraint`), what the harness knows (`channel_axis`) or what no suite can write
(`init_attack`, `tensorboard`). What the classes do not state is in TABLE, one row per family (a
class's name without its norm), from reading and running the source. A fixed-epsilon attack returns
what Foolbox itself judges, its `clipped` images; nothing else is repaired.

Source: Rauber et al. 2020, https://doi.org/10.21105/joss.02607
Differs from the library: `abs_stepsize` may be a share of eps ("eps/10"); an attack that needs an
adversarial start runs Foolbox's default for each image separately, so that one image without a
start is returned clean and its batch does not fail; with `start = "hopskipjump"` the start is that
of bench's `hopskipjump`.
"""

import importlib.metadata
import inspect
import re
import typing
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from bench.attacks import objects
from bench.attacks.common import PROJECTION, Start, find_start, reach_caveats
from bench.attacks.objects import AttackObject
from bench.core import optional
from bench.core.contracts.attack import Attack, ExternalAttack
from bench.core.contracts.parameters import Alpha, Count, step_size
from bench.core.contracts.types import BALLS, Goal, Norm, Threat
from bench.core.rng import Noise

LIBRARY = "foolbox"


class Row(NamedTuple):
    """Facts about an attack that Foolbox's classes do not state."""

    summary: str
    paper: str
    needs: Literal["gradient", "scores", "labels"] = "gradient"
    goals: tuple[Goal, ...] = ("untargeted", "targeted")
    draws: bool = False
    """Whether it draws random numbers, for the batch as a whole; one with a `random_start` may."""
    by_batch: bool = False
    """Whether its stopping rule depends on the whole batch."""
    counts_steps: bool = False
    """Whether it calls the model once a step for an image."""
    norms: tuple[Norm, ...] = ()
    """Norms, if the class does not state them."""


AWAY: tuple[Goal, ...] = ("untargeted",)
MADRY, FLOOR, HARM = "Madry et al. 2018", "no attack", "Rauber et al. 2017"

# fmt: off
TABLE = {
    "FastGradientAttack": Row("one step of length eps along the gradient",
                              "Goodfellow et al. 2015", goals=AWAY),
    "BasicIterativeAttack": Row("projected gradient ascent from x itself", "Kurakin et al. 2017",
                                counts_steps=True),
    "AdamBasicIterativeAttack": Row("gradient ascent by Adam from x itself", "Foolbox's own",
                                    counts_steps=True),
    "ProjectedGradientDescentAttack": Row("projected gradient ascent from a random start", MADRY,
                                          counts_steps=True),
    "AdamProjectedGradientDescentAttack": Row("gradient ascent by Adam from a random start",
                                              MADRY, counts_steps=True),
    "MomentumIterativeFastGradientMethod": Row("iterated steps along a momentum",
                                               "Dong et al. 2018", counts_steps=True),
    "SparseL1DescentAttack": Row("l1 steps along the largest entries of the gradient",
                                 "Tramer and Boneh 2019", counts_steps=True),
    "VirtualAdversarialAttack": Row("the direction in which the output changes most",
                                    "Miyato et al. 2016", goals=AWAY, draws=True),
    "DDNAttack": Row("least l2, direction and norm apart", "Rony et al. 2019", draws=True,
                     counts_steps=True),
    "FMNAttack": Row("least norm by gradients and a ball that follows", "Pintor et al. 2021"),
    "CarliniWagnerAttack": Row("least l2 by Adam, c searched for", "Carlini and Wagner 2017",
                               by_batch=True),
    "EADAttack": Row("least l1 + l2, c searched for", "Chen et al. 2018", by_batch=True),
    "DeepFoolAttack": Row("steps to the nearest linearised boundary",
                          "Moosavi-Dezfooli et al. 2016", goals=AWAY),
    "NewtonFoolAttack": Row("Newton steps down the label's probability", "Jang et al. 2017",
                            goals=AWAY),
    "BoundaryAttack": Row("a random walk along the boundary", "Brendel et al. 2018", "labels",
                          draws=True, by_batch=True),
    "HopSkipJumpAttack": Row("the boundary's normal estimated from labels", "Chen et al. 2020",
                             "labels", draws=True, by_batch=True),
    "PointwiseAttack": Row("pixels of an adversarial image set back one by one",
                           "Schott et al. 2019", "labels", draws=True, by_batch=True,
                           norms=("l0", "l2")),
    "GenAttack": Row("a population of images, crossed and mutated", "Alzantot et al. 2019",
                     "scores", ("targeted",), draws=True),
    "SaltAndPepperNoiseAttack": Row("ever more salt and pepper", HARM, "labels", draws=True),
    "LinearSearchBlendedUniformNoiseAttack": Row("blended with uniform noise", HARM, "labels",
                                                 draws=True, by_batch=True),
    "LinearSearchContrastReductionAttack": Row("ever less contrast", HARM, "labels"),
    "BinarySearchContrastReductionAttack": Row("as little contrast less as will do", HARM,
                                               "labels"),
    "ContrastReductionAttack": Row("less contrast by eps, as a floor", FLOOR, "labels"),
    "GaussianBlurAttack": Row("ever more blurred", HARM, "labels"),
    "InversionAttack": Row("the negative, as a floor", "Hosseini et al. 2017", "labels"),
    "AdditiveGaussianNoiseAttack": Row("Gaussian noise, as a floor", FLOOR, "labels", draws=True),
    "AdditiveUniformNoiseAttack": Row("uniform noise, as a floor", FLOOR, "labels", draws=True),
    "ClippingAwareAdditiveGaussianNoiseAttack": Row(
        "Gaussian noise of length eps inside the box, as a floor", FLOOR, "labels", draws=True),
    "ClippingAwareAdditiveUniformNoiseAttack": Row(
        "uniform noise of length eps inside the box, as a floor", FLOOR, "labels", draws=True),
    "RepeatedAdditiveGaussianNoiseAttack": Row("the best of many Gaussian draws", FLOOR, "labels",
                                               draws=True, by_batch=True),
    "RepeatedAdditiveUniformNoiseAttack": Row("the best of many uniform draws", FLOOR, "labels",
                                              draws=True, by_batch=True),
    "ClippingAwareRepeatedAdditiveGaussianNoiseAttack": Row(
        "the best of many Gaussian draws of length eps inside the box", FLOOR, "labels",
        draws=True, by_batch=True),
    "ClippingAwareRepeatedAdditiveUniformNoiseAttack": Row(
        "the best of many uniform draws of length eps inside the box", FLOOR, "labels",
        draws=True, by_batch=True),
}
# fmt: on

TRUST_REGION = "it needs numba, which Foolbox does not bring along"
REFUSED = {
    "BinarizationRefinementAttack": "it refines images that another attack has made",
    "DatasetAttack": "it draws from other images, which an attack of one image does not have",
    "SpatialAttack": "it turns and shifts an image, which no norm measures",
    **{f"{norm}BrendelBethgeAttack": TRUST_REGION for norm in ("L0", "L1", "L2", "Linfinity")},
}
BLEND: tuple[str, dict[str, int]] = ("LinearSearchBlendedUniformNoiseAttack", {"steps": 50})
STARTS = {
    "BoundaryAttack": BLEND,
    "HopSkipJumpAttack": BLEND,
    "PointwiseAttack": ("SaltAndPepperNoiseAttack", {}),
}
"""Attack that starts at an adversarial image -> Foolbox's default attack for that image."""


def _family(name: str) -> str:
    """Strip the norm from the name of a class."""
    return re.sub(r"^(L0|L1|L2|Linf|LInf)(?=[A-Z])", "", name)


def _attacks() -> Any:
    """Import the library's attacks."""
    return optional.import_library("foolbox.attacks")


def _names() -> dict[str, str]:
    """Map every name of an attack in the library to its class's; FGSM and PGD are aliases."""
    attacks = _attacks()
    classes = {
        name: kind.__name__
        for name, kind in vars(attacks).items()
        if isinstance(kind, type) and issubclass(kind, attacks.Attack)
    }
    return {name: own for name, own in classes.items() if name != "Attack"}


def _class(name: str) -> Any:
    """Return the class of an attack."""
    return getattr(_attacks(), name)


# ------------------------------------------------------------------------------------------ params

DROPPED = {"self", "init_attack", "distance", "constraint", "tensorboard", "channel_axis"}
STEP_SIZE = "abs_stepsize"


def _signature(name: str) -> list[inspect.Parameter]:
    """Return the named parameters of the class's `__init__`."""
    parameters = inspect.signature(_class(name).__init__).parameters.values()
    return [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


@cache  # the short names of a class share it
def _params(name: str) -> type:
    """Build the params dataclass of a class."""
    hints = typing.get_type_hints(_class(name).__init__)
    settings = [
        optional.Setting(
            p.name,
            Alpha | None if p.name == STEP_SIZE else _kind(hints[p.name]),
            *([] if p.default is p.empty else [p.default]),
        )
        for p in _signature(name)
        if p.name not in DROPPED
    ]
    if name in STARTS:
        settings.append(optional.Setting("start", Start, "library", added=True))
    return optional.make_params(name, __name__, settings)


def _kind(hint: Any) -> Any:
    """Return the annotation of a parameter as a suite can satisfy it: counts, lists for tuples."""
    parts = typing.get_args(hint)
    if type(None) in parts and len(parts) == 2:
        (other,) = (part for part in parts if part is not type(None))
        return _kind(other) | None
    if typing.get_origin(hint) is tuple:
        return optional.Pair
    return Count if hint is int else hint


def __getattr__(name: str) -> type:
    """Find `LinfPGDParams` and the like, so that params can be unpickled in a worker process."""
    attack = name.removesuffix("Params")
    if name.endswith("Params") and not optional.missing_reason(LIBRARY) and attack in _names():
        return adapt(attack).params
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


# ----------------------------------------------------------------------------------------- running


def _norms(name: str) -> tuple[Norm, ...]:
    """Return the norms that the class measures distances in."""
    takes = {p.name for p in _signature(name)}
    if TABLE[_family(name)].norms:
        return TABLE[_family(name)].norms
    if "constraint" in takes:
        return ("l2", "linf")
    if "distance" in takes:
        return BALLS
    measured = _class(name).distance
    p = (_class(name)().distance if isinstance(measured, property) else measured).p
    return ("linf",) if p == torch.inf else (f"l{p:g}",)  # type: ignore[return-value]


def _create_attack(name: str, threat: Threat, params: Any) -> Any:
    """Create the library's attack object."""
    takes = [p.name for p in _signature(name)]
    given = {key: getattr(params, key) for key in takes if key not in DROPPED}
    if "constraint" in takes:
        given["constraint"] = threat.norm
    if "distance" in takes:
        given["distance"] = getattr(optional.import_library("foolbox.distances"), threat.norm)
    if isinstance(given.get(STEP_SIZE), str):
        given[STEP_SIZE] = step_size(given[STEP_SIZE], threat.eps, params.steps)
    return _class(name)(**given)


def _run(
    name: str, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, params: Any, noise: Noise
) -> Tensor:
    """Run the library on a batch.

    Shapes: x (n, c, h, w) in [0, 1]; y (n,), labels or target classes; the result as `x`. The
    library draws from the global generators, which the harness has seeded.
    """
    foolbox = optional.import_library(LIBRARY)
    targeted = threat.goal == "targeted"
    aim = foolbox.TargetedMisclassification if targeted else foolbox.Misclassification
    eps = threat.eps if _fixed(name) else None
    with optional.silence(LIBRARY, "eagerpy"):
        victim = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        attack = _create_attack(name, threat, params)
        if name not in STARTS:
            _, clipped, _ = attack(victim, x, aim(y), epsilons=eps)
            return _detach(clipped, x)
        if params.start == "hopskipjump":
            starts, begun = find_start(model, x, y, threat.goal, noise)
        else:
            first, settings = STARTS[name]
            starts = _class(first)(**settings).run(victim, x, aim(y))
            begun = aim(y)(starts, victim(starts))
        x_adv = x.clone()
        if begun.any():
            few, goal = x[begun], aim(y[begun])
            x_adv[begun] = attack.run(victim, few, goal, starting_points=starts[begun])
        return _detach(x_adv, x)


def _detach(images: Tensor, x: Tensor) -> Tensor:
    """Detach images and convert them to the dtype and device of x."""
    return images.detach().to(x)


def _fixed(name: str) -> bool:
    """Return whether the class attacks at a given eps."""
    base = optional.import_library("foolbox.attacks.base")
    return issubclass(_class(name), base.FixedEpsilonAttack)


# ----------------------------------------------------------------------------------- what it means

SCALED = "scaled into the ball, then box"
GATHERED = {"linf": "signs of gradients", "l2": "gradient over its l2 norm",
            "l1": "gradient over its l1 norm"}  # fmt: skip
ASCENTS = ("ProjectedGradientDescentAttack", "BasicIterativeAttack", "FastGradientAttack",
           "MomentumIterativeFastGradientMethod")  # fmt: skip
"""Families that step along a gradient and are projected, as bench's own do."""


def _alpha(name: str, params: Any, eps: float) -> float:
    """Return the length of a step."""
    own = getattr(params, STEP_SIZE, None)
    if own is not None:
        return step_size(own, eps, params.steps)
    return float(getattr(params, "rel_stepsize", 1.0) * eps)


def _traits(name: str, params: Any, norm: Norm, eps: float) -> Mapping[str, str]:
    """Describe the attack for cross-checks, with the keys that apply to this class."""
    steps = {"steps": str(params.steps)} if hasattr(params, "steps") else {}
    if _family(name) not in ASCENTS:
        return steps
    traits = {
        "loss": "cross-entropy",
        "start": "uniform in the ball" if params.random_start else "clean",
        "stop": "never",
        "restarts": "1",
        "alpha": f"{_alpha(name, params, eps):.6g}",
        "projection": SCALED if norm == "l1" else PROJECTION[norm],
        "steps": "1",
        **steps,
    }
    if hasattr(params, "momentum"):
        traits["momentum"] = f"mu={params.momentum:g}, {GATHERED[norm]}"
    return traits


SIGNS = (
    "Its momentum gathers the signs of gradients, where the paper's gathers gradients over their "
    "l1 norms: another attack, weaker where the signs cancel to 0."
)
NO_START = "An image that no random noise makes adversarial has no start, and comes back clean."
BLACK = "An image that it cannot fool comes back black, which no eps of use allows."
CAVEATS: dict[str, tuple[str, ...]] = {
    "BoundaryAttack": (NO_START,),
    "HopSkipJumpAttack": (NO_START,),
    "PointwiseAttack": (NO_START,),
    "CarliniWagnerAttack": (BLACK,),
    "EADAttack": (BLACK,),
    "NewtonFoolAttack": (
        "An image whose probability reaches 0 comes back as NaN, which is a violation.",
    ),
    "InversionAttack": ("Looks at nothing and searches for nothing: a floor.",),
    "ContrastReductionAttack": ("Looks at nothing: a floor.",),
    "DeepFoolAttack": ("Tries the `candidates` likeliest classes only.",),
    "SparseL1DescentAttack": ("Its projection scales, where the paper's finds the nearest point.",),
}


def _caveats(name: str, params: Any, norm: Norm, eps: float) -> Sequence[str]:
    """Return the sentences that qualify the result of this class."""
    caveats = [*CAVEATS.get(_family(name), ())]
    if _family(name) == "MomentumIterativeFastGradientMethod" and norm == "linf":
        caveats.append(SIGNS)
    if _family(name) in ASCENTS:
        caveats += reach_caveats(_alpha(name, params, eps), getattr(params, "steps", 1), eps)
    return caveats


def list_names() -> list[str]:
    """List the attacks that can be used here.

    Returns:
        Their names in the library; none if it is not installed, since it alone knows them.
    """
    return [] if optional.missing_reason(LIBRARY) else sorted(set(_names()) - set(REFUSED))


def adapt(name: str) -> Attack:
    """Return a class of the library as an attack.

    Args:
        name: Name of the attack in the library.

    Returns:
        The attack; one whose cells are skipped if the library is missing.

    Raises:
        SuiteError: There is no such attack, or it cannot be used under this contract.
    """
    reason = optional.missing_reason(LIBRARY)
    return optional.unavailable_attack(LIBRARY, reason) if reason else _adapted(name)


@cache
def _adapted(name: str) -> Attack:
    """Build the attack of an installed library."""
    optional.check_name(LIBRARY, name, _names(), REFUSED)
    own = _names()[name]
    row = TABLE[_family(own)]
    draws = row.draws or any(p.name == "random_start" for p in _signature(own))
    return ExternalAttack(
        summary=row.summary,
        source=f"foolbox {importlib.metadata.version(LIBRARY)}, {row.paper}",
        params=_params(own),
        norms=_norms(own),
        goals=row.goals,
        needs=row.needs,
        stochastic=draws,
        budget="fixed" if _fixed(own) else "minimum",
        implementation=LIBRARY,
        batch_dependent=draws or row.by_batch,
        counts_steps=row.counts_steps,
        run=partial(_run, own),
        traits=partial(_traits, own),
        caveats=partial(_caveats, own),
    )


# ----------------------------------------------------------------------------------------- objects


def adapt_object(attack: Any) -> AttackObject | None:
    """Use an attack object of the library as it is.

    Args:
        attack: Such as `foolbox.attacks.LinfPGD(steps=20)`.

    Returns:
        The attack with the object's norm; None for anything else.
    """
    base = optional.import_library("foolbox.attacks.base")
    if not isinstance(attack, base.Attack):
        return None
    name = type(attack).__name__
    row = TABLE.get(_family(name))
    norms: dict[Any, Norm] = {float("inf"): "linf", 2: "l2", 1: "l1", 0: "l0"}
    settings = {
        key: value
        for key, value in vars(attack).items()
        if isinstance(value, int | float | str | tuple | list | None)
    }
    return objects.adapt_library_object(
        LIBRARY,
        attack,
        _run_object,
        settings,
        summary=row.summary if row else name,
        norm=norms.get(getattr(attack.distance, "p", None)),
        needs=row.needs if row else "gradient",
        goals=row.goals if row else ("untargeted", "targeted"),
        budget="fixed" if isinstance(attack, base.FixedEpsilonAttack) else "minimum",
    )


def _run_object(
    attack: Any,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    params: Any,
    noise: Noise,
) -> Tensor:
    """Run the user's object on a batch."""
    del params, noise
    foolbox = optional.import_library(LIBRARY)
    targeted = threat.goal == "targeted"
    aim = foolbox.TargetedMisclassification if targeted else foolbox.Misclassification
    base = optional.import_library("foolbox.attacks.base")
    eps = threat.eps if isinstance(attack, base.FixedEpsilonAttack) else None
    with optional.silence(LIBRARY, "eagerpy"):
        victim = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        _, clipped, _ = attack(victim, x, aim(y), epsilons=eps)
        return _detach(clipped, x)
