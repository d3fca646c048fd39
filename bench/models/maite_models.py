"""Ask models that follow MAITE's protocol, which test-and-evaluation programmes exchange.

Such a model maps a batch of images, a sequence of arrays (c, h, w), to a sequence of scores
(classes,), and has `metadata`. It exposes no gradients, so that it is evaluated by its scores. It
is recognised by MAITE's own protocol where `maite` is installed.

Source: MAITE, https://github.com/mit-ll-ai-technology/maite
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FINDING = (
    "model '{label}' follows MAITE's protocol, which shows no gradients: it is attacked by its "
    "scores alone, and attacks that need gradients are skipped."
)


def is_maite_model(model: Any) -> bool:
    """Return whether an object follows MAITE's protocol of image classifiers.

    Args:
        model: Any object.

    Returns:
        False for a torch module, for everything without `metadata`, and where maite is missing.
    """
    if isinstance(model, nn.Module | type) or not callable(model):
        return False
    if not hasattr(model, "metadata") or importlib.util.find_spec("maite") is None:
        return False
    from maite.protocols import image_classification

    return isinstance(model, image_classification.Model)


def make_query(model: Any) -> Callable[[Tensor], Tensor]:
    """Make the function that asks a MAITE model.

    Args:
        model: As `is_maite_model` recognises it.

    Returns:
        Maps images (n, c, h, w), float32 in [0, 1] on the CPU, to scores (n, classes).
    """

    def ask(x: Tensor) -> Tensor:
        answers = model([image.numpy() for image in x])
        rows = [torch.as_tensor(np.array(each), dtype=torch.float32) for each in answers]
        return torch.stack(rows)

    return ask
