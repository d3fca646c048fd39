"""Is this model fit to be attacked? A few questions before anything runs.

An answer that would make every number wrong stops the run with one sentence; one that only makes
the numbers doubtful is a finding, passed on to the report.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench import provenance, rng
from bench.contracts import Data
from bench.engine import look
from bench.errors import SuiteError
from bench.guard import evaluating
from bench.losses import to_ascend

ASKED = 16
"""Images that the model is asked about."""
RANDOM, BATCH = 1e-3, 1e-2
"""Shares of the largest logit by which answers may differ: asked twice, and asked alone."""


class Subject(NamedTuple):
    """A model ready to be attacked: on its device, in evaluation mode, asked and found fit."""

    label: str
    model: nn.Module
    classes: int
    fingerprint: str
    findings: tuple[str, ...]
    """Sentences about the model that a reader of its numbers must know."""
    predictions: int = 1
    """Times that it is asked for one verdict."""
    random: bool = False
    """Whether it answers at random: as was found, or as more than one prediction says."""


def fit(
    label: str, model: nn.Module, data: Data, device: torch.device, predictions: int = 1
) -> Subject:
    """The model, which is on `device`, with what its answers to the first images told.

    `predictions` is how often it is to be asked for one verdict.

    Raises: SuiteError if the answers are no logits: wrong shape, not finite, probabilities, or
    fewer classes than the labels need.
    """
    where = f"model '{label}'"
    x = data.read(0, min(data.n, ASKED)).to(device)
    with evaluating(model), rng.seeded("preflight"):  # so that the same is found each time
        logits = _logits(where, model, data, x)
        random = _random(model, x, logits)
        findings = tuple(_findings(where, model, x, logits, random, predictions))
    print_, random = provenance.fingerprint(model), random or predictions > 1
    return Subject(label, model, logits.shape[1], print_, findings, predictions, random)


def _logits(where: str, model: nn.Module, data: Data, x: Tensor) -> Tensor:
    """The model's answers to x; raises SuiteError if they are no logits over the data's labels."""
    if any(p.dtype != torch.float32 for p in model.parameters() if p.is_floating_point()):
        raise SuiteError(f"{where}: expected float32 parameters; convert it with model.float()")
    try:
        with torch.no_grad():
            logits = model(x)
    except Exception as error:  # a stranger's forward may raise anything
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise SuiteError(
            f"{where} does not take images {tuple(x.shape[1:])} of data {data.name}: {first}"
        ) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise SuiteError(f"{where}: expected logits (n, classes) with n = {len(x)}, got {got}")
    if not logits.isfinite().all():
        raise SuiteError(f"{where}: expected finite logits, got NaN or infinity on clean images")
    classes = logits.shape[1]
    if classes < 2:
        raise SuiteError(f"{where}: expected at least 2 classes, got {classes}")
    if data.labels is not None and int(data.labels.max()) >= classes:
        raise SuiteError(
            f"{where} has {classes} classes, but data {data.name} has the label "
            f"{int(data.labels.max())}"
        )
    if are_probabilities(logits):
        raise SuiteError(
            f"{where}: expected logits, got probabilities (each row is positive and sums to 1), "
            "which flatten the gradient; return the values before the softmax"
        )
    return logits


def are_probabilities(logits: Tensor) -> bool:
    """Whether what a model returned, (n, classes), has been through a softmax."""
    total = logits.sum(1)
    return bool((logits >= 0).all()) and torch.allclose(total, torch.ones_like(total), atol=1e-4)


def _random(model: nn.Module, x: Tensor, logits: Tensor) -> bool:
    """Whether the model answers otherwise when it is asked again."""
    with torch.no_grad():
        again = model(x)
    return float((again - logits).abs().max()) > RANDOM * _scale(logits)


def _scale(logits: Tensor) -> float:
    return float(logits.abs().max()) + 1e-6


def _findings(
    where: str, model: nn.Module, x: Tensor, logits: Tensor, random: bool, predictions: int
) -> Iterator[str]:
    """What makes the model's numbers doubtful, a sentence each."""
    with torch.no_grad():
        alone = torch.cat([model(row[None]) for row in x])
    scale = _scale(logits)
    if random and predictions == 1:
        yield (
            f"{where} answers the same images differently each time: its defence is random, "
            "and one prediction is not enough to judge an attack. Let `predictions` of the model "
            "vote, and let attacks average their gradients over `samples`."
        )
    elif not random and float((alone - logits).abs().max()) > BATCH * scale:
        yield (
            f"{where} answers an image differently beside other images: its outputs depend on "
            "the batch, so results depend on the batch size."
        )
    if torch.allclose(logits.logsumexp(1), torch.zeros(len(x), device=x.device), atol=1e-4):
        yield (
            f"{where} returns log-probabilities instead of logits: cross-entropy is the same, but "
            "losses on logits (DLR, CW) are not."
        )
    other = logits.argmin(1)
    seen = look(model, to_ascend("cross-entropy", "untargeted"), x, other, other)
    zero = int((seen.gradient.flatten(1).abs().amax(1) == 0).sum())
    if zero:
        yield (
            f"{where} has a gradient of zeros on {zero} of {len(x)} clean images: gradient "
            "attacks cannot move there, and their robust accuracy means nothing."
        )
