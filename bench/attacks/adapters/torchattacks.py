"""Any attack of the torchattacks library as an attack of bench: `torchattacks:PGD`.

Parameters are those of the class's `__init__` under their names and defaults there, without model,
eps and norm, which the suite sets; `steps` and `restarts` are accepted where the library has
another name. What a class can do is in TABLE, from reading and running the source. Returned images
are not repaired: the harness verifies and judges them.

Source: Kim 2020, https://arxiv.org/abs/2010.01950
Differs from the library: a seed that is not set comes from the suite (AutoAttack's own is the
time of day); `n_classes` is at most the model's; Pixle gets its images one by one where it needs
that; `verbose` is gone, and so are PIFGSM's `momentum` and `prob`, which the library never reads.
"""

import contextlib
import copy
import importlib.metadata
import inspect
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field, make_dataclass, replace
from functools import cache, partial
from typing import Annotated, Any, Literal, NamedTuple

import torch
from annotated_types import Ge
from pydantic import BeforeValidator
from torch import Tensor, nn

from bench.attacks import objects
from bench.attacks.common import PROJECTION, reach_caveats
from bench.attacks.objects import AttackObject
from bench.core import optional
from bench.core.contracts.attack import Attack, ExternalAttack
from bench.core.contracts.parameters import Alpha, Count, step_size
from bench.core.contracts.types import BALLS, Goal, Norm, Threat
from bench.core.errors import ContractError, SuiteError, nearest
from bench.core.rng import Noise

LIBRARY = "torchattacks"
"""Its import name, that of its distribution, and of the extra of bench that installs it."""
TWO: tuple[Norm, ...] = ("linf", "l2")


class Row(NamedTuple):
    """Facts about an attack that torchattacks' classes do not state."""

    summary: str
    paper: str
    norms: tuple[Norm, ...] = ("linf",)
    minimum: bool = False
    """Whether it has no eps: it runs once, and its distances are read at every eps."""
    away_only: bool = False
    """Whether it has no targeted mode, or one that ignores the given class."""
    needs: Literal["gradient", "scores", "labels"] = "gradient"
    draws: bool = False
    """Whether it draws random numbers, for the batch as a whole."""
    by_batch: bool = False
    """Whether it draws none and yet stops on a sum over the batch."""
    or_clean: bool = False
    """Whether it returns the clean image where it fails, not its last iterate."""
    min_classes: int = 2
    channels: tuple[int, ...] | None = None
    start: str = "clean"
    loss: str = "cross-entropy"


UNIFORM, MARGIN = "uniform in the ball", "margin to the largest other logit"
SPHERE = "random, scaled onto the ball's surface"
DONG, LIN, WANG = "Dong et al. 2018", "Lin et al. 2020", "Wang and He 2021"
CROCE, SMOOTH, EAD = "Croce and Hein 2020", "Salman et al. 2019", "Chen et al. 2018"

# fmt: off
TABLE = {
    "VANILA": Row("the image itself, as a floor", "no attack", BALLS, True, True, "labels"),
    "GN": Row("Gaussian noise, as a floor", "no attack", BALLS, True, True, "labels", True),
    "FGSM": Row("one step of length eps along the gradient's sign", "Goodfellow et al. 2015"),
    "BIM": Row("projected gradient ascent from x itself", "Kurakin et al. 2017"),
    "RFGSM": Row("gradient ascent from a random corner around x", "Tramer et al. 2018",
                 draws=True, start="alpha times a random sign"),
    "PGD": Row("projected gradient ascent from a random start", "Madry et al. 2018",
               draws=True, start=UNIFORM),
    "EOTPGD": Row("PGD along gradients averaged over calls", "Zimmermann 2019",
                  draws=True, start=UNIFORM),
    "FFGSM": Row("one step from a random start", "Wong et al. 2020", draws=True, start=UNIFORM),
    "TPGD": Row("PGD on the divergence from the clean output", "Zhang et al. 2019", away_only=True,
                draws=True, start="gaussian, std 0.001", loss="KL divergence from clean output"),
    "MIFGSM": Row("iterated steps along a momentum of gradients", DONG),
    "UPGD": Row("PGD with momentum and a choice of losses", "torchattacks' own",
                draws=True, start=UNIFORM),
    "APGD": Row("PGD with step sizes that adapt", CROCE, TWO, away_only=True, draws=True,
                or_clean=True, start=SPHERE),
    "APGDT": Row("APGD towards each of the likeliest wrong classes", CROCE, TWO, away_only=True,
                 draws=True, or_clean=True, min_classes=4, start=SPHERE, loss="targeted dlr"),
    "DIFGSM": Row("MIFGSM over randomly resized inputs", "Xie et al. 2019", draws=True,
                  start=UNIFORM),
    "TIFGSM": Row("DIFGSM with gradients blurred", "Dong et al. 2019", draws=True, channels=(3,),
                  start=UNIFORM),
    "Jitter": Row("PGD on scaled and jittered outputs", "Schwinn et al. 2021", draws=True,
                  start=UNIFORM, loss="squared error of jittered outputs"),
    "NIFGSM": Row("MIFGSM with Nesterov's look ahead", LIN),
    "PGDRS": Row("PGD against a smoothed classifier", SMOOTH, draws=True,
                 loss="cross-entropy of mean probabilities under noise"),
    "SINIFGSM": Row("NIFGSM over scaled copies of the image", LIN),
    "VMIFGSM": Row("MIFGSM with the gradient's variance tuned", WANG, draws=True),
    "VNIFGSM": Row("NIFGSM with the gradient's variance tuned", WANG, draws=True),
    "SPSA": Row("ascent along finite differences, without gradients", "Uesato et al. 2018",
                needs="scores", draws=True, loss=MARGIN),
    "JSMA": Row("two entries at a time to an extreme, by saliency", "Papernot et al. 2016",
                ("l0",), True, min_classes=10),
    "EADL1": Row("elastic-net attack, least l1 kept", EAD, ("l1",), True, by_batch=True,
                 or_clean=True),
    "EADEN": Row("elastic-net attack, least l2 + beta * l1 kept", EAD, ("l1", "l2"), True,
                 by_batch=True, or_clean=True),
    "PIFGSM": Row("patch-wise steps beyond the ball, spread around", "Gao et al. 2020",
                  away_only=True, channels=(3,)),
    "PIFGSMPP": Row("patch-wise steps, blurred", "Gao et al. 2020b", away_only=True,
                    channels=(3,)),
    "CW": Row("least l2 by Adam, for one fixed c", "Carlini and Wagner 2017", ("l2",), True,
              by_batch=True, or_clean=True),
    "PGDL2": Row("PGD in l2", "Madry et al. 2018", ("l2",), draws=True,
                 start="gaussian direction, uniform radius"),
    "DeepFool": Row("steps to the nearest linearised boundary", "Moosavi-Dezfooli et al. 2016",
                    ("l2",), True, True),
    "PGDRSL2": Row("PGD in l2 against a smoothed classifier", SMOOTH, ("l2",), draws=True,
                   loss="cross-entropy of mean probabilities under noise"),
    "SparseFool": Row("few entries towards DeepFool's boundary", "Modas et al. 2019", ("l0",),
                      True, True),
    "OnePixel": Row("differential evolution of a few pixels", "Su et al. 2019", ("l0",), True,
                    needs="scores", draws=True),
    "Pixle": Row("pixels copied to other places at random", "Pomponi et al. 2022", ("l0",), True,
                 needs="scores", draws=True),
    "FAB": Row("nearest point of the linearised boundary", "Croce and Hein 2020b", TWO,
               away_only=True, draws=True, or_clean=True, loss="distance to the boundary"),
    "AutoAttack": Row("APGD, APGDT, FAB and Square in turn, shortened", CROCE, TWO, away_only=True,
                      draws=True, or_clean=True, min_classes=4, start=SPHERE,
                      loss="those of its members"),
    "Square": Row("random search with squares", "Andriushchenko et al. 2020", TWO,
                  needs="scores", draws=True, or_clean=True, start="stripes", loss=MARGIN),
}
# fmt: on

REFUSED = {
    "MultiAttack": "it takes attack objects, not settings; name its members as attacks of their "
    "own and read the worst case over them",
    "LGV": "it trains copies of the model from a loader of training data, on one fixed device",
}

# ------------------------------------------------------------------------------------------ params

DROPPED = {"self", "model", "eps", "max_epsilon", "norm", "verbose", "momentum", "prob"}
SYNONYMS = {"num_iter_set": "steps", "nb_iter": "steps", "n_restarts": "restarts"}
LOSSES = {"ce": "cross-entropy", "dlr": "dlr", "margin": MARGIN}


def _pair(value: object) -> object:
    """Convert a list, which suites have, to a tuple, which the library takes."""
    return tuple(value) if isinstance(value, list) else value  # a suite has lists, no tuples


Side = int | float
Sides = Annotated[Side | tuple[Side, Side], BeforeValidator(_pair)]
Ten = Annotated[int, Ge(10)]  # EAD divides by max_iterations // 10
TYPES: dict[str, Any] = {
    "alpha": Alpha,
    "seed": int | None,
    "n_classes": Annotated[int, Ge(2)],
    # Whole numbers as defaults, but quantities all the same.
    **dict.fromkeys(("c", "kappa", "scale", "lam", "nsig"), float),
    "noise_type": Literal["guassian", "uniform"],  # the library's spelling
    "kernel_name": Literal["gaussian", "linear", "uniform"],
    "version": Literal["standard", "plus", "rand"],
    "pixel_mapping": Literal[
        "random", "similarity", "similarity_random", "distance", "distance_random"
    ],
    "x_dimensions": Sides,
    "y_dimensions": Sides,
    "UPGD.loss": Literal["ce", "dlr", "margin"],
    "APGD.loss": Literal["ce", "dlr"],
    "Square.loss": Literal["ce", "margin"],
    "EADL1.max_iterations": Ten,
    "EADEN.max_iterations": Ten,
}


def list_names() -> list[str]:
    """List the attacks that can be used here.

    Returns:
        Their names in the library.
    """
    return sorted(TABLE)


def _class(name: str) -> Any:
    """Return the class of an attack."""
    import torchattacks  # takes seconds; only who uses it pays for it

    return getattr(torchattacks, name)


def _signature(name: str) -> dict[str, Any]:
    """Return the parameters of a class and their defaults, without self."""
    parameters = list(inspect.signature(_class(name).__init__).parameters.values())[1:]
    return {parameter.name: parameter.default for parameter in parameters}


def _params(name: str) -> type:
    """Build the params dataclass of a class; both names of a synonym hold the same value."""
    defaults = {key: value for key, value in _signature(name).items() if key not in DROPPED}
    twins = {key: SYNONYMS[key] for key in defaults if key in SYNONYMS}
    fields: list[tuple[str, Any, Any]] = []
    for key, default in defaults.items():
        plain = Count if type(default) is int else type(default)
        kind = TYPES.get(f"{name}.{key}", TYPES.get(key, plain))
        if key in twins:
            fields += [(word, kind | None, field(default=None)) for word in (key, twins[key])]
        else:
            value = None if key == "seed" else float(default) if kind is float else default
            fields.append((key, kind, field(default=value)))

    def fill(self: Any) -> None:
        for theirs, ours in twins.items():
            given = {getattr(self, theirs), getattr(self, ours)} - {None}
            if len(given) > 1:
                raise ValueError(f"'{ours}' and '{theirs}' are the same thing; set one of them")
            for word in (theirs, ours):
                object.__setattr__(self, word, given.copy().pop() if given else defaults[theirs])

    space = {"__post_init__": fill, "__module__": __name__}
    return make_dataclass(f"{name}Params", fields, frozen=True, kw_only=True, namespace=space)


def __getattr__(name: str) -> type:
    """Find `PGDParams` and the like, so that params can be unpickled in a worker process."""
    if name.removesuffix("Params") in TABLE and name.endswith("Params"):
        return adapt(name.removesuffix("Params")).params
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


# ----------------------------------------------------------------------------------------- running


def _arguments(
    name: str, threat: Threat, params: Any, noise: Noise, classes: int
) -> Iterator[tuple[str, Any]]:
    """Yield the keyword arguments of the class's `__init__`, except the model."""
    for key in _signature(name):
        if key in ("eps", "max_epsilon"):
            yield key, threat.eps
        elif key == "norm":
            yield key, threat.norm.capitalize()
        elif key == "alpha":
            yield key, step_size(params.alpha, threat.eps, getattr(params, "steps", 1))
        elif key == "seed":
            yield key, noise.seed if params.seed is None else params.seed
        elif key == "n_classes":
            yield key, min(params.n_classes, classes)
        elif key not in DROPPED:
            yield key, getattr(params, key)


def _run(
    name: str, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, params: Any, noise: Noise
) -> Tensor:
    """Run the library on a batch.

    Shapes: x (n, c, h, w) in [0, 1]; y (n,), labels or target classes; the result as `x`,
    unrepaired. Raises ContractError where the library would return images it never attacked.
    """
    targeted = threat.goal == "targeted"
    if name == "UPGD" and targeted and params.loss == "dlr":
        raise ContractError("torchattacks:UPGD: loss 'dlr' is 0 everywhere when targeted")
    with (
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
        torch.enable_grad(),
    ):
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="torchattacks")
        classes = model(x[:1]).shape[1] if hasattr(params, "n_classes") else 0
        # A new object for every call: one that has raised stays broken.
        attack = _class(name)(model, **dict(_arguments(name, threat, params, noise, classes)))
        attack.set_device(x.device)  # it finds none for a model without parameters
        if targeted:
            attack.set_mode_targeted_by_label(quiet=True)
        rows = 1 if getattr(params, "update_each_iteration", False) else len(x)
        parts = zip(torch.split(x, rows), torch.split(y.long(), rows), strict=True)
        return torch.cat([attack(*part).detach() for part in parts]).to(x)


# ----------------------------------------------------------------------------------- what it means


def _traits(name: str, params: Any, norm: Norm, eps: float) -> Mapping[str, str]:
    """Describe the attack for cross-checks, with the keys that apply to this class."""
    row = TABLE[name]
    traits = {"loss": LOSSES.get(getattr(params, "loss", ""), row.loss)}
    if not row.minimum:
        traits["start"] = row.start if getattr(params, "random_start", True) else "clean"
        traits["stop"] = "first-success" if row.or_clean else "never"
        traits["restarts"] = str(getattr(params, "restarts", 1))
    if name in ("FGSM", "FFGSM") or hasattr(params, "steps"):
        traits["steps"] = str(getattr(params, "steps", 1))
    if name == "AutoAttack":
        traits["steps"] = "10"  # of its APGD, APGDT and FAB; no parameter says so
    if name == "FGSM" or hasattr(params, "alpha"):
        alpha = step_size(getattr(params, "alpha", eps), eps, getattr(params, "steps", 1))
        traits |= {"alpha": f"{alpha:.6g}", "projection": PROJECTION[norm]}
    if hasattr(params, "decay"):
        traits["momentum"] = f"mu={params.decay:g}, gradient over mean |g|"
    return traits


ZERO = "An image with equal or zero class gradients comes back as NaN, which is a violation."
SMOOTHED = "Attacks the mean of the model under noise of noise_sd, not the model itself."
OUTSIDE = (
    "Takes one gradient step on the clean image itself before it measures from it, so images may "
    "leave the box by about lr * initial_const * gradient: violations; lower initial_const."
)
CAVEATS: dict[str, tuple[str, ...]] = {
    "VANILA": ("Returns the clean images: no attack, a floor.",),
    "GN": ("Noise of fixed std, whatever eps: no attack, a floor.",),
    "TPGD": ("Ignores the labels: it leaves the clean output.",),
    "PGDRS": (SMOOTHED,),
    "PGDRSL2": (SMOOTHED,),
    "JSMA": ("Untargeted means towards class (label + 1) % 10, and no other.",),
    "EADL1": (OUTSIDE,),
    "EADEN": (OUTSIDE,),
    "CW": (
        "Pixels that are exactly 0 or 1 never move.",
        "Its objective is wrong where the largest logit is below 0, as in log-probabilities.",
        "One fixed c, without the paper's binary search.",
    ),
    "DeepFool": (ZERO,),
    "SparseFool": (ZERO,),
    "OnePixel": ("Changes at most `pixels` places; l0 counts each channel of a place.",),
    "Pixle": ("Has no budget of its own: l0 is what its copied patches happen to need.",),
    "AutoAttack": (
        "Not the standard AutoAttack: APGD, APGDT and FAB make 10 steps instead of 100, and "
        "Square rescales its schedule.",
    ),
}


def _caveats(name: str, params: Any, norm: Norm, eps: float) -> Sequence[str]:
    """Return the sentences that qualify the result of this class."""
    row, steps = TABLE[name], getattr(params, "steps", 1)
    caveats = [*CAVEATS.get(name, ())]
    if hasattr(params, "alpha"):
        caveats += reach_caveats(step_size(params.alpha, eps, steps), steps, eps)
    if name == "SPSA" and params.lr * steps < eps:
        caveats.append(f"lr * steps = {params.lr * steps:.4g} is less than eps = {eps:.4g}.")
    if hasattr(params, "decay"):
        caveats.append("An image whose gradient is exactly 0 once stays where it is from then on.")
    if hasattr(params, "n_classes") and getattr(params, "multi_targeted", True):
        caveats.append(
            f"n_classes is targets + 1: at most {params.n_classes - 1} targets are tried."
        )
    if name in ("EADL1", "EADEN") and params.kappa:
        caveats.append("kappa is applied to the classes of all labels in the batch at once.")
    if row.or_clean:
        caveats.append("Images that it cannot fool come back clean.")
    return caveats


def adapt(name: str) -> Attack:
    """Return a class of the library as an attack.

    Args:
        name: Name of the attack in the library.

    Returns:
        The attack; one whose cells are skipped if the library is missing.

    Raises:
        SuiteError: There is no such class, or it cannot be used under this contract.
    """
    if name in REFUSED:
        raise SuiteError(f"attack 'torchattacks:{name}' cannot be used here: {REFUSED[name]}")
    if name not in TABLE:
        raise SuiteError(f"attack 'torchattacks:{name}' is unknown; {nearest(name, TABLE)}")
    reason = optional.missing_reason(LIBRARY, extra=LIBRARY)
    if not reason:
        return _adapted(name)
    placeholder = optional.unavailable_attack(LIBRARY, reason)
    row = TABLE[name]
    return replace(
        placeholder,
        norms=row.norms,
        goals=_goals(row),
        budget="minimum" if row.minimum else "fixed",
    )


def _goals(row: Row) -> tuple[Goal, ...]:
    return ("untargeted",) if row.away_only else ("untargeted", "targeted")


@cache
def _adapted(name: str) -> Attack:
    """Build the attack of the installed library."""
    row = TABLE[name]
    return ExternalAttack(
        summary=row.summary,
        source=f"torchattacks {importlib.metadata.version('torchattacks')}, {row.paper}",
        params=_params(name),
        norms=row.norms,
        goals=_goals(row),
        needs=row.needs,
        stochastic=row.draws,
        budget="minimum" if row.minimum else "fixed",
        min_classes=row.min_classes,
        channels=row.channels,
        implementation="torchattacks",
        batch_dependent=row.draws or row.by_batch,
        run=partial(_run, name),
        traits=partial(_traits, name),
        caveats=partial(_caveats, name),
    )


# ----------------------------------------------------------------------------------------- objects


def adapt_object(attack: Any) -> AttackObject | None:
    """Use an attack object of the library as it is.

    Args:
        attack: Such as `torchattacks.PGD(model, eps=8/255)`.

    Returns:
        The attack with the object's radius, norm and model; None for anything else.
    """
    if not isinstance(attack, _class("attack").Attack):
        return None
    name, eps = type(attack).__name__, getattr(attack, "eps", None)
    norm: Any = getattr(attack, "norm", None)
    row = TABLE.get(name) if type(attack).__module__.startswith("torchattacks.") else None
    stated: Any = norm.lower() if isinstance(norm, str) else None
    settings = {
        key: value
        for key, value in vars(attack).items()
        if isinstance(value, int | float | str | tuple | list) and not key.startswith("_")
    }
    adapted = objects.adapt_library_object(
        LIBRARY,
        attack,
        _run_object,
        settings,
        summary=row.summary if row else name,
        norm=stated or (row.norms[0] if row else None),
        needs=row.needs if row else "gradient",
        goals=_goals(row) if row else ("untargeted", "targeted"),
        budget="minimum" if row and row.minimum else "fixed",
        min_classes=row.min_classes if row else 2,
        channels=row.channels if row else None,
    )
    radius = float(eps) if isinstance(eps, int | float) and not (row and row.minimum) else None
    return adapted._replace(eps=radius, model=attack.model)


def _run_object(
    attack: Any,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    params: Any,
    noise: Noise,
) -> Tensor:
    """Run a copy of the user's object on a batch, with the model that is passed in."""
    del params, noise
    # The memo replaces the model everywhere in the object, also in the attacks that it consists of.
    copied = copy.deepcopy(attack, {id(attack.model): model})
    with (
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
        torch.enable_grad(),
    ):
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="torchattacks")
        copied.set_device(x.device)
        if threat.goal == "targeted":
            copied.set_mode_targeted_by_label(quiet=True)
        images: Tensor = copied(x, y.long()).detach().to(x)
        return images
