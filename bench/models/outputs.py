"""Find the logits in what a model returns: a tuple, a mapping, a dataclass, or one score an image.

`output` of a model's entry names them: an index, a key or attribute, "binary" for one logit an
image, "sigmoid" for one probability. Where it says nothing, the only (n, classes) tensor is taken.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from bench.core.errors import SuiteError, nearest

Output = str | int
BINARY, SIGMOID = "binary", "sigmoid"
USUAL = "logits"
"""Name that is taken where several tensors could be the logits."""
PROBABILITY_STEP = 2.0**-24
"""Probabilities are moved so far away from 0 and 1, to have finite logits: half the distance of
float32 numbers at 1."""


class Place(NamedTuple):
    """Where in an output the logits are."""

    by: Literal["item", "attribute"]
    name: Output

    def describe(self) -> str:
        """Describe the place.

        Returns:
            "item 0", "item 'logits'" or "attribute 'logits'".
        """
        return f"{self.by} {self.name!r}"


class SelectedOutput(nn.Module):
    """A model that returns several things, of which one is the logits."""

    def __init__(self, net: nn.Module, place: Place) -> None:
        """Wrap a model.

        Args:
            net: The model.
            place: Where in its output the logits are.
        """
        super().__init__()
        self.net, self.by, self.name = net, place.by, place.name
        self.training = net.training

    def forward(self, x: Tensor) -> Tensor:
        """Classify images.

        Args:
            x: Images, (n, c, h, w).

        Returns:
            The selected output, (n, classes).
        """
        answer = self.net(x)
        logits: Tensor
        logits = getattr(answer, str(self.name)) if self.by == "attribute" else answer[self.name]
        return logits


class ScoredOutput(nn.Module):
    """A model that returns logits and the score of a detector."""

    def __init__(self, net: nn.Module, logits: Place, score: Place) -> None:
        """Wrap a model.

        Args:
            net: The model.
            logits: Where in its output the logits are.
            score: Where the score is.
        """
        super().__init__()
        self.net, self.logits, self.score = net, logits, score
        self.training = net.training

    def forward(self, x: Tensor) -> Tensor:
        """Classify images and score them.

        Args:
            x: Images, (n, c, h, w).

        Returns:
            Logits and score, (n, classes + 1), the score last, in the wider of their types: a
            score that is rounded may fall to the other side of the threshold.
        """
        answer = self.net(x)
        logits: Tensor = take_output(answer, self.logits)
        score: Tensor = take_output(answer, self.score)
        return torch.cat([logits, score.reshape(len(logits), 1)], 1)


class QueriedOutput(nn.Module):
    """A module that answers queries, of whose answers one part is the scores."""

    def __init__(self, label: str, net: nn.Module, output: Output) -> None:
        """Wrap a model.

        Args:
            label: Name for messages.
            net: The model, a submodule, so that mode and device reach it.
            output: Which part of its answers is the scores.
        """
        super().__init__()
        self.label, self.net, self.output = label, net, output
        self.training = net.training

    def forward(self, x: Tensor) -> Any:
        """Query the model.

        Args:
            x: Images, (n, c, h, w).

        Returns:
            The scores, (n, classes).
        """
        answer = self.net(x)
        return take_output(
            answer, find_output(f"model '{self.label}'", answer, len(x), self.output)
        )


class BinaryModel(nn.Module):
    """A binary classifier of one score an image, with a logit for each of its two classes."""

    def __init__(self, net: nn.Module, probability: bool) -> None:
        """Wrap a model.

        Args:
            net: Maps images to scores, (n,) or (n, 1).
            probability: Whether a score is the probability of class 1; else it is its logit.
        """
        super().__init__()
        self.net, self.probability = net, probability
        self.training = net.training

    def forward(self, x: Tensor) -> Tensor:
        """Classify images.

        Args:
            x: Images, (n, c, h, w).

        Returns:
            Logits, (n, 2): 0 for class 0, the score's logit for class 1.
        """
        return to_two_logits(self.net(x), self.probability)


def to_two_logits(score: Tensor, probability: bool) -> Tensor:
    """Convert one score an image to logits of two classes, whose softmax is the sigmoid.

    Args:
        score: (n,) or (n, 1).
        probability: Whether a score is the probability of class 1; else it is its logit.

    Returns:
        (n, 2).
    """
    one = score.reshape(-1)
    if probability:
        one = torch.logit(one.float(), eps=PROBABILITY_STEP)
    return torch.stack([torch.zeros_like(one), one], dim=1)


def find_output(where: str, answer: Any, n: int, output: Output | None) -> Place | bool:
    """Find the logits in a model's answer.

    Args:
        where: Start of the sentence, such as "model 'net'".
        answer: The answer to n images.
        n: Number of images.
        output: What the user says of it; None: nothing.

    Returns:
        Where the logits are; for one score an image, whether it is a probability.

    Raises:
        SuiteError: They are not there, or nothing tells which of several tensors they are.
    """
    if isinstance(answer, Tensor):
        return _find_in_tensor(where, answer, n, output)
    places = _list_places(answer)
    if output is not None:
        chosen = next((place for place in places if place.name == output), None)
        if chosen is None and isinstance(output, str) and hasattr(answer, output):
            chosen = Place("attribute", output)
        if chosen is None:
            known = nearest(str(output), [str(place.name) for place in places])
            raise SuiteError(f"{where} returns {_name(answer)} without output {output!r}; {known}")
        return chosen
    fitting = {place: each for place, each in places.items() if _may_be_logits(each, n)}
    usual = next((place for place in fitting if place.name == USUAL), None)
    if usual is not None:
        return usual
    if len(fitting) == 1:
        return next(iter(fitting))
    shown = ", ".join(f"{place.name!r} {_describe(each)}" for place, each in places.items())
    example = next(iter(fitting or places), Place("item", 0)).name
    written = f'"{example}"' if isinstance(example, str) else example
    raise SuiteError(
        f"{where}: expected logits (n, classes) with n = {n}, got {_name(answer)} of "
        f"{shown or 'nothing'}; say which they are, such as output = {written} in its entry"
    )


def find_score(where: str, answer: Any, n: int, output: Output) -> Place:
    """Find the score of a detector in a model's answer.

    Args:
        where: Start of a sentence, which names the model.
        answer: What the model returned for n images.
        n: Number of images.
        output: Index, key or attribute of the score.

    Returns:
        Its place.

    Raises:
        SuiteError: There is none, or it is not one finite number an image.
    """
    about = f"{where}: detector"
    if isinstance(answer, Tensor):
        raise SuiteError(
            f"{about}: expected an output of logits and a score, got one tensor "
            f"{tuple(answer.shape)}; let the model return both"
        )
    places = _list_places(answer)
    place = next((each for each in places if each.name == output), None)
    if place is None and isinstance(output, str) and hasattr(answer, output):
        place = Place("attribute", output)
    if place is None:
        known = nearest(str(output), [str(each.name) for each in places])
        raise SuiteError(f"{about}: {_name(answer)} has no output {output!r}; {known}")
    score = take_output(answer, place)
    if not isinstance(score, Tensor) or not score.is_floating_point():
        kind = str(score.dtype) if isinstance(score, Tensor) else type(score).__name__
        raise SuiteError(
            f"{about}: expected a floating-point score an image in output {output!r}, got "
            f"{kind.removeprefix('torch.')}"
        )
    if score.shape not in ((n,), (n, 1)):
        raise SuiteError(
            f"{about}: expected a score an image in output {output!r}, ({n},) or ({n}, 1), got "
            f"{tuple(score.shape)}"
        )
    if not bool(score.isfinite().all()):
        lost = int((~score.isfinite()).sum())
        raise SuiteError(
            f"{about}: expected finite scores, got NaN or infinity on {lost} of {n} clean images"
        )
    return place


def take_output(answer: Any, place: Place | bool) -> Any:
    """Return the logits in an answer.

    Args:
        answer: What a model returned.
        place: As returned by `find_output`.

    Returns:
        The logits.
    """
    if isinstance(place, bool):
        return to_two_logits(torch.as_tensor(answer), place)
    return getattr(answer, str(place.name)) if place.by == "attribute" else answer[place.name]


def _find_in_tensor(where: str, answer: Tensor, n: int, output: Output | None) -> bool:
    """Return whether the scores of a binary classifier are probabilities."""
    single = answer.shape in ((n,), (n, 1))
    if output is None or output not in (BINARY, SIGMOID):
        if single and output is None:
            raise SuiteError(
                f"{where}: expected at least 2 classes, got 1 output an image; for a binary "
                f'classifier say output = "{BINARY}" in its entry if it is a logit (class 1 where '
                f'it is positive), or output = "{SIGMOID}" if it is the probability of class 1'
            )
        got = f"one tensor {tuple(answer.shape)}"
        if output is None:
            raise SuiteError(f"{where}: expected logits (n, classes) with n = {n}, got {got}")
        raise SuiteError(
            f"{where}: expected output {output!r}, but the model returns {got}; leave the key out"
        )
    if not single:
        raise SuiteError(
            f'{where}: output = "{output}" is for one score an image, (n,) or (n, 1) with n = {n}, '
            f"got {tuple(answer.shape)}; leave the key out if these are logits"
        )
    inside = bool(((answer >= 0) & (answer <= 1)).all())
    if output == SIGMOID and not inside:
        raise SuiteError(
            f"{where}: expected probabilities in [0, 1], got {float(answer.min()):.3g} to "
            f'{float(answer.max()):.3g}; if these are logits, say output = "{BINARY}"'
        )
    return output == SIGMOID


def _list_places(answer: Any) -> dict[Place, Any]:
    """List the parts of an answer: items of a mapping or sequence, or attributes."""
    if isinstance(answer, Mapping):
        return {Place("item", key): each for key, each in answer.items() if isinstance(key, str)}
    if isinstance(answer, tuple | list):
        return {Place("item", index): each for index, each in enumerate(answer)}
    if dataclasses.is_dataclass(answer):
        names = [field.name for field in dataclasses.fields(answer)]
    else:
        names = [name for name in getattr(answer, "__dict__", {}) if not name.startswith("_")]
    found = {Place("attribute", name): getattr(answer, name) for name in names}
    if USUAL not in names and isinstance(getattr(answer, USUAL, None), Tensor):
        found[Place("attribute", USUAL)] = getattr(answer, USUAL)
    return found


def _may_be_logits(value: Any, n: int) -> bool:
    """Return whether a value has the type and shape of logits."""
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.dim() == 2
        and value.shape[0] == n
        and value.shape[1] > 1
    )


def _name(answer: Any) -> str:
    """Name the kind of an answer."""
    if isinstance(answer, tuple) and not hasattr(answer, "_fields"):
        return f"a tuple of {len(answer)}"
    return f"a {type(answer).__name__}"


def _describe(value: Any) -> str:
    """Describe a part of an answer: the shape of a tensor, else its type."""
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
