"""Define torchvision's ResNet50 with ImageNet's mean and standard deviation as its first layer.

Published weights have torchvision's names (IMAGENET1K_V1, IMAGENET1K_V2) and are read from torch's
hub cache; absent files are downloaded unless BENCH_OFFLINE is set.
Source: He et al. 2016, https://arxiv.org/abs/1512.03385
"""

import os
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from urllib.error import URLError

import torch
from torch import Tensor, nn

from bench.core.contracts.model import Model
from bench.core.errors import SuiteError, first_line, nearest
from bench.datasets.imagenet_classes import load_imagenet_names
from bench.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Normalise


class ResNet50(nn.Module):
    """A normalisation layer followed by torchvision's network."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        from torchvision.models import resnet50  # 0.8 s to import

        self.normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD)
        self.net = resnet50(num_classes=classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images.

        Args:
            x: Images, (n, 3, h, w) in [0, 1].

        Returns:
            Logits, (n, classes).
        """
        logits: Tensor = self.net(self.normalise(x))
        return logits


def build(classes: int = 1000) -> nn.Module:
    """Build the network.

    Args:
        classes: Number of classes.

    Returns:
        The network with random weights.
    """
    return ResNet50(classes)


def load_published(name: str) -> Mapping[str, Tensor]:
    """Load torchvision's weights.

    Args:
        name: Their name in torchvision.

    Returns:
        State with the keys of ResNet50.

    Raises:
        SuiteError: The name is unknown, or the file is absent and cannot be downloaded.
    """
    from torchvision.models import ResNet50_Weights

    known = list(ResNet50_Weights.__members__)
    if name not in known:
        raise SuiteError(f"weights '{name}' of resnet50 are unknown; {nearest(name, known)}")
    weights = ResNet50_Weights[name]
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    if not path.exists() and os.environ.get("BENCH_OFFLINE"):
        raise SuiteError(_missing(name, path, "downloads are off, BENCH_OFFLINE is set"))
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError, ValueError, EOFError, UnpicklingError) as error:
        raise SuiteError(_missing(name, path, first_line(error))) from error
    return {f"net.{key}": value for key, value in state.items()}


def _missing(name: str, path: Path, why: str) -> str:
    return (
        f"weights {name} of resnet50 could not be had ({why}); "
        f"put torchvision's file {path.name} into {path.parent}"
    )


MODEL = Model(
    summary="torchvision's ResNet50, 1000 ImageNet classes, 25.6 million parameters",
    source="He et al. 2016",
    build=build,
    shape=(3, 224, 224),
    classes=1000,
    published=load_published,
    published_names=("IMAGENET1K_V1", "IMAGENET1K_V2"),
    names=load_imagenet_names,
)
