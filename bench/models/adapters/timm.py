"""Load image classifiers of timm by name, with or without a tag: `timm:resnet18.a1_in1k`.

Weights are DEFAULT (those of the tag, or of timm's first tag: model.safetensors in the hub's cache,
downloaded unless BENCH_OFFLINE is set), a file, or "random". The first layer normalises by the
`pretrained_cfg`; images are neither resized nor cropped.
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


def list_names() -> list[str]:
    """List the library's architectures.

    Returns:
        Their names, without tags; none if the library is not installed.
    """
    if optional.missing_reason(LIBRARY, LIBRARY):
        return []
    return sorted(optional.import_library(LIBRARY).list_models())


def adapt(name: str) -> Model:
    """Return a classifier of the library.

    Args:
        name: Name in timm, with or without a tag.

    Returns:
        The model's record.

    Raises:
        SuiteError: The name or tag is unknown, or the library is not installed.
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
    """Return timm's configuration of the weights."""
    timm = optional.import_library(LIBRARY)
    try:
        return timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:  # unknown tag
        plain, _, tag = name.partition(".")
        tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{plain}.*")]
        raise SuiteError(
            f"model '{LIBRARY}:{plain}' has no weights '{tag}'; {nearest(tag, tags)}"
        ) from error


def _build(name: str, classes: Count | None = None, channels: Count | None = None) -> nn.Module:
    """Build the network; None for the classes and channels of the weights."""
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
    """Load the weights' state with the keys of the built model.

    Raises:
        SuiteError: They are not published, or cannot be loaded.
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
