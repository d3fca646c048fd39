"""Rotations and translations beside what NumPy says of right angles and whole pixels."""

import pytest
import torch
from torch import Tensor

from bench.core.contracts.threat import VerifierInput
from bench.core.rng import Noise
from bench.engine.threats import rotation_translation
from bench.engine.threats.rotation_translation import list_limits, transform, verify

IDS = torch.arange(2)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def repeat(*parameters: float) -> Tensor:
    return torch.tensor([parameters] * 2, dtype=torch.float64)


def complaints(x_adv: Tensor, x: Tensor, parameters: Tensor, level: float = 1.0) -> list[str]:
    noise = Noise(0, "test", IDS, torch.zeros_like(IDS))
    return verify(VerifierInput(x_adv, parameters, x, "rotation-translation", level, None, noise))


def test_a_quarter_turn_is_that_of_the_pixel_grid(x: Tensor) -> None:
    turned = transform(x, repeat(90, 0, 0))
    assert torch.allclose(turned, torch.rot90(x, 1, (2, 3)), atol=1e-5)


def test_a_shift_by_whole_pixels_moves_them_and_fills_up_with_zeros(x: Tensor) -> None:
    moved = transform(x, repeat(0, 2, -3))
    expected = torch.zeros_like(x)
    expected[:, :, :-3, 2:] = x[:, :, 3:, :-2]
    assert torch.allclose(moved, expected, atol=1e-5)


def test_no_rotation_and_no_shift_is_the_image_to_the_bit(x: Tensor) -> None:
    assert torch.equal(transform(x, repeat(0, 0, 0)), x)


def test_an_image_does_not_depend_on_its_batch(x: Tensor) -> None:
    parameters = torch.tensor([[17.0, 0.7, -0.2], [-3.0, 0.1, 1.0]], dtype=torch.float64)
    assert torch.equal(transform(x, parameters)[1:], transform(x[1:], parameters[1:]))


def test_the_largest_level_is_the_threat_model_of_the_paper() -> None:
    assert list_limits(1.0, 28, 28) == (30.0, 3.0, 3.0)


def test_a_transform_within_the_limits_is_no_violation(x: Tensor) -> None:
    parameters = repeat(30, *list_limits(1.0, 12, 12)[1:])
    assert complaints(transform(x, parameters), x, parameters) == ["", ""]


def test_a_rotation_beyond_the_limit_is_a_violation_that_names_both(x: Tensor) -> None:
    parameters = repeat(16, 0, 0)
    found = complaints(transform(x, parameters), x, parameters, level=0.5)
    assert found == ["rotation by 16 degrees, allowed 15"] * 2


def test_an_image_that_its_parameters_do_not_make_is_a_violation(x: Tensor) -> None:
    parameters = repeat(10, 0, 0)
    x_adv = transform(x, parameters)
    x_adv[1, 0, 5, 5] = 2
    first, second = complaints(x_adv, x, parameters)
    assert first == ""
    assert second.startswith("image differs by 1.")
    assert second.endswith("from rotation 10, right 0, down 0, allowed 1e-06")


def test_parameters_that_are_no_number_are_a_violation(x: Tensor) -> None:
    assert all(complaints(x, x, repeat(float("nan"), 0, 0)))


@pytest.mark.parametrize("level", [-0.1, 1.01, float("inf")])
def test_a_level_out_of_range_is_named(level: float) -> None:
    expected = "expected a level in [0, 1]"
    assert rotation_translation.find_level_problem(level).startswith(expected)
