"""Check a model before it is attacked.

A finding has a name (`bench.models.preflight.findings`) and a sentence. A finding that would make
all results wrong stops the run unless the suite allows it by name; the others go into the report.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.core import rng
from bench.core.contracts.dataset import Data
from bench.core.contracts.detector import Detector
from bench.core.contracts.types import Access
from bench.core.errors import SuiteError, describe, first_line, nearest
from bench.core.foreign import own_location
from bench.engine.functional.logits import predict_class, widen
from bench.engine.model_state import (
    InputCloningModel,
    InputWriteError,
    call_model,
    eval_mode,
    find_input_writer,
)
from bench.engine.opaque_model import OpaqueModel
from bench.models import fingerprint
from bench.models.preflight.findings import FINDINGS, Finding, read_name
from bench.models.preflight.gradient_checks import find_gradient_problems, take_excerpt
from bench.models.preflight.logit_checks import (
    find_doubts,
    find_errors,
    find_other_dtype,
    is_random,
)
from bench.models.preflight.preprocessing import find_wrong_preprocessing
from bench.models.preflight.repetition import repeat_calls
from bench.models.query_only import QueryOnlyModel

N_IMAGES = 16
"""Images that the model is checked on."""


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
    detector: Detector | None = None
    """How it rejects images, where it predicts class `classes`; None if it does not."""
    logits: Tensor | None = None
    """Logits of the first images, on the CPU; None if the answers are random."""
    scores: Tensor | None = None
    """How far their scores are beyond the detector's threshold, (n, 1), likewise; None without a
    detector."""
    sketch: str = ""
    """Both, coarse enough to be part of an identity."""
    gradient: Tensor | None = None
    """Excerpt of the gradient at the first images, as `gradient_checks.take_excerpt` returns it;
    None if the model did not answer alike in all checks."""

    def hash_answers(self) -> str:
        """Hash what the model answered to the first images, for what belongs to these answers.

        Returns:
            64 hexadecimal digits; empty if the answers cannot be compared with those of another
            call.
        """
        if self.logits is None or self.gradient is None:
            return ""
        answers = [self.logits, self.gradient, *([] if self.scores is None else [self.scores])]
        return hashlib.sha256(fingerprint.describe_value(answers).encode()).hexdigest()

    def finding_names(self) -> list[str]:
        """List the findings by name.

        Returns:
            Names of `bench.models.preflight.findings`; "" for a sentence without one.
        """
        return [read_name(note) for note in self.findings]


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
    digest: str = "",
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
        digest: What `identify_model` returns of both, where that is known.

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
    digest = digest or identify_model(model, about)  # first, since a forward may count its calls
    try:
        return _check_model(label, model, model, data, x.clone(), predictions, allow, digest)
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
            digest,
            [_input_write_finding(where, who)],
        )


def identify_model(model: nn.Module, about: Any) -> str:
    """Compute the fingerprint of a model in evaluation mode.

    Args:
        model: The model.
        about: Plain values that belong to it as well.

    Returns:
        The fingerprint, which covers what stays in training mode.
    """
    with eval_mode(model):
        training = [name for name, module in model.named_modules() if module.training]
        return fingerprint.fingerprint(model, [about, training])


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
    digest: str,
    known: Sequence[Finding] = (),
) -> LoadedModel:
    """Check a model as `preflight` does.

    `model` is called in place of `net`, which it is or wraps and whose fingerprint is `digest`;
    `known` are findings so far.

    Raises:
        InputWriteError: The model writes into x.
    """
    where, clean = f"model '{label}'", x.clone()
    with eval_mode(model), rng.seed_global("preflight"):  # for reproducible findings
        logits = _compute_logits(where, model, data, x)
        _check_unwritten(x, clean)
        findings = [*known, *find_errors(where, model, logits)]
        refused = [each for each in findings if each.refuses and each.name not in allow]
        if refused:
            raise SuiteError(refused[0].format_error())
        logits = widen(logits)
        differentiates = not isinstance(net, QueryOnlyModel)
        seen = repeat_calls(model, x, logits, differentiates)
        alike = seen is not None
        random = not alike and is_random(model, x, logits)
        findings += find_doubts(where, net, model, data, x, logits, random, predictions, alike)
        if differentiates:
            findings += find_gradient_problems(where, model, x, logits, random, seen)
        _check_unwritten(x, clean)
        if "not-finite" not in [each.name for each in findings]:
            first = predict_class(logits) if alike else None
            findings += find_wrong_preprocessing(where, model, data, x.device, first)
    sentences = tuple(each.format_note(each.name in allow) for each in findings)
    random = random or predictions > 1
    access: Access = "gradient"
    if isinstance(net, QueryOnlyModel):  # it is identified by its answers as well
        access = net.access
        classes = str(predict_class(logits).tolist())
        digest = hashlib.sha256(f"{digest} {classes}".encode()).hexdigest()
    return LoadedModel(
        label=label, model=model, classes=logits.shape[1], fingerprint=digest, findings=sentences,
        predictions=predictions, random=random, access=access,
        logits=None if random else logits.detach().float().cpu(),
        sketch="" if random else fingerprint.sketch_logits(logits),
        gradient=None if seen is None or not differentiates else take_excerpt(seen.gradient),
    )  # fmt: skip


def _check_unwritten(x: Tensor, clean: Tensor) -> None:
    """Raise InputWriteError if x differs from its copy `clean`."""
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
        other = find_other_dtype(where, model)
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
