"""Load image classifiers of torchvision by name: `torchvision:resnet18`.

Weights have torchvision's names, such as DEFAULT or IMAGENET1K_V1 (read from torch's hub cache,
downloaded unless BENCH_OFFLINE is set), or are a file or "random". The first layer normalises as
the weights' preprocessing does; images are neither resized nor cropped.
Source: TorchVision 2016, https://github.com/pytorch/vision
"""

import os
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

from bench.core.contracts.model import Model
from bench.core.contracts.parameters import Count
from bench.core.contracts.types import Shape
from bench.core.errors import SuiteError, first_line, nearest
from bench.models.preprocessing import Preprocessed

LIBRARY = "torchvision"


def list_names() -> list[str]:
    """List the library's classifiers.

    Returns:
        Their names.
    """
    from torchvision import models  # 0.8 s to import

    return sorted(models.list_models(module=models))


def adapt(name: str) -> Model:
    """Return a classifier of the library.

    Args:
        name: Name in torchvision.

    Returns:
        The model's record.

    Raises:
        SuiteError: The name is unknown.
    """
    from torchvision import models  # 0.8 s to import

    known = models.list_models(module=models)
    if name not in known:
        raise SuiteError(f"model '{LIBRARY}:{name}' is unknown; {nearest(name, known)}")
    weights = models.get_model_weights(name)
    best = weights.DEFAULT
    return Model(
        summary=f"torchvision's {name}, {best.meta['num_params']:,} parameters",
        source=f"torchvision, {best.meta.get('recipe', 'no recipe stated')}",
        build=partial(_build, name),
        shape=_input_shape(best),
        classes=len(best.meta["categories"]),
        published=partial(_published, name),
        published_names=tuple(weights.__members__),  # DEFAULT among them
        names=lambda: tuple(best.meta["categories"]),
    )


def _input_shape(weights: Any) -> Shape:
    """Return the shape of images that the weights' preprocessing makes."""
    size = weights.transforms().crop_size[0]
    return 3, size, size


def _moments(weights: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel of the weights' preprocessing."""
    own = weights.transforms()
    return tuple(own.mean), tuple(own.std)


def _build(name: str, classes: Count = 1000) -> nn.Module:
    """Build the network with random weights."""
    from torchvision import models

    best = models.get_model_weights(name).DEFAULT
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the initialisation of two architectures
        net = models.get_model(name, weights=None, num_classes=classes)
    if hasattr(net, "transform_input"):
        net.transform_input = True  # as the library sets it for its weights
    return Preprocessed(net, *_moments(best), _input_shape(best))


def _published(name: str, weights: str) -> Mapping[str, Tensor]:
    """Load the library's weights with the keys of the built model.

    Raises:
        SuiteError: They need another normalisation than the model's, or cannot be loaded.
    """
    from torchvision import models

    every = models.get_model_weights(name)
    chosen = every[weights]
    if _moments(chosen) != _moments(every.DEFAULT):
        raise SuiteError(f"weights {weights} of {LIBRARY}:{name} want a normalisation of their own")
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(chosen.url).name
    if not path.exists() and os.environ.get("BENCH_OFFLINE"):
        raise SuiteError(_missing(name, weights, path, "downloads are off, BENCH_OFFLINE is set"))
    try:
        state = chosen.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError, ValueError, EOFError, UnpicklingError) as error:
        raise SuiteError(_missing(name, weights, path, first_line(error))) from error
    return {f"net.{key}": value for key, value in state.items()}


def _missing(name: str, weights: str, path: Path, why: str) -> str:
    return (
        f"weights {weights} of {LIBRARY}:{name} could not be had ({why}); "
        f"put torchvision's file {path.name} into {path.parent}"
    )
