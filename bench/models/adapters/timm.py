"""Any image classifier of timm by its name there, with or without a tag: `timm:resnet18.a1_in1k`.

Weights are DEFAULT, the ones of the name's tag (without one, of timm's first): the file
model.safetensors of the hub's cache, downloaded into it where the network allows; or they are a
file of the suite's, or "random". The mean and standard deviation of the model's `pretrained_cfg`
are its first layer; images are taken as they are, neither resized nor cropped.
Source: Wightman 2019, https://github.com/huggingface/pytorch-image-models
"""

import os
from collections.abc import Mapping
from functools import partial
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from bench.core import optional
from bench.core.contracts.model import Model
from bench.core.contracts.parameters import Count
from bench.core.errors import SuiteError, first_line, nearest
from bench.models.preprocessing import Preprocessed

LIBRARY = "timm"
FILE = "model.safetensors"


def adapt(name: str) -> Model:
    """The library's classifier `name`.

    Raises: SuiteError if there is none of that name or tag, or the library is not there.
    """
    if reason := optional.missing_reason(LIBRARY, LIBRARY):
        raise SuiteError(f"model '{LIBRARY}:{name}': {reason}")
    timm = optional.import_library(LIBRARY)
    if not timm.is_model(name):
        known = timm.list_models()
        raise SuiteError(f"model '{LIBRARY}:{name}' is unknown; {nearest(name, known)}")
    config = _config(name)
    return Model(
        summary=f"timm's {name}",
        source=f"timm, {config.hf_hub_id or config.url or 'no weights published'}",
        build=partial(_build, name),
        shape=config.input_size,
        classes=config.num_classes,
        published=lambda _: _published(name),
        published_names=("DEFAULT",),
    )


def _config(name: str) -> Any:
    """What timm says of the weights of this name."""
    timm = optional.import_library(LIBRARY)
    try:
        return timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:  # another tag than there is
        plain, _, tag = name.partition(".")
        tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{plain}.*")]
        told = f"model '{LIBRARY}:{plain}' has no weights '{tag}'; {nearest(tag, tags)}"
        raise SuiteError(told) from error


def _build(name: str, classes: Count | None = None, channels: Count | None = None) -> nn.Module:
    """`classes` and `channels` are those of the name's weights if they are not given."""
    config = _config(name)
    channels = channels or config.input_size[0]
    mean, std = (each[:1] * channels if channels != len(each) else tuple(each)
                 for each in (config.mean, config.std))  # fmt: skip
    with optional.silence(LIBRARY):
        net = optional.import_library(LIBRARY).create_model(
            name, pretrained=False, num_classes=classes or config.num_classes, in_chans=channels
        )
    return Preprocessed(net, mean, std, (channels, *config.input_size[1:]))


def _published(name: str) -> Mapping[str, Tensor]:
    """The state of the name's weights, keyed as the built model's.

    Raises: SuiteError if they cannot be had.
    """
    config = _config(name)
    if not config.hf_hub_id:
        raise SuiteError(f"{LIBRARY}:{name} has no weights on the hub; name a file of its own")
    offline = bool(os.environ.get("BENCH_OFFLINE"))
    try:
        hub = optional.import_library("huggingface_hub")
        path = hub.hf_hub_download(config.hf_hub_id, FILE, local_files_only=offline)
    except (OSError, ValueError, RuntimeError) as error:
        why = "downloads are off, BENCH_OFFLINE is set" if offline else first_line(error)
        raise SuiteError(
            f"weights of {LIBRARY}:{name} could not be had ({why}); fetch {FILE} of "
            f"{config.hf_hub_id} into the hub's cache (HF_HOME), or name that file as the weights"
        ) from error
    return {f"net.{key}": value for key, value in load_file(path).items()}
