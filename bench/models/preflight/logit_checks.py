"""Find errors and doubts in what a model answers: its logits alone and in a batch."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from bench.core.contracts.dataset import Data
from bench.core.errors import SuiteError, first_line
from bench.engine.functional.logits import is_tied, probabilities, widen
from bench.engine.model_state import InputWriteError, call_model
from bench.models.preflight.findings import Finding
from bench.models.preprocessing import Preprocessed

RANDOM, BATCH = 1e-3, 1e-2
"""Largest difference of logits, as a fraction of the largest: repeated, and without a batch."""
FLAT_SCALE = 1e-3
"""Smallest excess of the largest probability over 1 / classes, as a fraction of 1 / classes."""


def find_errors(where: str, model: nn.Module, logits: Tensor) -> Iterator[Finding]:
    """Find what makes all results of the model wrong.

    Args:
        where: Start of a sentence, which names the model.
        model: The model.
        logits: Its outputs of clean images, (n, classes), as it returned them.

    Yields:
        Findings that refuse the model.
    """
    other = find_other_dtype(where, model)
    if other is None:
        other = find_half_logits(where, logits.dtype)
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


def find_half_logits(where: str, dtype: torch.dtype) -> Finding | None:
    """Find logits in half precision.

    Args:
        where: Start of a sentence, which names the model.
        dtype: Type in which the model returns its logits.

    Returns:
        The finding, which refuses the model; None for any other type.
    """
    if dtype not in (torch.float16, torch.bfloat16):
        return None
    kind = str(dtype).removeprefix("torch.")
    sentence = f"{where}: expected float32 logits, got {kind}; let it compute without autocast."
    return Finding("not-float32", sentence, refuses=True)


def are_probabilities(logits: Tensor) -> bool:
    """Return whether outputs are probabilities, as after a softmax.

    Args:
        logits: Outputs, (n, classes).

    Returns:
        True if all are at least 0 and each row sums to 1.
    """
    total = logits.sum(1)
    return bool((logits >= 0).all()) and torch.allclose(total, torch.ones_like(total), atol=1e-4)


def is_random(model: nn.Module, x: Tensor, logits: Tensor) -> bool:
    """Return whether a second call has other results.

    Args:
        model: The model.
        x: Images (n, c, h, w).
        logits: Logits of the first call, (n, classes).

    Returns:
        True if they differ by more than RANDOM.
    """
    with torch.no_grad():
        again = call_model(model, x)
    return float((widen(again) - logits).abs().max()) > RANDOM * logit_scale(logits)


def find_doubts(
    where: str,
    net: nn.Module,
    model: nn.Module,
    data: Data,
    x: Tensor,
    logits: Tensor,
    random: bool,
    predictions: int,
    alike: bool = False,
) -> Iterator[Finding]:
    """Find what makes results of the model doubtful, as far as its logits show it.

    Args:
        where: Start of a sentence, which names the model.
        net: The model as its user built it.
        model: What is called: `net`, or a wrapper of it.
        data: The data set.
        x: Images (n, c, h, w).
        logits: Their logits (n, classes).
        random: Whether the model answers at random.
        predictions: Predictions that vote on one verdict.
        alike: Whether the model is known to answer alike alone and in another order.

    Yields:
        Findings about modes, randomness, batches, logits, classes and sizes.

    Raises:
        SuiteError: The model does not take an image alone.
    """
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
    elif not random and not alike:
        yield from find_batch_dependence(where, model, x, logits)
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


def find_batch_dependence(
    where: str, model: nn.Module, x: Tensor, logits: Tensor, what: str = "logits"
) -> Iterator[Finding]:
    """Find that the outputs of an image depend on the other images of its batch.

    Args:
        where: Start of a sentence, which names the model.
        model: The model.
        x: Images (n, c, h, w).
        logits: Their outputs, (n, outputs).
        what: Name of the outputs, for people.

    Yields:
        The finding.

    Raises:
        SuiteError: The model does not take an image alone.
    """
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
    if far > BATCH * logit_scale(logits):
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
            f"the batch{why}, so results depend on the batch size; {what} differ by {far:.3g}. Use "
            "statistics kept from training (track_running_stats, evaluation mode).",
        )


def find_other_dtype(where: str, model: nn.Module) -> Finding | None:
    """Find parameters that are not in float32.

    Args:
        where: Start of a sentence, which names the model.
        model: The model.

    Returns:
        The finding; None if all are in float32.
    """
    kinds = [p.dtype for p in model.parameters() if p.is_floating_point()]
    other = [kind for kind in kinds if kind != torch.float32]
    if not other:
        return None
    seen = f"{len(other)} of {len(kinds)} in {str(other[0]).removeprefix('torch.')}"
    sentence = f"{where}: expected float32 parameters; convert it with model.float() ({seen})."
    return Finding("not-float32", sentence, refuses=True)


def logit_scale(logits: Tensor) -> float:
    """Return the magnitude that differences of logits are compared with.

    Args:
        logits: Logits (n, classes).

    Returns:
        The largest absolute logit.
    """
    return float(logits.abs().max())
