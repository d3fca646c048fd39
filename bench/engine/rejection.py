"""The attacked and judged model of a detector: rejection as one more class.

A model with a detector is a classifier of one more class, which it predicts exactly where it
rejects, so that a verdict stays one argmax. Where a rejection counts as robust, an attack must make
the model accept a wrong class: its logits are merged, so that the label's is the larger of the
label's own and the rejection's, and every loss then leaves both at once.
Source: Carlini and Wagner 2017, section 2.3, https://arxiv.org/abs/1705.07263
Differs from the paper: the logit of rejection is the largest logit plus the score's distance from
the threshold, not (distance + 1) times the largest logit, which is wrong where that is negative.
"""

import torch
from torch import Tensor, nn

from bench.core.contracts.attack import AttackSpec, ExternalAttack
from bench.core.contracts.types import Goal
from bench.engine.adaptation import AdaptedModel
from bench.engine.functional.logits import widen


class RejectingModel(nn.Module):
    """A model whose last class means that the image is rejected."""

    def __init__(
        self, net: nn.Module, classes: int, *, threshold: float, above: bool, spares: bool
    ) -> None:
        """Wrap a model.

        Args:
            net: Maps images to logits and score, (n, classes + 1), the score last.
            classes: Number of classes, which is the number of the class of rejection.
            threshold: Scores beyond it are rejected.
            above: Whether that is above it; else below.
            spares: Whether a rejected adversarial image counts as robust.
        """
        super().__init__()
        self.net, self.classes = net, classes
        self.threshold, self.above, self.spares = threshold, above, spares
        self.training = net.training

    def forward(self, x: Tensor) -> Tensor:
        """Classify or reject images.

        Args:
            x: Images, (n, c, h, w).

        Returns:
            Logits, (n, classes + 1). The last is above all others exactly where the image is
            rejected, and below the largest where it is not, whatever is rounded.
        """
        answer = widen(self.net(x))
        logits, excess = answer[:, :-1], self.measure_excess(answer)
        largest = logits.amax(1)
        there = largest.detach()
        rejection = largest + excess
        over = torch.maximum(rejection, torch.nextafter(there, torch.full_like(there, torch.inf)))
        under = torch.minimum(rejection, torch.nextafter(there, torch.full_like(there, -torch.inf)))
        return torch.cat([logits, torch.where(excess > 0, over, under)[:, None]], 1)

    def measure_excess(self, answer: Tensor) -> Tensor:
        """Measure how far scores are beyond the threshold.

        Args:
            answer: Logits and score, (n, classes + 1), as `net` returns them.

        Returns:
            Distances, (n,), positive where an image is rejected.
        """
        score = widen(answer)[:, -1]
        return score - self.threshold if self.above else self.threshold - score


class ScoreView(nn.Module):
    """The detector of a model, without its classifier."""

    def __init__(self, model: RejectingModel) -> None:
        """Wrap a model.

        Args:
            model: The model with the detector.
        """
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        """Measure how far the scores of images are beyond the threshold.

        Args:
            x: Images, (n, c, h, w).

        Returns:
            Distances, (n, 1).
        """
        return self.model.measure_excess(self.model.net(x))[:, None]


class ClassifierView(nn.Module):
    """The classifier of a model with a detector, without its score."""

    def __init__(self, net: nn.Module) -> None:
        """Wrap a model.

        Args:
            net: Maps images to logits and score, (n, classes + 1), the score last.
        """
        super().__init__()
        self.net = net
        self.training = net.training

    def forward(self, x: Tensor) -> Tensor:
        """Classify images.

        Args:
            x: Images, (n, c, h, w).

        Returns:
            Logits, (n, classes).
        """
        logits: Tensor = self.net(x)[:, :-1]
        return logits


class _MergedView(nn.Module):
    """A rejecting model whose logits are merged for the labels of one batch."""

    def __init__(self, net: nn.Module, label: Tensor) -> None:
        super().__init__()
        self.net, self.label = net, label
        self.training = net.training

    def forward(self, x: Tensor) -> Tensor:
        return merge_rejection(widen(self.net(x)), self.label)


def find_detector(model: nn.Module) -> RejectingModel | None:
    """Find the detector of a model.

    Args:
        model: Any model, possibly adapted.

    Returns:
        The rejecting model; None without a detector.
    """
    own = model.net if isinstance(model, AdaptedModel) else model
    return own if isinstance(own, RejectingModel) else None


def spares_rejected(model: nn.Module) -> bool:
    """Return whether a rejected adversarial image counts as robust.

    Args:
        model: Any model, possibly adapted.

    Returns:
        False of a model without a detector.
    """
    detector = find_detector(model)
    return detector is not None and detector.spares


def merge_rejection(logits: Tensor, label: Tensor) -> Tensor:
    """Merge the logit of rejection into that of the label.

    Args:
        logits: Logits, (n, classes + 1), that of rejection last.
        label: True labels, (n,), int64.

    Returns:
        Logits, (n, classes): the label's is the largest exactly where the label is predicted or the
        image is rejected.
    """
    own = torch.maximum(logits.gather(1, label[:, None]), logits[:, -1:])
    return logits[:, :-1].scatter(1, label[:, None], own)


def spare_rejected(model: nn.Module, label: Tensor, goal: Goal = "untargeted") -> nn.Module:
    """View a model as one batch of examples is attacked, so that a rejection is no success.

    Args:
        model: Any model.
        label: True labels of the batch, (n,), int64; not read if the goal is "targeted".
        goal: Goal of the attack. A rejection is no target, so that nothing need be merged then.

    Returns:
        A model of that batch alone; `model` itself where no rejection counts as robust.
    """
    merges = goal == "untargeted" and spares_rejected(model)
    return _MergedView(model, label) if merges else model


def attacks_classifier_too(spec: AttackSpec) -> bool:
    """Return whether an attack on a detector is also made on its classifier alone.

    Where a rejection counts as an error, the gradient may follow a score that never reaches its
    threshold, next to which the logits' margin has no weight. What then resists is attacked again
    without the detector. Neither a search nor an attack by scores is repeated, whose distances and
    queries are those of one run, nor one with a loss of the user's, which gets all columns.

    Args:
        spec: The attack on a model with a detector whose rejections count as errors.

    Returns:
        False also for a targeted attack, which a rejection does not serve.
    """
    attack = spec.attack
    return (
        spec.goal == "untargeted"
        and attack.needs == "gradient"
        and attack.budget == "fixed"
        and not isinstance(attack, ExternalAttack)
        and not (spec.random or spec.adaptation or spec.victim_queries)
    )


def select_classifier(model: nn.Module) -> nn.Module:
    """Select the classifier of a model.

    Args:
        model: Any model.

    Returns:
        The classifier without its detector; `model` itself if it has none.
    """
    return ClassifierView(model.net) if isinstance(model, RejectingModel) else model
