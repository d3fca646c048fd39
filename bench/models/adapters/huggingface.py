"""Any image classifier that transformers loads: `huggingface:OWNER/NAME`, or `huggingface:/folder`.

What is behind the name is data: its configuration as JSON, its weights as safetensors; code that a
repository brings along is never run. Weights are DEFAULT, the repository's own, from the hub's
cache, downloaded into it where the network allows; or they are a file of the suite's, or "random".
What the repository's image processor does to pixels, other than resizing, is the model's first
layer; images are taken as they are, neither resized nor cropped.
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
from bench.core.contracts.attack import Count
from bench.core.contracts.model import Model
from bench.core.contracts.types import Shape
from bench.core.errors import SuiteError, first_line
from bench.models.preprocessing import Preprocessed

LIBRARY, EXTRA = "transformers", "huggingface"
PROCESSOR = "preprocessor_config.json"


def adapt(name: str) -> Model:
    """The repository or folder `name` as a model; nothing is read before it is built.

    Raises: SuiteError if the library is not there.
    """
    if reason := optional.missing(LIBRARY, EXTRA):
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


def _had(name: str, files: str, get: Callable[..., Any]) -> Any:
    """What `get` makes of the repository; what stands in its way is told in one sentence."""
    offline = bool(os.environ.get("BENCH_OFFLINE"))
    logging = optional.loaded(f"{LIBRARY}.utils.logging")
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with optional.quiet(LIBRARY):
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
    get = optional.loaded(LIBRARY).AutoConfig.from_pretrained
    return _had(name, "config.json", partial(get, trust_remote_code=False))


def _kind() -> Any:
    return optional.loaded(LIBRARY).AutoModelForImageClassification


def _build(name: str, classes: Count | None = None) -> nn.Module:
    config = _config(name)
    if classes is not None:
        config.num_labels = classes
    get = partial(optional.loaded(f"{LIBRARY}.utils").cached_file, filename=PROCESSOR,
                  _raise_exceptions_for_missing_entries=False)  # fmt: skip
    file = _had(name, PROCESSOR, get)
    processor = json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
    net = _had(name, "config.json", lambda *_, **__: _kind().from_config(config))
    mean, std = read_moments(processor, getattr(config, "num_channels", 3))
    return Preprocessed(net.float(), mean, std, _made_for(config, processor), logits="logits")


def read_moments(
    processor: Mapping[str, Any], channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and standard deviation per channel of pixels in [0, 1] that an image processor's
    configuration stands for; it is told of pixels up to 255 that it scales first."""
    scale = 255.0  # to the pixels that the processor is shown, and from them to what it makes
    if processor.get("do_rescale", True):
        scale *= processor.get("rescale_factor", 1 / 255)
    if not processor.get("do_normalize", bool(processor)):
        return (0.0,) * channels, (1 / scale,) * channels
    mean, std = processor.get("image_mean"), processor.get("image_std")
    if mean is None or std is None:
        mean, std = [0.0] * channels, [1.0] * channels
    return tuple(each / scale for each in mean), tuple(each / scale for each in std)


def _made_for(config: Any, processor: Mapping[str, Any]) -> Shape | None:
    """The images that the repository says its net was made for, if it says so."""
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
    """The repository's own state, keyed as the built model's.

    Raises: SuiteError if it cannot be had as safetensors.
    """
    get = partial(_kind().from_pretrained, trust_remote_code=False, use_safetensors=True)
    net = _had(name, "config.json and model.safetensors", get)
    return {f"net.{key}": value for key, value in net.state_dict().items()}
