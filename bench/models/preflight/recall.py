"""Recall what preflight found out about the same model and data earlier in the process.

The fingerprint covers weights, code and settings. As some state escapes it, the model predicts the
first images once more: only if it answers as before is preflight spared.
"""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.core import rng
from bench.engine import process_cache
from bench.engine.functional.logits import widen
from bench.engine.model_state import call_model, eval_mode
from bench.models import fingerprint
from bench.models.preflight.checks import LoadedModel


class _Known(NamedTuple):
    """A loaded model without its network."""

    loaded: LoadedModel
    """Its `model` is a placeholder."""
    wrappers: tuple[nn.Module, ...]
    """What preflight wrapped the network in, outermost first, each without what it wraps."""


def store_loaded(loaded: LoadedModel, net: nn.Module, digest: str, key: tuple[Any, ...]) -> None:
    """Keep a loaded model's findings.

    Nothing is kept of a model that answers at random, nor of one that rejects images: their answers
    cannot be compared with earlier ones by the logits.

    Args:
        loaded: What preflight found out.
        net: The network as it was before it was wrapped.
        digest: Its fingerprint.
        key: Data and settings that the findings belong to.
    """
    wrappers = _take_wrappers(loaded.model, net)
    if wrappers is None or loaded.logits is None or loaded.detector is not None:
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
        with eval_mode(model), torch.no_grad(), rng.seed_global("preflight"):
            logits = widen(call_model(model, x.clone()))
            same = not fingerprint.logits_differ(logits, known.loaded.logits)
    except KeyboardInterrupt:
        raise
    except BaseException:  # foreign code may raise anything; preflight says what it was
        return None
    found: LoadedModel = known.loaded
    return found._replace(model=model) if same else None


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
