"""Patches: where they are, what is outside them, and what they break."""

import pytest
import torch
from torch import Tensor, nn

import bench
from bench.core.contracts.threat import VerifierInput
from bench.core.rng import Noise
from bench.engine.threats import patch

Trained = tuple[nn.Module, Tensor, Tensor]
IDS = torch.arange(2)


def evaluate(trained: Trained, **settings: object) -> bench.Evaluation:
    given = {
        "attack": "patch_pgd", "norm": "patch", "eps": [0.1], "device": "cpu",
        "keep_adversarial": True, "params": {"steps": 10, "alpha": 0.2},
    }  # fmt: skip
    return bench.evaluate(*trained, **(given | settings))


def complaints(x_adv: Tensor, x: Tensor, corner: tuple[float, float], level: float) -> list[str]:
    noise = Noise(0, "test", IDS, torch.zeros_like(IDS))
    corners = torch.tensor([corner] * 2, dtype=torch.float64)
    return patch.verify(VerifierInput(x_adv, corners, x, "patch", level, None, noise))


@pytest.fixture
def x() -> Tensor:
    return torch.rand(2, 3, 8, 10, generator=torch.Generator().manual_seed(0))


def test_every_pixel_may_change_inside_the_patch(x: Tensor) -> None:
    x_adv = x.clone()
    x_adv[:, :, 2:6, 3:7] = 0  # 4 x 4 of 80 pixels
    assert complaints(x_adv, x, (2, 3), 0.2) == ["", ""]


def test_pixels_outside_are_counted_however_many_channels_changed(x: Tensor) -> None:
    x_adv = x.clone()
    x_adv[1, :, 0, :3] = 0
    x_adv[1, 0, 7, 9] = 0
    expected = "4 pixels changed outside the patch (row 2, column 3, 4 x 4 pixels), allowed 0"
    assert complaints(x_adv, x, (2, 3), 0.2) == ["", expected]


@pytest.mark.parametrize("corner", [(5, 0), (0, 7), (-1, 0), (0.5, 0), (float("nan"), 0)])
def test_a_patch_beyond_the_image_or_between_pixels_is_a_violation(
    x: Tensor, corner: tuple[float, float]
) -> None:
    assert all("patch of 4 x 4 pixels at" in text for text in complaints(x, x, corner, 0.2))


def test_a_patch_of_the_whole_area_is_as_large_as_the_shorter_side() -> None:
    assert patch.patch_side(1.0, 8, 10) == 8


def test_pixels_outside_the_recorded_place_are_the_clean_ones(trained: Trained) -> None:
    found, x = evaluate(trained), trained[1]
    assert found.adversarial is not None
    assert (found.records["violation"] == "").all()
    for row, text in enumerate(found.records["parameters"]):
        top, left = (int(word) for word in text.replace(",", "").split()[1::2])
        outside = torch.ones_like(x[row], dtype=torch.bool)
        outside[:, top : top + 9, left : left + 9] = False
        assert torch.equal(found.adversarial[0, row][outside], x[row][outside])
    assert not torch.equal(found.adversarial[0], x)


def test_a_patch_breaks_some_images_and_steps_break_more_than_the_random_start(
    trained: Trained,
) -> None:
    start, steps = (
        int(evaluate(trained, params={"steps": n, "alpha": 0.2}).table["robust_correct"].item())
        for n in (1, 20)
    )
    assert steps < start


def test_the_worst_of_several_places_breaks_all_that_the_first_one_breaks(
    trained: Trained,
) -> None:
    one, three = (
        evaluate(trained, params={"steps": 8, "alpha": 0.2, "places": n}).records["fooled"]
        for n in (1, 3)
    )
    assert not (one & ~three).any()
    assert three.sum() > one.sum()


def test_the_centre_is_one_place(trained: Trained) -> None:
    found = evaluate(trained, params={"location": "centre", "steps": 2})
    assert (found.records["parameters"] == "row 9, column 9").all()
    with pytest.raises(bench.SuiteError, match="places: expected 1 with location = 'centre'"):
        evaluate(trained, params={"location": "centre", "places": 2})


def test_a_share_beyond_the_image_is_one_sentence(trained: Trained) -> None:
    with pytest.raises(bench.SuiteError, match="expected a share of the image's area in"):
        evaluate(trained, eps=1.5)
