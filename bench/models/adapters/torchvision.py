"""Any image classifier of torchvision by its name there: `torchvision:resnet18`.

Weights go by torchvision's own names, DEFAULT or IMAGENET1K_V1, and come from torch's hub cache,
downloaded into it where the network allows; or they are a file of the suite's, or "random". The
mean and standard deviation that the weights' preprocessing states are the model's first layer;
images are taken as they are, neither resized nor cropped.
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


def adapt(name: str) -> Model:
    """The library's classifier `name`.

    Raises: SuiteError if there is none of that name.
    """
    from torchvision import models  # 0.8 s to import; only who names it pays

    known = models.list_models(module=models)
    if name not in known:
        raise SuiteError(f"model '{LIBRARY}:{name}' is unknown; {nearest(name, known)}")
    weights = models.get_model_weights(name)
    best = weights.DEFAULT
    return Model(
        summary=f"torchvision's {name}, {best.meta['num_params']:,} parameters",
        source=f"torchvision, {best.meta.get('recipe', 'no recipe told')}",
        build=partial(_build, name),
        shape=_made_for(best),
        classes=len(best.meta["categories"]),
        published=partial(_published, name),
        published_names=tuple(weights.__members__),  # DEFAULT among them
        names=lambda: tuple(best.meta["categories"]),
    )


def _made_for(weights: Any) -> Shape:
    size = weights.transforms().crop_size[0]
    return 3, size, size


def _moments(weights: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    own = weights.transforms()
    return tuple(own.mean), tuple(own.std)


def _build(name: str, classes: Count = 1000) -> nn.Module:
    from torchvision import models

    best = models.get_model_weights(name).DEFAULT
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how two of them begin, which no weights keep
        net = models.get_model(name, weights=None, num_classes=classes)
    if hasattr(net, "transform_input"):
        net.transform_input = True  # as the library sets it for its weights
    return Preprocessed(net, *_moments(best), _made_for(best))


def _published(name: str, weights: str) -> Mapping[str, Tensor]:
    """The state of the library's weights, keyed as the built model's.

    Raises: SuiteError if they want another normalisation than the model's, or cannot be had.
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
