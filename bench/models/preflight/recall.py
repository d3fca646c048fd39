"""Recall what preflight found out about the same model and data earlier in the process.

The fingerprint covers weights, code and settings. As some state escapes it, such as a global
variable or an attribute of a class, the model is asked once more about the first images, with a
gradient: only if logits and gradients are as before is preflight spared.
"""

import copy
from typing import Any, NamedTuple

from torch import Tensor, nn

from bench.core import rng
from bench.engine import process_cache
from bench.engine.model_state import eval_mode
from bench.models import fingerprint
from bench.models.preflight.checks import LoadedModel
from bench.models.preflight.gradient_checks import take_excerpt
from bench.models.preflight.repetition import call_reversed


class _Known(NamedTuple):
    """A loaded model without its network."""

    loaded: LoadedModel
    """Its `model` is a placeholder."""
    wrappers: tuple[nn.Module, ...]
    """What preflight wrapped the network in, outermost first, each without what it wraps."""


def store_loaded(loaded: LoadedModel, net: nn.Module, digest: str, key: tuple[Any, ...]) -> None:
    """Keep a loaded model's findings.

    Nothing is kept of a model that answers at random, nor of one that rejects images: their answers
    cannot be compared with earlier ones by logits and gradient.

    Args:
        loaded: What preflight found out.
        net: The network as it was before it was wrapped.
        digest: Its fingerprint.
        key: Data and settings that the findings belong to.
    """
    wrappers = _take_wrappers(loaded.model, net)
    if wrappers is None or not loaded.hash_answers() or loaded.detector is not None:
        return
    known = _Known(loaded._replace(model=nn.Identity()), wrappers)
    process_cache.store(known, digest, "preflight", *key)


def recall_loaded(
    net: nn.Module, digest: str, key: tuple[Any, ...], x: Tensor
) -> LoadedModel | None:
    """Look up a loaded model's findings and check that the model answers as it did.

    Args:
        net: The network.
        digest: Its fingerprint.
        key: As in `store_loaded`.
        x: The first images (n, c, h, w), on the model's device.

    Returns:
        The loaded model; None if nothing is known, or the model answers otherwise.
    """
    known = process_cache.recall(digest, "preflight", *key)
    if known is None:
        return None
    model = net
    for wrapper in reversed(known.wrappers):
        model = _wrap(wrapper, model)
    try:
        with eval_mode(model), rng.seed_global("preflight"):
            same = _answers_alike(model, x.clone(), known.loaded)
    except KeyboardInterrupt:
        raise
    except BaseException:  # foreign code may raise anything; preflight says what it was
        return None
    found: LoadedModel = known.loaded
    return found._replace(model=model) if same else None


def _answers_alike(model: nn.Module, x: Tensor, known: LoadedModel) -> bool:
    """Ask the model as `repeat_calls` did, and compare logits and gradients."""
    assert known.logits is not None
    assert known.gradient is not None
    seen = call_reversed(model, x.flip(0), known.logits.argmin(1).flip(0).to(x.device))
    return not (
        fingerprint.logits_differ(seen.logits, known.logits)
        or fingerprint.logits_differ(take_excerpt(seen.gradient), known.gradient)
    )


def _take_wrappers(model: nn.Module, net: nn.Module) -> tuple[nn.Module, ...] | None:
    """Copy the wrappers around a network, without what they wrap; None if there are others."""
    wrappers = []
    while model is not net:
        if list(model._modules) != ["net"] or [*model.parameters(recurse=False)]:
            return None
        wrappers.append(_wrap(model, nn.Identity()))
        model = model.get_submodule("net")
    return tuple(wrappers)


def _wrap(wrapper: nn.Module, net: nn.Module) -> nn.Module:
    """Copy a wrapper and put a network into the copy."""
    own = copy.copy(wrapper)
    own._modules = {"net": net}
    own.training = net.training
    return own
