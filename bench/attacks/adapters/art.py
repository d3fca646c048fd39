"""Any evasion attack of ART that moves an image within a norm: `art:ProjectedGradientDescent`.

The Adversarial Robustness Toolbox works on arrays and on its own type of classifier, which is
created around the model for each batch: logits, cross-entropy, images in [0, 1]. Parameters are
those of the class's `__init__` under their names and defaults there, without what the suite sets
(eps, norm, targeted), what the harness knows (batch_size) and what no suite can write. What the
classes do not state is in TABLE, from reading and running the source. Returned images are not
repaired. Many attacks call the model twice more for ART's log; those passes count, too.

Source: Nicolae et al. 2018, https://arxiv.org/abs/1807.01069
Differs from the library: `eps_step` may be a share of eps ("eps/10"); the model receives float32
where an attack would pass float64; `verbose` is gone; with `start = "hopskipjump"` an attack that
needs an adversarial start has that of bench's `hopskipjump`, and its `batch_size`, the queries in
one pass, may be larger than the number of examples. Importing ART creates a folder `.art`
in the user's home.
"""

import contextlib
import importlib.metadata
import inspect
import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import Annotated, Any, Literal, NamedTuple
from unittest import mock

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor, nn

from bench.attacks.common import PROJECTION, Start, find_start, reach_caveats
from bench.core import optional
from bench.core.contracts.attack import Attack, ExternalAttack
from bench.core.contracts.parameters import Alpha, Count, step_size
from bench.core.contracts.types import Goal, Norm, Threat
from bench.core.rng import Noise, fold

LIBRARY, DISTRIBUTION = "art", "adversarial-robustness-toolbox"
L2: tuple[Norm, ...] = ("l2",)
PLAIN: tuple[Norm, ...] = ("linf", "l2", "l1")


class Row(NamedTuple):
    """Facts about an attack that ART's classes do not state."""

    summary: str
    paper: str
    norms: tuple[Norm, ...] = PLAIN
    needs: Literal["gradient", "scores", "labels"] = "gradient"
    draws: bool = False
    """Whether it draws random numbers, for the batch as a whole; one with random starts may."""
    by_batch: bool = False
    """Whether its stopping rule depends on the whole batch."""
    or_clean: bool = False
    """Whether it returns the clean image where it fails."""
    one_by_one: bool = False
    """Whether it needs batches of 1."""
    away_only: bool = False
    """Whether its targeted mode needs more than a target."""
    own_generator: bool = False
    """Whether it creates generators that the global seed does not reach."""
    probabilities: bool = False
    """Whether it needs a classifier that returns probabilities."""


CROCE, YAMA, CW = "Croce and Hein 2020", "Yamamura et al. 2022", "Carlini and Wagner 2017"

# fmt: off
TABLE = {
    "FastGradientMethod": Row("one step of length eps along the gradient",
                              "Goodfellow et al. 2015"),
    "BasicIterativeMethod": Row("projected gradient ascent from x itself", "Kurakin et al. 2017",
                                ("linf",)),
    "ProjectedGradientDescent": Row("projected gradient ascent", "Madry et al. 2018"),
    "ProjectedGradientDescentNumpy": Row("projected gradient ascent, on arrays",
                                         "Madry et al. 2018"),
    "ProjectedGradientDescentPyTorch": Row("projected gradient ascent, on tensors",
                                           "Madry et al. 2018"),
    "MomentumIterativeMethod": Row("iterated steps along a momentum of gradients",
                                   "Dong et al. 2018"),
    "AutoProjectedGradientDescent": Row("PGD with step sizes that adapt", CROCE, draws=True,
                                        by_batch=True),
    "AutoConjugateGradient": Row("APGD along conjugate gradients", YAMA, draws=True,
                                 by_batch=True),
    "RescalingAutoConjugateGradient": Row("ACG with gradients rescaled", "Yamamura et al. 2024",
                                          draws=True, by_batch=True),
    "VirtualAdversarialMethod": Row("the direction in which the output changes most",
                                    "Miyato et al. 2016", L2, "scores", draws=True,
                                    probabilities=True),
    "SquareAttack": Row("random search with squares", "Andriushchenko et al. 2020",
                        ("linf", "l2"), "scores", draws=True),
    "DeepFool": Row("steps to the nearest linearised boundary", "Moosavi-Dezfooli et al. 2016",
                    L2, by_batch=True),
    "NewtonFool": Row("Newton steps down the predicted class's probability", "Jang et al. 2017",
                      L2),
    "CarliniL2Method": Row("least l2 by gradient descent, c searched for", CW, L2, or_clean=True),
    "CarliniLInfMethod": Row("least linf by gradient descent", CW, ("linf",)),
    "CarliniL0Method": Row("least l0: CarliniL2Method on ever fewer pixels", CW, ("l0",),
                           or_clean=True),
    "ElasticNet": Row("least l1 + l2, c searched for", "Chen et al. 2018", ("l1", "l2"),
                      or_clean=True),
    "SaliencyMapMethod": Row("two entries at a time, by saliency", "Papernot et al. 2016",
                             ("l0",), draws=True, by_batch=True),
    "BoundaryAttack": Row("a random walk along the boundary", "Brendel et al. 2018", L2, "labels",
                          draws=True, or_clean=True, own_generator=True),
    "HopSkipJump": Row("the boundary's normal estimated from labels", "Chen et al. 2020",
                       ("l2", "linf"), "labels", draws=True, or_clean=True,
                       own_generator=True),
    "SignOPTAttack": Row("the boundary's distance descended by signs", "Cheng et al. 2020", L2,
                         "labels", draws=True, away_only=True),
    "SimBA": Row("one random frequency or pixel after another", "Guo et al. 2019", L2, "scores",
                 draws=True, one_by_one=True, probabilities=True),
    "ZooAttack": Row("Adam along finite differences", "Chen et al. 2017", L2, "scores",
                     draws=True, or_clean=True, one_by_one=True),
    "PixelAttack": Row("fewest pixels by differential evolution", "Su et al. 2019", ("l0",),
                       "scores", draws=True, or_clean=True),
}
# fmt: on

PATCH = "it pastes a patch or an object into a scene, which no norm measures"
DETECTOR = "it attacks a detector or tracker of objects, not a classifier"
SOUND = "it attacks a recogniser of speech, not a classifier of images"
FILM = "it attacks films, not images"
TENSORFLOW = "it runs on TensorFlow, not on PyTorch"
MOVES = "it changes colours, places or shapes, which no norm measures"
SHARED = "it makes one perturbation for all images of a batch, so that no image has one of its own"
REFUSED = {
    **dict.fromkeys(("AdversarialPatch", "AdversarialPatchNumpy", "AdversarialPatchPyTorch",
                     "LaserAttack", "GRAPHITEBlackbox", "GRAPHITEWhiteboxPyTorch"), PATCH),
    **dict.fromkeys(("AdversarialTexturePyTorch", "DPatch", "RobustDPatch", "OverloadPyTorch",
                     "SNAL"), DETECTOR),
    **dict.fromkeys(("CarliniWagnerASR", "ImperceptibleASR", "ImperceptibleASRPyTorch"), SOUND),
    **dict.fromkeys(("FrameSaliencyAttack", "OverTheAirFlickeringPyTorch"), FILM),
    **dict.fromkeys(("AdversarialPatchTensorFlowV2", "FeatureAdversariesTensorFlowV2",
                     "MalwareGDTensorFlow", "ProjectedGradientDescentTensorFlowV2"), TENSORFLOW),
    **dict.fromkeys(("CompositeAdversarialAttackPyTorch", "ShadowAttack", "SpatialTransformation",
                     "Wasserstein"), MOVES),
    **dict.fromkeys(("UniversalPerturbation", "TargetedUniversalPerturbation"), SHARED),
    **dict.fromkeys(("FeatureAdversariesNumpy", "FeatureAdversariesPyTorch"),
                    "it moves an image towards a guide image, which no suite gives"),
    "AutoAttack": "it needs the package multiprocess, which ART does not bring along; name its "
    "members as attacks of their own, or use pyautoattack:standard",
    "DecisionTreeAttack": "it attacks decision trees",
    "GeoDA": "it calls np.mat, which NumPy 2 no longer has",
    "HighConfidenceLowUncertainty": "it attacks Gaussian processes",
    "LowProFool": "it attacks tables, and weighs their columns by a whole data set",
    "ThresholdAttack": "it needs the package cma, which ART does not bring along",
}  # fmt: skip


def _class(name: str) -> Any:
    """Return the class of an attack."""
    return getattr(optional.import_library("art.attacks.evasion"), name)


# ------------------------------------------------------------------------------------------ params

VICTIM = ("estimator", "classifier")
"""What the constructors call the model."""
DROPPED = {
    *VICTIM, "self", "eps", "norm", "targeted", "batch_size", "verbose", "summary_writer",
    "adv_criterion", "loss", "mask", "th", "es",
}  # fmt: skip
CRITERION = Literal["cross_entropy", "difference_logits_ratio"]
STARTS = Annotated[int, Ge(0)]
KINDS: dict[str, Any] = {
    "eps_step": Alpha,
    "num_random_init": STARTS,
    "decay": float | None,
    "loss_type": CRITERION | None,
    "decision_rule": Literal["EN", "L1", "L2"],
    "attack": Literal["px", "dct"],
    "order": Literal["random", "diag"],
}


def _signature(name: str) -> dict[str, Any]:
    """Return the parameters of a class and their defaults."""
    parameters = inspect.signature(_class(name).__init__).parameters.values()
    return {p.name: p.default for p in parameters}


def _settings(name: str) -> dict[str, Any]:
    """Return the parameters that a suite may set."""
    return {key: default for key, default in _signature(name).items() if key not in DROPPED}


def _params(name: str) -> type:
    """Build the params dataclass of a class."""
    settings = [
        optional.Setting(key, KINDS.get(key, optional.infer_type(default)), default)
        for key, default in _settings(name).items()
    ]
    if name in STARTED:
        settings += [
            optional.Setting("start", Start, "library", added=True),
            optional.Setting("batch_size", Count | None, None, added=True),
        ]
    return optional.make_params(name, __name__, settings)


def __getattr__(name: str) -> type:
    """Find `DeepFoolParams` and the like, so that params can be unpickled in a worker process."""
    attack = name.removesuffix("Params")
    if name.endswith("Params") and attack in TABLE and not optional.missing_reason(LIBRARY):
        return adapt(attack).params
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


# ----------------------------------------------------------------------------------------- running

ORDER: dict[Norm, float] = {"linf": math.inf, "l2": 2, "l1": 1}


class _Classifier(nn.Module):
    """The model in float32, as some attacks of ART compute in float64."""

    def __init__(self, model: nn.Module, probabilities: bool) -> None:
        super().__init__()
        self.model, self.probabilities = model, probabilities

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x.float())
        return logits.softmax(1) if self.probabilities else logits


def _classifier(model: nn.Module, x: Tensor, classes: int, probabilities: bool) -> Any:
    """Wrap the model as ART's classifier."""
    return optional.import_library("art.estimators.classification").PyTorchClassifier(
        model=_Classifier(model, probabilities),
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(x.shape[1:]),
        nb_classes=classes,
        clip_values=(0.0, 1.0),
        device_type="gpu" if x.is_cuda else "cpu",
    )


def _arguments(name: str, threat: Threat, params: Any, rows: int) -> dict[str, Any]:
    """Return the arguments of the class's `__init__` beside the classifier."""
    given = {key: getattr(params, key) for key in _settings(name)}
    if "eps_step" in given:
        steps = getattr(params, "max_iter", 1)
        given["eps_step"] = step_size(params.eps_step, threat.eps, steps)
    known = {
        "eps": threat.eps,
        "norm": ORDER.get(threat.norm),
        "targeted": threat.goal == "targeted",
        "batch_size": getattr(params, "batch_size", None)
        or (1 if TABLE[name].one_by_one else rows),
        "verbose": False,
    }
    return given | {key: known[key] for key in known if key in _signature(name)}


def _seeded(noise: Noise) -> AbstractContextManager[object]:
    """Seed the generators that the library creates without a seed, each from `noise`."""
    count, first = itertools.count(), int(noise.examples[0])

    def generator(seed: int | None = None) -> Any:
        own = fold(noise.seed, first, next(count)) % 2**32
        return original(own if seed is None else seed)

    original = np.random.RandomState  # noqa: TID251 (what ART calls; nothing is drawn here)
    return mock.patch.object(np.random, "RandomState", generator)  # noqa: TID251


def _run(
    name: str, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, params: Any, noise: Noise
) -> Tensor:
    """Run the library on a batch.

    Shapes: x (n, c, h, w) in [0, 1]; y (n,), labels or target classes; the result as `x`. The
    library draws from the global generators, which the harness has seeded.
    """
    with torch.no_grad():
        classes = model(x[:1]).shape[1]
    # One column per class: the one form that all of ART's attacks take.
    labels = nn.functional.one_hot(y.long(), classes).float().cpu().numpy()
    aims = None if name in AIMS and threat.goal == "untargeted" else labels
    with contextlib.ExitStack() as inside:
        inside.enter_context(optional.silence(LIBRARY))
        if x.is_cuda:  # ART uses the current GPU, not that of the model
            inside.enter_context(torch.cuda.device(x.device))
        if TABLE[name].own_generator:
            inside.enter_context(_seeded(noise))
        victim = next(key for key in VICTIM if key in _signature(name))
        classifier = _classifier(model, x, classes, TABLE[name].probabilities)
        given = {victim: classifier, **_arguments(name, threat, params, len(x))}
        attack, own = _class(name)(**given), getattr(params, "start", "library") == "library"
        start, begun = (x, x.new_ones(len(x), dtype=torch.bool))
        if not own:
            start, begun = find_start(model, x, y, threat.goal, noise)
        x_adv = x.clone()
        if begun.any():
            # Copied, or ART would write into the harness's memory.
            few, starts = (each[begun].cpu().numpy().copy() for each in (x, start))
            goals = None if aims is None else aims[begun.cpu().numpy()]
            more = {} if own else {"x_adv_init": starts}
            x_adv[begun] = torch.from_numpy(attack.generate(x=few, y=goals, **more)).to(x)
        return x_adv


# ----------------------------------------------------------------------------------- what it means

ASCENTS = ("FastGradientMethod", "BasicIterativeMethod", "ProjectedGradientDescent",
           "ProjectedGradientDescentNumpy", "ProjectedGradientDescentPyTorch",
           "MomentumIterativeMethod")  # fmt: skip
"""Attacks that step along a gradient and project, as bench's own do."""
STARTED = ("BoundaryAttack", "HopSkipJump")
"""Attacks that start at an adversarial image."""
AIMS = ("SaliencyMapMethod",)
"""Targeted attacks, which draw a target if none is given."""
CLAMPED: dict[Norm, str] = {
    "linf": PROJECTION["linf"],
    "l2": "box, then ball",
    "l1": "box, then scaled into the ball",
}


def _alpha(name: str, params: Any, eps: float) -> float:
    """Return the length of a step; the one-step attack uses `eps_step` for a search over eps."""
    if name == "FastGradientMethod":
        return eps
    return step_size(params.eps_step, eps, params.max_iter)


def _traits(name: str, params: Any, norm: Norm, eps: float) -> Mapping[str, str]:
    """Describe the attack for cross-checks, with the keys that apply to this class."""
    if name not in ASCENTS:
        return {"steps": str(params.max_iter)} if hasattr(params, "max_iter") else {}
    starts = getattr(params, "num_random_init", 0)
    traits = {
        "loss": "cross-entropy",
        "start": "uniform in the ball" if starts else "clean",
        "stop": "never",
        "restarts": str(max(1, starts)),
        "steps": str(getattr(params, "max_iter", 1)),
        "alpha": f"{_alpha(name, params, eps):.6g}",
        "projection": CLAMPED[norm],
    }
    if getattr(params, "decay", None) is not None:
        traits["momentum"] = f"mu={params.decay:g}, gradient over its l1 norm"
    return traits


CAVEATS: dict[str, tuple[str, ...]] = {
    "SaliencyMapMethod": ("Untargeted means towards one random wrong class, and no other.",),
    "DeepFool": ("Leaves the class that the model predicts, whatever the label.",),
    "NewtonFool": ("Leaves the class that the model predicts, whatever the label.",),
    "VirtualAdversarialMethod": ("Leaves the model's clean output, whatever the label.",),
}


def _caveats(name: str, params: Any, norm: Norm, eps: float) -> Sequence[str]:
    """Return the sentences that qualify the result of this class."""
    caveats = [*CAVEATS.get(name, ())]
    if name in ASCENTS:
        caveats += reach_caveats(_alpha(name, params, eps), getattr(params, "max_iter", 1), eps)
    if name in ASCENTS and norm == "l1":
        caveats.append("Its l1 step moves one entry alone, which the box stops at a change of 1.")
    if TABLE[name].probabilities:
        caveats.append("Reads probabilities, as it demands: a softmax of the model's logits.")
    if TABLE[name].or_clean:
        caveats.append("Images that it cannot fool come back clean.")
    return caveats


def list_names() -> list[str]:
    """List the attacks that can be used here.

    Returns:
        Their names in the library.
    """
    return sorted(TABLE)


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
    optional.check_name(LIBRARY, name, TABLE, REFUSED)
    row, takes = TABLE[name], _signature(name)
    aims = ("targeted" in takes and not row.away_only) or name in AIMS
    goals: tuple[Goal, ...] = ("untargeted", "targeted") if aims else ("untargeted",)
    draws = row.draws or "num_random_init" in takes
    return ExternalAttack(
        summary=row.summary,
        source=f"{DISTRIBUTION} {importlib.metadata.version(DISTRIBUTION)}, {row.paper}",
        params=_params(name),
        norms=row.norms,
        goals=goals,
        needs=row.needs,
        stochastic=draws,
        budget="fixed" if "eps" in takes else "minimum",
        implementation=LIBRARY,
        distribution=DISTRIBUTION,
        batch_dependent=draws or row.by_batch,
        run=partial(_run, name),
        traits=partial(_traits, name),
        caveats=partial(_caveats, name),
    )
