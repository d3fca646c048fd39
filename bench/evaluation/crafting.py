"""Run an attack on examples and collect what it returns and what it cost; nothing is verified here.

An attack that is a rule is driven by the engine, on an accelerated model where there is one; an
external attack runs its own loop, batch by batch, on a copy of the model (`containment`). Whether
the images keep the threat model and fool the judged model is decided in `verify`.
"""

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.core import rng
from bench.core.contracts.attack import AttackSpec, ExternalAttack, IterativeAttack
from bench.core.contracts.threat import TransformedBatch
from bench.core.contracts.types import BALLS, Threat
from bench.core.errors import ContractError
from bench.engine import stream, timing
from bench.engine.float32_precision import allow_tf32
from bench.engine.functional import norms
from bench.engine.functional.norms import ABSOLUTE, RELATIVE
from bench.engine.model_state import eval_mode
from bench.engine.rejection import select_classifier, spares_rejected
from bench.engine.step_evaluator import AccelerationError
from bench.engine.stream_result import StreamResult
from bench.evaluation import containment
from bench.evaluation.containment import StateGuard
from bench.evaluation.external_progress import ExternalProgress
from bench.evaluation.queries import QueryObserver, counts_queries, observe_queries
from bench.evaluation.victim import CountedVictim


class Examples(NamedTuple):
    """A chunk of examples with their clean predictions; every field has the axis n."""

    id: Tensor
    """Position in the data set, int64."""
    x: Tensor
    """Images (n, c, h, w) in [0, 1]."""
    label: Tensor
    target: Tensor
    """Class to reach, -1 where the attack is untargeted."""
    clean_pred: Tensor
    clean_confidence: Tensor
    clean_agreement: Tensor


class AttackOutput(NamedTuple):
    """What an attack returned at e eps for n examples and what it cost; not verified."""

    x_adv: Tensor
    """(e, n, *input)"""
    forwards: Tensor
    """Forward passes of each example, (e, n), float64, as in `StreamResult`."""
    backwards: Tensor
    """Backward passes, likewise."""
    first_success: Tensor
    """Steps before the first iterate that was seen to be a success, (e, n); -1 if none was."""
    seconds: list[float]
    """For each eps."""
    losses: Tensor | None = None
    """As in `StreamResult`; None unless traced."""
    rows: int = 0
    """Rows per pass at the end: fewer than asked for where memory ran out."""
    part: Tensor | None = None
    """(e, n): which part of an ensemble returned the image, -1 where none succeeded."""
    distance: Tensor | None = None
    """(n,): distance of the example that a single search found for all eps, as verified; infinite
    where it found none. None before verification, and of attacks without such a search."""
    dropped: str = ""
    """Why the accelerated model was dropped and the model itself attacked; empty if it was not."""
    nonfinite: Tensor | None = None
    """Gradients with entries that are not finite, (e, n), as in `StreamResult`; None of an
    external attack."""
    queries: Tensor | None = None
    """Queries of the model until each example was first seen to fall, (e, n), float64; infinite if
    it was not, NaN where unknown. None of an ensemble."""
    nearest: Tensor | None = None
    """Least distance of a search within each of the spec's b budgets, (n, b), NaN where unknown."""
    parameters: Tensor | None = None
    """What the images of a family were made with, (e, n, parameters), float64; None in a norm."""
    victim_queries: Tensor | None = None
    """Queries of the victim for each example, (e, n), int64; None of an attack without any."""
    victim_seconds: list[float] | None = None
    """Time of the victim's passes at each eps, which is part of `seconds`."""


def craft(
    model: nn.Module,
    spec: AttackSpec,
    chosen: Examples,
    rows: int,
    accelerated: nn.Module | None = None,
    victim: CountedVictim | None = None,
) -> AttackOutput:
    """Attack every example at every eps of the spec.

    Where the accelerated model raises, the model itself is attacked; what was spent until then is
    not counted. An external attack gets a model that is isolated from the judged one, and changes
    that foreign code makes to the process or to its model are undone.

    Args:
        model: The attacked model, in evaluation mode, parameters frozen.
        spec: A rule or an external attack with its params, eps and threat model; no ensemble.
        chosen: Examples to attack, n > 0.
        rows: Most rows per pass.
        accelerated: Stands in for the model's gradients under a rule.
        victim: Answers the `victim_queries` of the spec; None if it has none.

    Returns:
        Images, costs and claims for e eps and n examples.

    Raises:
        ContractError: An external attack returned no image, or foreign code left the process or
            its model changed.
    """
    y = chosen.label if spec.goal == "untargeted" else chosen.target
    if isinstance(spec.attack, ExternalAttack):
        blind = spares_rejected(model) and not spec.attack.spares_rejected
        given = select_classifier(model) if blind else model
        with (
            allow_tf32(False),
            containment.isolate_model(given, chosen.x, spec.random) as guard,
        ):
            return _run_external(guard, spec, chosen, y, rows, blind)
    once = is_single_search(spec)
    searched = spec
    if once:
        counted = counts_queries(spec)
        radii = tuple(map(allowed_distance, spec.eps)) if counted else ()
        budgets = spec.budgets if counted else ()
        searched = replace(spec, eps=(torch.inf,), radii=radii, budgets=budgets)
    try:
        with (
            allow_tf32(spec.precision == "tf32"),
            _seed_random_model(spec, chosen.id),
            _guard_process(spec),
        ):
            result, seconds = timing.time_call(
                lambda: stream.run_attack(
                    model,
                    searched,
                    chosen.x,
                    y,
                    chosen.id,
                    rows,
                    chosen.label,
                    accelerated,
                    None if victim is None else victim.ask,
                ),
                chosen.x.device,
            )
    except AccelerationError as error:
        output = craft(model, replace(spec, precision="float32"), chosen, rows, victim=victim)
        return output._replace(dropped=str(error))
    if once:
        return _expand_search(_to_output(result, [seconds]), spec, chosen.x)
    # One stream serves all eps: its time is divided by the passes that each eps took.
    weight = (result.forwards + 2 * result.backwards).sum(1)
    fractions = (weight / weight.sum()).tolist()
    if victim is None:
        return _to_output(result, [seconds * fraction for fraction in fractions])
    asked = victim.divide_seconds()
    own = seconds - victim.seconds
    spent = [own * fraction + more for fraction, more in zip(fractions, asked, strict=True)]
    return _to_output(result, spent)._replace(victim_queries=victim.queries, victim_seconds=asked)


def is_single_search(spec: AttackSpec) -> bool:
    """Check whether one search for the minimum distance serves all eps.

    Args:
        spec: The attack as planned.

    Returns:
        True for a minimum-norm attack that does not stop at its first success within an eps.
    """
    external = isinstance(spec.attack, ExternalAttack)
    return spec.attack.budget == "minimum" and (external or spec.stop == "never")


def final_images(spec: AttackSpec, eps: float, x: Tensor, output: AttackOutput, at: int) -> Tensor:
    """Select the images that an attack returned at one eps.

    Args:
        spec: The attack as run.
        eps: The radius.
        x: Clean images (n, c, h, w).
        output: What the attack returned.
        at: Index of the eps in `output`.

    Returns:
        Images (n, c, h, w). A minimum-norm search that ended outside the ball found nothing, so
        its image is x.
    """
    x_adv = output.x_adv[at]
    if spec.attack.budget != "minimum":
        return x_adv
    near = norms.distance_float64(x_adv, x, spec.norm) <= allowed_distance(eps)
    keep = near | ~x_adv.flatten(1).isfinite().all(1)
    return torch.where(norms.per_row(keep, x), x_adv, x)


def allowed_distance(eps: float) -> float:
    """Compute the largest distance that still counts as within eps, rounding included.

    Args:
        eps: The radius.

    Returns:
        The radius with the absolute and relative tolerance of `norms`.
    """
    return eps + ABSOLUTE + RELATIVE * eps


def _guard_process(spec: AttackSpec) -> AbstractContextManager[None]:
    """Undo what foreign code of a rule or an adaptation changes; bench's rules change nothing."""
    if spec.adaptation is not None:
        return containment.StateGuard().restore_after()
    rule = spec.attack.rule if isinstance(spec.attack, IterativeAttack) else None
    steps = [] if rule is None else [rule.init, rule.step or rule.respond]
    if all(str(getattr(step, "__module__", "")).startswith("bench.") for step in steps):
        return contextlib.nullcontext()
    return containment.StateGuard().restore_after()


def _seed_random_model(spec: AttackSpec, ids: Tensor) -> AbstractContextManager[None]:
    """Seed what a model that answers at random draws while it is attacked."""
    if not spec.random:
        return contextlib.nullcontext()
    return rng.seed_global(spec.seed, "passes", spec.name, int(ids[0]))


def _to_output(result: StreamResult, seconds: list[float]) -> AttackOutput:
    return AttackOutput(
        result.x_adv,
        result.forwards,
        result.backwards,
        result.first_success,
        seconds,
        result.losses,
        result.rows,
        nonfinite=result.nonfinite,
        queries=result.queries,
        nearest=result.nearest,
    )


def _expand_search(output: AttackOutput, spec: AttackSpec, x: Tensor) -> AttackOutput:
    """Repeat the result of a single search for each eps and divide its cost evenly."""
    e, distance = len(spec.eps), norms.distance_float64(output.x_adv[0], x, spec.norm)
    assert output.queries is not None
    outside = torch.stack([distance > allowed_distance(eps) for eps in spec.eps])
    return output._replace(
        x_adv=output.x_adv.expand(e, *output.x_adv.shape[1:]),
        forwards=output.forwards.expand(e, -1) / e,
        backwards=output.backwards.expand(e, -1) / e,
        first_success=output.first_success.expand(e, -1).masked_fill(outside, -1),
        seconds=[output.seconds[0] / e] * e,
        nonfinite=None if output.nonfinite is None else output.nonfinite.expand(e, -1),
        queries=output.queries.expand(e, -1),
    )


class _BatchOutput(NamedTuple):
    """What an external attack returned for a batch of n examples at one eps, and what it cost."""

    x_adv: Tensor
    forwards: Tensor
    """Share of each example in the passes of the batch, (n,), float64."""
    backwards: Tensor
    seconds: float
    fell: Tensor
    """Queries until an example was first seen to fall within each of r radii, (n, r)."""
    nearest: Tensor
    """Least distance of a query within each of b budgets, (n, b)."""
    parameters: Tensor | None
    """(n, parameters); None in a norm."""


def _run_external(
    guard: StateGuard, spec: AttackSpec, chosen: Examples, y: Tensor, rows: int, blind: bool
) -> AttackOutput:
    """Run an external attack batch by batch; a minimum-norm attack once for all eps.

    What a query told an attack that is `blind` to a detector is no verdict of the model's, so that
    it is unknown when its examples fell.
    """
    once = is_single_search(spec)
    progress = ExternalProgress(spec, len(y) * (1 if once else len(spec.eps)))
    observes = counts_queries(spec) and not blind
    at_eps: list[list[_BatchOutput]] = []
    for eps in [max(spec.eps)] if once else spec.eps:
        radii = tuple(map(allowed_distance, spec.eps if once else [eps]))
        threat = Threat(norm=spec.norm, eps=eps, goal=spec.goal)
        at_eps.append(
            [
                _run_batch(guard, spec, threat, radii, chosen, y, at, progress, observes)
                for at in torch.arange(len(y), device=y.device).split(rows)
            ]
        )
    x_adv = torch.stack([torch.cat([each.x_adv for each in batches]) for batches in at_eps])
    output = AttackOutput(
        x_adv,
        torch.stack([torch.cat([each.forwards for each in batches]) for batches in at_eps]),
        torch.stack([torch.cat([each.backwards for each in batches]) for batches in at_eps]),
        torch.full(x_adv.shape[:2], -1, device=y.device),
        [sum(each.seconds for each in batches) for batches in at_eps],
        rows=rows,
        queries=torch.cat([torch.cat([each.fell for each in batches]).T for batches in at_eps]),
        nearest=torch.cat([each.nearest for each in at_eps[0]]),
    )
    if spec.norm not in BALLS:
        made_with = [
            torch.cat([each.parameters for each in batches if each.parameters is not None])
            for batches in at_eps
        ]
        output = output._replace(parameters=torch.stack(made_with))
    return _expand_search(output, spec, chosen.x) if once else output


def _run_batch(
    guard: StateGuard,
    spec: AttackSpec,
    threat: Threat,
    radii: Sequence[float],
    chosen: Examples,
    y: Tensor,
    at: Tensor,
    progress: ExternalProgress,
    observes: bool,
) -> _BatchOutput:
    """Run an external attack on the examples `at` (n,); their queries are known of one alone."""
    assert isinstance(spec.attack, ExternalAttack)
    run, model, n = spec.attack.run, guard.model, len(at)
    assert model is not None
    noise = rng.Noise(spec.seed, spec.name, chosen.id[at], torch.zeros_like(at))
    first = int(chosen.id[at[0]])
    observer = QueryObserver(
        chosen.x[at[:1]], y[at[:1]], spec.goal, spec.norm, radii, spec.budgets,
        spares_rejected(model),
    )  # fmt: skip
    observed = n == 1 and observes
    with (
        eval_mode(model),
        rng.seed_global(spec.seed, spec.name, first, n),
        guard.restore_after(),
        timing.count_passes(model, progress.begin_batch(n)) as passes,
        observe_queries(model, observer) if observed else contextlib.nullcontext(),
    ):
        x, labels = chosen.x[at].clone(), y[at].clone()
        returned, seconds = timing.time_call(
            lambda: run(model, x, labels, threat, spec.params, noise), chosen.x.device
        )
    parameters = None
    if spec.norm not in BALLS:
        returned, parameters = _split_transformed(returned, n)
    known = observed or not passes.forwards  # an attack that asks nothing needs no observer
    return _BatchOutput(
        x_adv=_check_returned(returned, chosen.x[at]),
        forwards=torch.full((n,), passes.forwards / n, dtype=torch.float64),
        backwards=torch.full((n,), passes.backwards / n, dtype=torch.float64),
        seconds=seconds,
        fell=_spread(observer.fell if known else [torch.nan] * len(radii), n),
        nearest=_spread(observer.nearest if known else [torch.nan] * len(spec.budgets), n),
        parameters=parameters,
    )


def _spread(values: Sequence[float], n: int) -> Tensor:
    """Repeat the values of one example for n examples, (n, values), float64."""
    return torch.tensor(values, dtype=torch.float64).expand(n, -1)


def _split_transformed(returned: object, n: int) -> tuple[object, Tensor]:
    """Return images and parameters of an attack on a family; raise ContractError otherwise."""
    if not isinstance(returned, TransformedBatch):
        raise ContractError(
            "expected the attack to return a TransformedBatch (images and the parameters that they "
            f"were made with), got {type(returned).__name__}"
        )
    parameters = returned.parameters
    if not isinstance(parameters, Tensor) or parameters.ndim != 2 or len(parameters) != n:
        got = tuple(parameters.shape) if isinstance(parameters, Tensor) else type(parameters)
        raise ContractError(f"expected parameters of {n} images, ({n}, parameters), got {got}")
    return returned.x_adv, parameters.detach().double().cpu().clone()


def _check_returned(x_adv: object, x: Tensor) -> Tensor:
    """Copy `x_adv` if it is a tensor of x's shape and dtype; raise ContractError otherwise."""
    if not isinstance(x_adv, Tensor):
        raise ContractError(f"expected the attack to return a tensor, got {type(x_adv).__name__}")
    if x_adv.shape != x.shape or x_adv.dtype != x.dtype:
        raise ContractError(
            f"expected the attack to return {tuple(x.shape)} {x.dtype}, "
            f"got {tuple(x_adv.shape)} {x_adv.dtype}"
        )
    return x_adv.detach().to(x.device, copy=True)  # the attack may write into its tensor again
