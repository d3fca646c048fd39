"""Every shipped architecture: its size as its source states it, logits of the right shape."""

import pytest
import torch
from safetensors.torch import load_file

from bench.core import registry, rng
from bench.models.published_weights import WEIGHTS

PARAMETERS = {
    "lenet": 61_706,
    "lenet_caffe": 431_080,
    "dropout_cnn": 1_199_882,
    "softmax": 7_850,
    "strided_cnn": 436_202,
    "convsmall": 166_406,
    "resnet50": 25_557_032,
    "efficientnet_lite0": 4_652_008,
    "efficientnet_lite1": 5_416_680,
    "efficientnet_lite2": 6_092_072,
    "maxout": 784 * 1200 + 1200 + 240 * 1200 + 1200 + 240 * 10 + 10,
}


def test_every_architecture_is_counted_here():
    own = {name for name in registry.names("models") if name[-1] != ":"}  # no adapters
    assert own == PARAMETERS.keys()


@pytest.mark.parametrize("name", PARAMETERS)
def test_an_architecture_has_as_many_parameters_as_its_source_states(name):
    with rng.seed_global("sizes"):
        model = registry.find("models", name).build()
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_an_architecture_turns_images_into_finite_logits(name):
    result = registry.find("models", name)
    channels, height, width = result.shape
    with rng.seed_global("logits"):
        model = result.build().eval()
        images = torch.rand(2, channels, height, width)
    logits = model(images)
    assert logits.shape == (2, result.classes)
    assert bool(logits.isfinite().all())


def test_a_maxout_unit_is_the_largest_of_its_pieces():
    with rng.seed_global("maxout"):
        layer = registry.find("models", "maxout").build(units=3, pieces=2)[2]
        x = torch.rand(4, 784)
    weight, bias = layer.pieces.weight, layer.pieces.bias
    pieces = torch.stack([x @ weight[k::2].T + bias[k::2] for k in range(2)])
    assert torch.allclose(layer(x), pieces.amax(0), atol=1e-5)


def test_dropout_that_lasts_takes_the_published_weights_and_answers_otherwise_each_time():
    state = load_file(WEIGHTS / "dropout_cnn-mnist.safetensors")
    x = torch.full((3, 1, 28, 28), 0.5)
    answers = {}
    with rng.seed_global("dropout"):
        for dropout in ("training", "always"):
            model = registry.find("models", "dropout_cnn").build(dropout=dropout).eval()
            model.load_state_dict(state)
            answers[dropout] = model(x), model(x)
    assert torch.equal(*answers["training"])
    assert not torch.equal(*answers["always"])


def test_dropout_has_two_manners():
    with pytest.raises(ValueError, match="expected 'training' or 'always', got 'on'"):
        registry.find("models", "dropout_cnn").build(dropout="on")
