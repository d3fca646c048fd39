"""Compare a model's predictions of images with its earlier ones.

A model whose code, weights, state or libraries changed without a new identity would yield records
that belong to two models. Rounding is no change: another device, number of rows or library version
moves the last bits of the logits, and where two classes are nearly tied, the prediction with them.
A model whose answer depends on the other images of a batch may differ between batches by as much as
it is measured to.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.core.contracts.dataset import Data
from bench.core.errors import SuiteError
from bench.engine.float32_precision import allow_tf32
from bench.engine.model_state import call_model, eval_mode
from bench.engine.rejection import RejectingModel, ScoreView, find_detector
from bench.evaluation.judge import LOGIT_TOLERANCE, judge
from bench.models.fingerprint import logits_differ
from bench.models.preflight.checks import LoadedModel

CONFIDENCE_TOLERANCE = 1e-3
"""By how much a confidence may differ: between two devices, some 1e-6 was measured."""
MAX_EXPLAINED = 16
"""Answers that are computed once more, to see whether rounding explains them."""
REPEATED_IMAGES = 16
"""Clean images that a model predicts again after each chunk, to see that it does not change while
it is attacked."""
MAX_DIFFERING_SHARE = 0.01
"""Share of answers that rounding may change where the logits cannot be computed again."""


class Difference(NamedTuple):
    """An image that the model predicts otherwise than before."""

    position: int
    before: tuple[int, float]
    """Class and confidence."""
    now: tuple[int, float]

    def describe(self) -> str:
        """Describe what changed.

        Returns:
            A clause without its subject, which is the image.
        """
        (old, sure), (new, now) = self.before, self.now
        return f"class {old} at confidence {sure:.6g} before and class {new} at {now:.6g} now"


def first_difference(
    model: nn.Module, x: Tensor, rows: int, pred: Tensor, confidence: Tensor
) -> Difference | None:
    """Find the first image that `model` answers otherwise than before, beyond rounding.

    Args:
        model: Answers without drawing random numbers.
        x: Images (n, c, h, w), n > 0.
        rows: Rows of a pass; a model that depends on its batch needs the same as before.
        pred: Classes (n,) that were predicted before; -1 where logits were not finite.
        confidence: Their softmax probabilities (n,); not compared where `pred` is -1.

    Returns:
        The difference, or None if all answers are the same.
    """
    verdict = judge(model, x, rows)
    pred, confidence = pred.to(verdict.pred), confidence.to(verdict.confidence)
    far = ~((verdict.confidence - confidence).abs() <= CONFIDENCE_TOLERANCE)  # true for NaN, too
    off = (verdict.pred != pred) | (far & (pred >= 0))
    for at in off.nonzero()[:MAX_EXPLAINED, 0].tolist():
        before = int(pred[at]), float(confidence[at])
        logits = _logits_alone_and_batched(model, x, at)
        if not _is_explained(*logits, *before, find_detector(model)):
            return Difference(at, before, (int(verdict.pred[at]), float(verdict.confidence[at])))
    return None


def find_differences(pred: Tensor, confidence: Tensor, other: Tensor, sure: Tensor) -> Tensor:
    """Compare recorded answers with each other, when the model cannot be asked.

    Args:
        pred: Classes (n,), -1 where logits were not finite.
        confidence: Their softmax probabilities (n,).
        other: The classes (n,) that were recorded elsewhere.
        sure: Their softmax probabilities (n,).

    Returns:
        Where they differ by more than rounding explains, (n,): a tie leaves at most 0.5 to each.
    """
    tied = (confidence <= 0.5 + CONFIDENCE_TOLERANCE) & (pred >= 0) & (other >= 0)
    far = ~((confidence - sure).abs() <= CONFIDENCE_TOLERANCE) & ((pred >= 0) | (other >= 0))
    return far | ((pred != other) & ~tied)


class AnswerMonitor:
    """Detects that a deterministic model changes its answers while it is attacked."""

    def __init__(self, data: Data, device: torch.device, models: Mapping[str, LoadedModel]) -> None:
        """Take what is asked; no model is called yet.

        Args:
            data: The data set, whose first images are predicted.
            device: Where models and images are placed.
            models: Loaded models by label.
        """
        self._data, self._device, self._models = data, device, models
        self._first: dict[str, tuple[Tensor, Tensor]] = {}
        """Model -> classes and confidences of the first images."""
        self._scores: dict[str, Tensor] = {}

    def record_answers(self, model: str) -> None:
        """Record a model's predictions of the first images, once; none of a random model.

        Args:
            model: Its label.
        """
        loaded = self._models[model]
        if model not in self._first and not loaded.random:
            x = self._read_images()
            answers = judge(loaded.model, x, len(x))
            self.keep_answers(model, answers.pred, answers.confidence)

    def keep_answers(self, model: str, pred: Tensor, confidence: Tensor) -> None:
        """Keep those predictions of the first images that were made first.

        Args:
            model: Label of a model that is not random.
            pred: Classes of the first images, or of all, (n,).
            confidence: Their softmax probabilities (n,).
        """
        first = pred[:REPEATED_IMAGES], confidence[:REPEATED_IMAGES]
        self._first.setdefault(model, first)
        net = self._models[model].model
        if isinstance(net, RejectingModel) and model not in self._scores:
            self._scores[model] = _measure_scores(net, self._read_images())

    def check_unchanged(self, model: str) -> None:
        """Predict the images again and compare.

        Args:
            model: Its label.

        Raises:
            SuiteError: The model answers otherwise than when it was first asked.
        """
        if model not in self._first:
            return
        x, (pred, confidence) = self._read_images(), self._first[model]
        difference = first_difference(self._models[model].model, x, len(x), pred, confidence)
        what = ""
        if difference is not None:
            what = f"clean example {difference.position} was {difference.describe()}"
        elif model in self._scores:  # which may move for long before an image is rejected
            what = self._describe_moved_scores(model, x)
        if what:
            raise SuiteError(
                f"model '{model}' changes its answers during the run: {what}, so that the records "
                "would be those of two models and are not written; give it no memory of earlier "
                "calls (a counter, a cache, a buffer that its forward writes to)"
            )

    def _describe_moved_scores(self, model: str, x: Tensor) -> str:
        """Describe how a detector's scores moved by more than rounding; "" if they did not."""
        loaded, first = self._models[model].model, self._scores[model]
        assert isinstance(loaded, RejectingModel)
        now = _measure_scores(loaded, x)
        if not logits_differ(first, now):
            return ""
        at = int((now - first).abs().argmax())
        return (
            f"the score of clean example {at} was {float(first[at]):.6g} beyond the threshold "
            f"before and is {float(now[at]):.6g} now"
        )

    def _read_images(self) -> Tensor:
        return self._data.read(0, min(self._data.n, REPEATED_IMAGES)).to(self._device)


def _measure_scores(model: RejectingModel, x: Tensor) -> Tensor:
    """Measure how far the scores of images are beyond the threshold, (n, 1)."""
    with eval_mode(model), torch.no_grad(), allow_tf32(False):
        scores: Tensor = call_model(ScoreView(model), x)
    return scores


def _logits_alone_and_batched(model: nn.Module, x: Tensor, at: int) -> tuple[Tensor, Tensor]:
    """Compute logits (classes,) of one image, alone and in a batch with others, in float64."""
    with eval_mode(model), torch.no_grad(), allow_tf32(False):
        alone = model(x[at : at + 1])[0]
        batched = model(torch.cat([x[at : at + 1], x[:MAX_EXPLAINED]]))[0]
    return alone.double(), batched.double()


def _is_explained(
    alone: Tensor, batched: Tensor, pred: int, confidence: float, detector: RejectingModel | None
) -> bool:
    """Check whether rounding, or as large a shift as the batch causes, explains a prediction."""
    if not (0 <= pred < len(alone) and alone.isfinite().all() and batched.isfinite().all()):
        return False
    moved = max(LOGIT_TOLERANCE * float(alone.abs().max()), float((alone - batched).abs().max()))
    if float(alone.max() - alone[pred]) > 2 * moved:
        return False
    if detector is not None:  # confidence is that of the classifier
        alone = alone[: detector.classes]
        pred = pred if pred < detector.classes else int(alone.argmax())
    shift = torch.zeros_like(alone)
    shift[pred] = 2 * moved  # up by `moved`, and all others down by as much, is the same
    low, high = ((alone + direction * shift).softmax(0)[pred] for direction in (-1, 1))
    return float(low) - CONFIDENCE_TOLERANCE <= confidence <= float(high) + CONFIDENCE_TOLERANCE
