"""Check a model before it is attacked.

A finding has a name (`bench.models.preflight.findings`) and a sentence. A finding that would make
all results wrong stops the run unless the suite allows it by name; the others go into the report.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.core import rng
from bench.core.contracts.dataset import Data
from bench.core.contracts.types import Access
from bench.core.errors import SuiteError, describe, first_line, nearest, own_location
from bench.engine.functional.gradients import gradient_pass
from bench.engine.functional.logits import is_tied, predict_class, probabilities, widen
from bench.engine.functional.losses import make_objective
from bench.engine.model_state import (
    InputCloningModel,
    InputWriteError,
    call_model,
    eval_mode,
    find_input_writer,
)
from bench.engine.opaque_model import OpaqueModel
from bench.models import fingerprint
from bench.models.preflight.findings import FINDINGS, Finding
from bench.models.preflight.preprocessing import find_wrong_preprocessing
from bench.models.preprocessing import Preprocessed
from bench.models.query_only import QueryOnlyModel

N_IMAGES = 16
"""Images that the model is checked on."""
RANDOM, BATCH = 1e-3, 1e-2
"""Largest difference of logits, as a share of the largest: repeated, and without a batch."""
FLAT_SCALE = 1e-3
"""Smallest excess of the largest probability over 1 / classes, as a share of 1 / classes."""


class ModelCallError(SuiteError):
    """A model raised when it was first asked."""


class ModelOutputError(SuiteError):
    """A model's answer is no logits (n, classes)."""

    def __init__(self, problem: str, answer: Any) -> None:
        super().__init__(problem)
        self.answer = answer


class LoadedModel(NamedTuple):
    """A model that passed preflight: on its device, in evaluation mode."""

    label: str
    model: nn.Module
    classes: int
    fingerprint: str
    findings: tuple[str, ...]
    """Sentences about the model that a reader of its numbers must know."""
    predictions: int = 1
    """Predictions that vote on one verdict."""
    random: bool = False
    """Whether its answers are random: observed, or implied by several predictions."""
    access: Access = "gradient"
    """What it exposes."""
    logits: Tensor | None = None
    """Logits of the first images, on the CPU; None if the answers are random."""
    sketch: str = ""
    """The same, coarse enough to be part of an identity."""


def refuse_model(label: str, why: str) -> LoadedModel:
    """Return the placeholder of a model that failed to load; its cells are planned and fail.

    Args:
        label: Label of the model.
        why: Reason, without a full stop.

    Returns:
        A model without classes whose finding states the reason.
    """
    identity = hashlib.sha256(f"unfit {label}".encode()).hexdigest()
    sentence = f"model '{label}' could not be made ready, and all its cells are failed: {why}."
    return LoadedModel(label, nn.Identity(), 0, identity, (sentence,))


def preflight(
    label: str,
    model: nn.Module,
    data: Data,
    device: torch.device,
    predictions: int = 1,
    allow: Sequence[str] = (),
    about: Any = None,
) -> LoadedModel:
    """Check a model on the first images.

    Args:
        label: Label of the model.
        model: Maps images (n, c, h, w) in [0, 1] to logits (n, classes); on `device`.
        data: The data set.
        device: Device of the checks.
        predictions: Predictions that vote on one verdict.
        allow: Names of findings that do not stop the run.
        about: Plain values that belong to the model's fingerprint.

    Returns:
        The model with its fingerprint and findings.

    Raises:
        SuiteError: The outputs are no logits (n, classes), there are fewer classes than labels, or
            a finding stops the run.
    """
    where = f"model '{label}'"
    for name in allow:
        if name not in FINDINGS:
            problem = f"preflight finds nothing called '{name}' to allow"
            raise SuiteError(f"{where}: {problem}; {nearest(name, FINDINGS)}")
    if isinstance(model, torch.jit.ScriptModule):  # whose layers take no hooks
        model = OpaqueModel(model, fingerprint.describe_program(model))
    x = data.read(0, min(data.n, N_IMAGES)).to(device)
    try:
        return _check_model(label, model, model, data, x.clone(), predictions, allow, about)
    except InputWriteError:
        with eval_mode(model), rng.seed_global("preflight"):
            who = find_input_writer(model, x)
        return _check_model(
            label,
            model,
            InputCloningModel(model),
            data,
            x,
            predictions,
            allow,
            about,
            [_input_write_finding(where, who)],
        )


def _input_write_finding(where: str, who: str) -> Finding:
    return Finding(
        "writes-to-input",
        f"{where} writes into the images that it is given ({who}): it is shown a copy of them each "
        "time, which changes no number; let it compute out of place (inplace=False).",
    )


def _check_model(
    label: str,
    net: nn.Module,
    model: nn.Module,
    data: Data,
    x: Tensor,
    predictions: int,
    allow: Sequence[str],
    about: Any = None,
    known: Sequence[Finding] = (),
) -> LoadedModel:
    """Check a model as `preflight` does.

    `model` is called in place of `net`, which it is or wraps; `known` are findings so far.

    Raises:
        WrittenError: The model writes into x.
    """
    where, clean = f"model '{label}'", x.clone()
    with eval_mode(model), rng.seed_global("preflight"):  # for reproducible findings
        training = [name for name, module in net.named_modules() if module.training]
        # Before the first call, since a forward may count its calls.
        digest = fingerprint.fingerprint(net, [about, training])
        logits = _compute_logits(where, model, data, x)
        _check_unwritten(x, clean)
        found = [*known, *_find_errors(where, model, logits)]
        refused = [each for each in found if each.refuses and each.name not in allow]
        if refused:
            raise SuiteError(refused[0].format_error())
        logits = widen(logits)
        random = _is_random(model, x, logits)
        found += _find_doubts(where, net, model, data, x, logits, random, predictions)
        _check_unwritten(x, clean)
        if "not-finite" not in [each.name for each in found]:
            found += find_wrong_preprocessing(where, model, data, x.device)
    findings = tuple(each.format_note(each.name in allow) for each in found)
    random = random or predictions > 1
    access: Access = "gradient"
    if isinstance(net, QueryOnlyModel):  # it is identified by its answers as well
        access = net.access
        classes = str(predict_class(logits).tolist())
        digest = hashlib.sha256(f"{digest} {classes}".encode()).hexdigest()
    return LoadedModel(
        label=label, model=model, classes=logits.shape[1], fingerprint=digest, findings=findings,
        predictions=predictions, random=random, access=access,
        logits=None if random else logits.detach().float().cpu(),
        sketch="" if random else fingerprint.sketch_logits(logits),
    )  # fmt: skip


def _check_unwritten(x: Tensor, clean: Tensor) -> None:
    """Raise WrittenError if x differs from its copy `clean`."""
    if not torch.equal(x, clean):
        raise InputWriteError("the model writes into the images that it is shown")


def _compute_logits(where: str, model: nn.Module, data: Data, x: Tensor) -> Tensor:
    """Return the logits of x; raise SuiteError if they have no usable shape."""
    try:
        with torch.no_grad():
            logits = call_model(model, x)
    except (KeyboardInterrupt, InputWriteError):
        raise
    except BaseException as error:  # foreign code may raise anything
        other = _not_float32(where, model)
        if other is not None:
            raise ModelCallError(other.format_error()) from error
        # A refusal of the shape, or a bug: torch and checks of shapes raise the former.
        refused = isinstance(error, RuntimeError | ValueError | AssertionError)
        raise ModelCallError(
            f"{where} does not take images {tuple(x.shape[1:])} of data {data.name}: "
            f"{first_line(error) if refused else describe(error)} ({own_location(error)})"
        ) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        problem = f"{where}: expected logits (n, classes) with n = {len(x)}, got {got}"
        raise ModelOutputError(problem, logits)
    classes = logits.shape[1]
    if classes < 2:
        raise ModelOutputError(f"{where}: expected at least 2 classes, got {classes}", logits)
    if data.labels is not None and int(data.labels.max()) >= classes:
        most, least = int(data.labels.max()), int(data.labels.min())
        shift = "; if the labels count from 1, subtract 1" if least and most == classes else ""
        raise SuiteError(
            f"{where} has {classes} classes, but data {data.name} has the label {most}{shift}"
        )
    return logits


def _not_float32(where: str, model: nn.Module) -> Finding | None:
    """Return a finding if parameters are not in float32."""
    kinds = [p.dtype for p in model.parameters() if p.is_floating_point()]
    other = [kind for kind in kinds if kind != torch.float32]
    if not other:
        return None
    seen = f"{len(other)} of {len(kinds)} in {str(other[0]).removeprefix('torch.')}"
    sentence = f"{where}: expected float32 parameters; convert it with model.float() ({seen})."
    return Finding("not-float32", sentence, refuses=True)


def _find_errors(where: str, model: nn.Module, logits: Tensor) -> Iterator[Finding]:
    """Yield findings that make all results of the model wrong."""
    other = _not_float32(where, model)
    if other is None and logits.dtype in (torch.float16, torch.bfloat16):
        kind = str(logits.dtype).removeprefix("torch.")
        sentence = f"{where}: expected float32 logits, got {kind}; let it compute without autocast."
        other = Finding("not-float32", sentence, refuses=True)
    if other is not None:
        yield other
    finite = logits.isfinite().all(1)
    if not finite.all():
        yield Finding(
            "not-finite",
            f"{where}: expected finite logits, got NaN or infinity on clean images "
            f"({int((~finite).sum())} of {len(logits)}); look for a division by zero, a logarithm "
            "of zero or damaged weights.",
            refuses=True,
        )
    if are_probabilities(logits):
        yield Finding(
            "probabilities",
            f"{where}: expected logits, got probabilities (each row is positive and sums to 1), "
            "which flatten the gradient; return the values before the softmax.",
            refuses=True,
        )


def are_probabilities(logits: Tensor) -> bool:
    """Return whether outputs are probabilities, as after a softmax.

    Args:
        logits: Outputs, (n, classes).

    Returns:
        True if all are at least 0 and each row sums to 1.
    """
    total = logits.sum(1)
    return bool((logits >= 0).all()) and torch.allclose(total, torch.ones_like(total), atol=1e-4)


def _is_random(model: nn.Module, x: Tensor, logits: Tensor) -> bool:
    """Return whether a second call has other results."""
    with torch.no_grad():
        again = call_model(model, x)
    return float((widen(again) - logits).abs().max()) > RANDOM * _scale(logits)


def _scale(logits: Tensor) -> float:
    return float(logits.abs().max())


def _find_doubts(
    where: str,
    net: nn.Module,
    model: nn.Module,
    data: Data,
    x: Tensor,
    logits: Tensor,
    random: bool,
    predictions: int,
) -> Iterator[Finding]:
    """Yield findings that make results of the model doubtful."""
    training = [name or "the model" for name, m in model.named_modules() if m.training]
    if training:
        yield Finding(
            "training-mode",
            f"{where} keeps {len(training)} modules in training mode when it is asked not to "
            f"(first: {training[0]}): let their `train` reach them, or say model.eval() in the "
            "factory and do not override it.",
        )
    if random and predictions == 1:
        yield Finding(
            "random",
            f"{where} answers the same images differently each time: its defence is random, "
            "and one prediction is not enough to judge an attack. Let `predictions` of the model "
            "vote, and let attacks average their gradients over `samples`.",
        )
    elif not random:
        yield from _find_batch_dependence(where, model, x, logits)
    if torch.allclose(logits.logsumexp(1), torch.zeros(len(x)).to(logits), atol=1e-4):
        yield Finding(
            "log-probabilities",
            f"{where} returns log-probabilities instead of logits: cross-entropy is the same, but "
            "losses on logits (DLR, CW) are not; return the values before log_softmax.",
        )
    yield from _find_close_logits(where, logits)
    if data.classes and len(data.classes) != logits.shape[1]:
        yield Finding(
            "classes",
            f"{where} has {logits.shape[1]} classes, data {data.name} has {len(data.classes)}: "
            "labels and outputs may mean different things; check their order, or cut the outputs.",
        )
    if isinstance(net, Preprocessed) and net.made_for not in (None, data.shape):
        yield Finding(
            "input-size",
            f"{where} was made for images {net.made_for} and is shown those of data {data.name}, "
            f"{data.shape}, as they are: its accuracy may suffer; choose a size among the data's "
            "params, or a model made for this one.",
        )
    if not isinstance(net, QueryOnlyModel):
        yield from _find_gradient_problems(where, model, x, logits, random)


def _find_close_logits(where: str, logits: Tensor) -> Iterator[Finding]:
    """Yield findings about tied and flat logits."""
    n, classes = logits.shape
    ties = int(is_tied(logits).sum())
    if ties:
        yield Finding(
            "ties",
            f"{where} gives several classes exactly the same, largest logit on {ties} of {n} clean "
            "images: the lowest of them counts as its answer, so that accuracy hangs on the order "
            "of the classes; look for outputs that are rounded, clipped or all the same.",
        )
    above = float(probabilities(logits).amax(1).max()) * classes - 1
    if above < FLAT_SCALE and ties < n:
        far = float((logits.amax(1) - logits.amin(1)).max())
        yield Finding(
            "flat",
            f"{where} returns logits that differ by {far:.2g} at most on {n} clean images, so that "
            f"every class has a probability of about 1/{classes}: verdicts are read off the logits "
            "and hold, but confidences mean nothing and losses may round; multiply the logits.",
        )


def _find_batch_dependence(
    where: str, model: nn.Module, x: Tensor, logits: Tensor
) -> Iterator[Finding]:
    """Yield a finding if the logits of an image depend on the other images of its batch."""
    try:
        with torch.no_grad():
            alone = widen(torch.cat([call_model(model, row[None]) for row in x]))
            turned = widen(call_model(model, x.flip(0)).flip(0))
    except (KeyboardInterrupt, InputWriteError):
        raise
    except BaseException as error:  # as batch-norm in training mode refuses a single image
        reason = f"{first_line(error)}; a verdict must not need a batch"
        raise SuiteError(f"{where} does not take an image alone: {reason}") from error
    far = max(float((other - logits).abs().max()) for other in (alone, turned))
    if far > BATCH * _scale(logits):
        own = [
            name
            for name, m in model.named_modules()
            if isinstance(m, nn.modules.batchnorm._BatchNorm)
            and (m.training or m.running_mean is None)
        ]
        why = f" ({own[0]} takes the batch's statistics)" if own else ""
        yield Finding(
            "batch-dependent",
            f"{where} answers an image differently beside other images: its outputs depend on "
            f"the batch{why}, so results depend on the batch size; logits differ by {far:.3g}. Use "
            "statistics kept from training (track_running_stats, evaluation mode).",
        )


def _find_gradient_problems(
    where: str, model: nn.Module, x: Tensor, logits: Tensor, random: bool
) -> Iterator[Finding]:
    """Yield findings about gradients: absent, zero, not finite, or of another function."""
    other = logits.argmin(1)
    try:
        seen = gradient_pass(model, make_objective("cross-entropy", "untargeted"), x, other, other)
    except RuntimeError as error:  # such as of a model that answers in inference mode
        yield Finding(
            "zero-gradient",
            f"{where} gives no gradient ({first_line(error)}): gradient attacks fail; let its "
            "forward be differentiated.",
        )
        return
    far = float((seen.logits - logits).abs().max())
    if not random and far > RANDOM * _scale(logits):
        yield Finding(
            "gradient-mode",
            f"{where} answers otherwise where a gradient is asked for than where none is (logits "
            f"differ by {far:.3g}): attacks by gradient follow another model than the one that is "
            "judged; let its forward not look at torch.is_grad_enabled or x.requires_grad, and "
            "attack it by scores, too.",
        )
    slopes = seen.gradient.flatten(1)
    lost = ~slopes.isfinite()
    if lost.any():
        yield Finding(
            "non-finite-gradient",
            f"{where} has a gradient with NaN or infinite entries on {int(lost.any(1).sum())} of "
            f"{len(x)} clean images ({int(lost.sum())} entries): attacks take them for 0 and do "
            "not move these pixels, so they may be weaker than they look. Look for a square root, "
            "a logarithm or a division at 0, and keep its argument away from 0.",
        )
    zero = int((slopes.abs().amax(1) == 0).sum())
    if zero:
        yield Finding(
            "zero-gradient",
            f"{where} has a gradient of zeros on {zero} of {len(x)} clean images: gradient "
            "attacks cannot move there, and their robust accuracy means nothing. Attack it by "
            "scores, or a differentiable stand-in by transfer.",
        )
