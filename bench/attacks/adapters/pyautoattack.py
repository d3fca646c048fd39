"""AutoAttack by its authors' code, packaged, all of it or one part: `pyautoattack:standard`.

A name is a version of the ensemble (standard, plus, rand) or one of its parts (apgd-ce, apgd-dlr,
apgd-t, fab, fab-t, square); a part is run as the authors run it, on what the model still gets
right. Parameters carry the names of the authors' attributes, and their values in that version are
the defaults. It checks each batch for randomness and probabilities first, some seven passes that
are counted.

Source: Croce and Hein 2020, https://arxiv.org/abs/2003.01690
Differs from the library: a seed that is not set comes from the suite (its own is the time of day);
`n_target_classes` is at most the model's classes less one; its log is disabled.
"""

import contextlib
import importlib.metadata
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from bench.core import optional
from bench.core.contracts.attack import Attack, ExternalAttack
from bench.core.contracts.parameters import Count
from bench.core.contracts.types import Norm, Threat
from bench.core.rng import Noise

LIBRARY = "pyautoattack"
NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")


class Row(NamedTuple):
    """Facts about an attack that the library's code does not state."""

    summary: str
    holder: str
    """The attribute of the ensemble that holds the attack; "" for a version, which has several."""
    knobs: tuple[str, ...]
    """Names of its attributes that a suite may set."""
    needs: Literal["gradient", "scores"] = "gradient"
    min_classes: int = 2
    loss: str = ""


APGD = ("n_iter", "n_restarts", "eot_iter")
FAB = ("n_iter", "n_restarts", "alpha_max", "eta", "beta")
BOUNDARY, DLR = "distance to the boundary", "dlr"
HOLDERS = ("apgd", "apgd_targeted", "fab", "square")

# fmt: off
TABLE = {
    "standard": Row("APGD-CE, APGD-T, FAB-T and Square in turn", "",
                    ("n_iter", "n_queries", "n_target_classes"), min_classes=4),
    "plus": Row("APGD-CE, APGD-DLR, FAB, Square, APGD-T and FAB-T in turn", "",
                ("n_iter", "n_queries", "n_target_classes"), min_classes=4),
    "rand": Row("APGD-CE and APGD-DLR, gradients averaged over 20 looks", "",
                ("n_iter", "eot_iter"), min_classes=3),
    "apgd-ce": Row("PGD with step sizes that adapt", "apgd", APGD, loss="cross-entropy"),
    "apgd-dlr": Row("APGD on the DLR loss", "apgd", APGD, min_classes=3, loss=DLR),
    "apgd-t": Row("APGD towards each of the likeliest wrong classes", "apgd_targeted",
                  (*APGD, "n_target_classes"), min_classes=4, loss="targeted dlr"),
    "fab": Row("nearest point of the linearised boundary", "fab", FAB, loss=BOUNDARY),
    "fab-t": Row("FAB towards each of the likeliest wrong classes", "fab",
                 (*FAB, "n_target_classes"), loss=BOUNDARY),
    "square": Row("random search with squares", "square", ("n_queries", "n_restarts", "p_init"),
                  "scores", loss="margin to the largest other logit"),
}
# fmt: on

REFUSED = {
    "custom": "it names no attacks; name the parts as attacks of their own and read the worst case "
    "over them",
}
SET_BY_NORM = ("n_target_classes",)
"""Attributes that a version sets otherwise for l1; None leaves them to it."""


def _ensemble(name: str, model: nn.Module, **settings: Any) -> Any:
    """Create the library's object with the values of that version or part."""
    library = optional.import_library(LIBRARY)
    if TABLE[name].holder:
        ensemble = library.AutoAttack(model, version="standard", **settings)
        ensemble.version, ensemble.attacks_to_run = "custom", [name]
        return ensemble
    return library.AutoAttack(model, version=name, **settings)


def _holders(name: str, ensemble: Any, knob: str) -> list[Any]:
    """Return the attacks of the ensemble that have an attribute `knob`."""
    own = TABLE[name].holder
    held = [getattr(ensemble, holder) for holder in ([own] if own else HOLDERS)]
    return [attack for attack in held if hasattr(attack, knob)]


def _settings(name: str) -> Iterator[optional.Setting]:
    """Yield the parameters that a suite may set, with the library's defaults."""
    fresh = _ensemble(name, nn.Identity())
    yield optional.Setting("seed", int | None, None)
    for knob in TABLE[name].knobs:
        value = getattr(_holders(name, fresh, knob)[0], knob)
        if knob in SET_BY_NORM:
            yield optional.Setting(knob, Count | None, None)
        else:
            yield optional.Setting(knob, optional.infer_type(value), value)


def __getattr__(name: str) -> type:
    """Find `squareParams` and the like, so that params can be unpickled in a worker process."""
    attack = name.removesuffix("Params").replace("_", "-")
    if name.endswith("Params") and attack in TABLE and not optional.missing_reason(LIBRARY):
        return adapt(attack).params
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


# ----------------------------------------------------------------------------------------- running


@contextlib.contextmanager
def _silence_log() -> Iterator[None]:
    """Disable the library's log; restore the interpreter's trace function.

    The library removes the trace function when it looks for gradients inside the model.
    """
    log, tracer = logging.getLogger("auto-attack"), sys.gettrace()
    before = log.disabled
    log.disabled = True
    try:
        yield
    finally:
        log.disabled = before
        sys.settrace(tracer)


def _run(
    name: str, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, params: Any, noise: Noise
) -> Tensor:
    """Run the library on a batch; an image that it cannot fool is returned unchanged.

    Shapes: x (n, c, h, w) in [0, 1]; y (n,), the labels; the result as `x`.
    """
    with optional.silence(LIBRARY), _silence_log():
        ensemble = _ensemble(
            name,
            model,
            norm=threat.norm.capitalize(),
            eps=threat.eps,
            device=x.device,
            seed=noise.seed if params.seed is None else params.seed,
        )
        for knob in TABLE[name].knobs:
            value = getattr(params, knob)
            for attack in _holders(name, ensemble, knob) if value is not None else ():
                setattr(attack, knob, value)
        most = _classes(model, x) - 1
        for attack in (ensemble.apgd_targeted, ensemble.fab):
            attack.n_target_classes = min(attack.n_target_classes, most)
        x_adv, _ = ensemble.run_standard_evaluation(x, y.long(), batch_size=len(x))
        images: Tensor = x_adv.detach().to(x)
        return images


def _classes(model: nn.Module, x: Tensor) -> int:
    """Return the number of classes of the model."""
    return int(model(x[:1]).shape[1])


# ----------------------------------------------------------------------------------- what it means

STARTS = {"apgd": "random, scaled onto the ball's surface", "square": "stripes"}


def _traits(name: str, params: Any, norm: Norm, eps: float) -> Mapping[str, str]:
    """Describe the attack for cross-checks, with the keys that apply to it."""
    row = TABLE[name]
    traits = {"stop": "first-success", "loss": row.loss or "those of its parts"}
    steps = getattr(params, "n_iter", None) or getattr(params, "n_queries", None)
    traits["steps"] = str(steps)
    if row.holder:
        traits["restarts"] = str(params.n_restarts)
    start = STARTS.get(row.holder.removesuffix("_targeted"))
    return traits | ({"start": start} if start else {})


def _caveats(name: str, params: Any, norm: Norm, eps: float) -> Sequence[str]:
    """Return the sentences that qualify the result of this attack."""
    caveats = ["Images that it cannot fool come back clean."]
    fresh = _ensemble(name, nn.Identity(), norm=norm.capitalize())
    weaker = [
        knob
        for knob in ("n_iter", "n_queries")
        if knob in TABLE[name].knobs
        and getattr(params, knob) < getattr(_holders(name, fresh, knob)[0], knob)
    ]
    if weaker:
        least = ", ".join(f"{knob} = {getattr(params, knob)}" for knob in weaker)
        caveats.append(f"Fewer looks than the authors prescribe: {least}.")
    return caveats


def list_names() -> list[str]:
    """List the attacks that can be used here.

    Returns:
        Their names in the library.
    """
    return sorted(TABLE)


def adapt(name: str) -> Attack:
    """Return a version or part of the library's ensemble as an attack.

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
    row = TABLE[name]
    return ExternalAttack(
        summary=row.summary,
        source=f"{LIBRARY} {importlib.metadata.version(LIBRARY)}, Croce and Hein 2020",
        params=optional.make_params(name.replace("-", "_"), __name__, [*_settings(name)]),
        norms=NORMS,
        goals=("untargeted",),
        needs=row.needs,
        stochastic=True,
        min_classes=row.min_classes,
        implementation=LIBRARY,
        batch_dependent=True,
        run=partial(_run, name),
        traits=partial(_traits, name),
        caveats=partial(_caveats, name),
    )
