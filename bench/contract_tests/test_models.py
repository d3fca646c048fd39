"""Every model of an installed package: logits of images in [0, 1], row by row, differentiable."""

import pytest
import torch
from torch import Tensor, nn

from bench.core import registry, rng
from bench.core.contracts.model import Model
from bench.models.fingerprint import fingerprint

NAMES = list(registry.discover("models").usable)
if not NAMES:
    pytest.skip("no installed package offers a model", allow_module_level=True)


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> Model:
    """The record of a model whose shape is known without its weights."""
    found: Model = registry.find("models", request.param)
    if found.shape is None or found.classes is None:
        pytest.skip("shape and classes depend on the weights")
    return found


def build_net(model: Model) -> nn.Module:
    """Build the net of a record with random weights, the same each time.

    Args:
        model: The record.

    Returns:
        The net, in evaluation mode.
    """
    with rng.seed_global("contract"):
        return model.build().eval()


def make_images(model: Model) -> Tensor:
    """Make images of the shape that a model declares.

    Args:
        model: The record.

    Returns:
        Images, (3, c, h, w), in [0, 1].
    """
    assert model.shape is not None
    return torch.rand(3, *model.shape, generator=torch.Generator().manual_seed(0))


def test_a_model_says_what_it_is(model: Model) -> None:
    assert model.summary
    assert model.source


def test_images_become_finite_logits_that_are_no_probabilities(model: Model) -> None:
    with torch.no_grad():
        logits = build_net(model)(make_images(model))
    assert logits.shape == (3, model.classes)
    assert logits.isfinite().all()
    assert logits.min() < 0 or not torch.allclose(logits.sum(1), torch.ones(3))


def test_an_image_is_classified_alone_as_in_a_batch(model: Model) -> None:
    net, x = build_net(model), make_images(model)
    with torch.no_grad():
        assert torch.allclose(net(x[:1]), net(x)[:1], rtol=1e-4, atol=1e-4)


def test_the_same_images_give_the_same_logits_and_remain_unchanged(model: Model) -> None:
    net, x = build_net(model), make_images(model)
    before = x.clone()
    with torch.no_grad():
        assert torch.equal(net(x), net(x))
    assert torch.equal(x, before)


def test_the_largest_logit_has_a_gradient_at_the_image(model: Model) -> None:
    net, x = build_net(model), make_images(model).requires_grad_(True)
    (gradient,) = torch.autograd.grad(net(x).max(1).values.sum(), x)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


def test_two_builds_have_one_fingerprint(model: Model) -> None:
    assert fingerprint(build_net(model)) == fingerprint(build_net(model))
