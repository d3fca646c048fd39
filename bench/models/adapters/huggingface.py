"""Load image classifiers with transformers: `huggingface:OWNER/NAME`, or `huggingface:/folder`.

Only data are read, the configuration as JSON and the weights as safetensors; code in a repository
is never run. Weights are DEFAULT (the repository's, from the hub's cache, downloaded unless
BENCH_OFFLINE is set), a file, or "random". The first layer applies the repository's image processor
except for resizing; images are neither resized nor cropped.
Source: Wolf et al. 2020, https://github.com/huggingface/transformers
"""

import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bench.core import optional
from bench.core.contracts.model import Model
from bench.core.contracts.parameters import Count
from bench.core.contracts.types import Shape
from bench.core.errors import SuiteError, first_line
from bench.models.preprocessing import Preprocessed

LIBRARY, EXTRA = "transformers", "huggingface"
PROCESSOR = "preprocessor_config.json"


def adapt(name: str) -> Model:
    """Return a repository's model; nothing is read before it is built.

    Args:
        name: OWNER/NAME, or the path of a folder.

    Returns:
        The model's record.

    Raises:
        SuiteError: The library is not installed.
    """
    if reason := optional.missing_reason(LIBRARY, EXTRA):
        raise SuiteError(f"model '{EXTRA}:{name}': {reason}")
    return Model(
        summary=f"the image classifier {name}",
        source=name,
        build=partial(_build, name),
        shape=None,
        classes=None,
        published=lambda _: _published(name),
        published_names=("DEFAULT",),
        names=lambda: tuple(str(each) for each in _config(name).id2label.values()),
    )


def _fetch(name: str, files: str, get: Callable[..., Any]) -> Any:
    """Call a loader of the library; its errors become a SuiteError."""
    offline = bool(os.environ.get("BENCH_OFFLINE"))
    logging = optional.import_library(f"{LIBRARY}.utils.logging")
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with optional.silence(LIBRARY):
            return get(name, local_files_only=offline)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError) as error:
        here = Path(name).is_dir()
        place = name if here else "the hub's cache (HF_HOME), or name a folder that holds them"
        raise SuiteError(
            f"model '{EXTRA}:{name}' could not be had ({first_line(error)}); put its "
            f"{files} into {place}"
        ) from error
    finally:
        logging.set_verbosity(before)


def _config(name: str) -> Any:
    """Load the repository's configuration."""
    get = optional.import_library(LIBRARY).AutoConfig.from_pretrained
    return _fetch(name, "config.json", partial(get, trust_remote_code=False))


def _kind() -> Any:
    """Return the library's class of image classifiers."""
    return optional.import_library(LIBRARY).AutoModelForImageClassification


def _build(name: str, classes: Count | None = None) -> nn.Module:
    """Build the network; None for the repository's number of classes."""
    config = _config(name)
    if classes is not None:
        config.num_labels = classes
    get = partial(optional.import_library(f"{LIBRARY}.utils").cached_file, filename=PROCESSOR,
                  _raise_exceptions_for_missing_entries=False)  # fmt: skip
    file = _fetch(name, PROCESSOR, get)
    processor = json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
    net = _fetch(name, "config.json", lambda *_, **__: _kind().from_config(config))
    mean, std = read_moments(processor, getattr(config, "num_channels", 3))
    return Preprocessed(net.float(), mean, std, _input_shape(config, processor), logits="logits")


def read_moments(
    processor: Mapping[str, Any], channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Convert an image processor's normalisation to pixels in [0, 1].

    Args:
        processor: Its configuration, which describes pixels from 0 to 255 and their scaling.
        channels: Number of channels.

    Returns:
        Mean and standard deviation per channel, in pixels of [0, 1].
    """
    scale = 255.0
    if processor.get("do_rescale", True):
        scale *= processor.get("rescale_factor", 1 / 255)
    if not processor.get("do_normalize", bool(processor)):
        return (0.0,) * channels, (1 / scale,) * channels
    mean, std = processor.get("image_mean"), processor.get("image_std")
    if mean is None or std is None:
        mean, std = [0.0] * channels, [1.0] * channels
    return tuple(each / scale for each in mean), tuple(each / scale for each in std)


def _input_shape(config: Any, processor: Mapping[str, Any]) -> Shape | None:
    """Return the shape of images that the repository states, if it does."""
    size = getattr(config, "image_size", None)
    for key in ("crop_size", "size"):
        size = size or processor.get(key)
    if isinstance(size, Mapping):
        size = [size.get(side, size.get("shortest_edge")) for side in ("height", "width")]
    high, wide = size if isinstance(size, list | tuple) else (size, size)
    if not isinstance(high, int) or not isinstance(wide, int):
        return None
    return getattr(config, "num_channels", 3), high, wide


def _published(name: str) -> Mapping[str, Tensor]:
    """Load the repository's state with the keys of the built model.

    Raises:
        SuiteError: There is no such file of safetensors.
    """
    get = partial(_kind().from_pretrained, trust_remote_code=False, use_safetensors=True)
    net = _fetch(name, "config.json and model.safetensors", get)
    return {f"net.{key}": value for key, value in net.state_dict().items()}
