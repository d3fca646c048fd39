"""Transformed gradients are those of the papers, keyed by example and step, and counted."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import bench
from bench.core.contracts.input_transforms import InputTransforms
from bench.engine.functional.input_transforms import DRAWS, resize_and_pad, smooth_gradient
from bench.suite.identity import ModelFacts
from bench.suite.plan import plan_task
from bench.suite.reader import parse_attack
from bench.suite.schema import AttackEntry

Attacked = Callable[..., Any]
Digits = tuple[Tensor, Tensor]
EPS = 0.1


class Colours(nn.Module):
    """A small net for images of three channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 7 * 7, 10)
        )
        self.rows = 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return self.net(x)


@pytest.fixture
def colours() -> Digits:
    x = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(6)


@pytest.fixture
def run(attacked: Attacked) -> Attacked:
    """(net, data, attack, transforms, settings) -> what the engine returns after every step."""

    def attack(net: nn.Module, data: Digits, name: str, transforms: Any, **settings: Any) -> Any:
        with torch.no_grad():
            labels = net(data[0]).argmax(1)
        chosen = None if transforms is None else InputTransforms(**transforms)
        settings = {"stop": "never", **settings}
        return attacked(net, data[0], labels, name, EPS, transforms=chosen, **settings)

    return attack


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 7, 12)])
def test_a_row_is_resized_and_padded_as_by_interpolate_and_pad(shape: tuple[int, ...]) -> None:
    x = torch.rand(40, *shape, generator=torch.Generator().manual_seed(0))
    draws = torch.rand(40, DRAWS, generator=torch.Generator().manual_seed(1))
    transforms = InputTransforms(diversity=0.5, smallest=0.7)
    found = resize_and_pad(x, draws, transforms)
    height, width = shape[1:]
    resized = set()
    for row, (chosen, size, top, left) in enumerate(draws.tolist()):
        if chosen >= 0.5:
            assert torch.equal(found[row], x[row])
            continue

        def reduce(side: int, size: float = size) -> int:
            least = -int(-0.7 * side // 1)
            return least + int(size * (side - least + 1))

        h, w = reduce(height), reduce(width)
        small = functional.interpolate(x[row : row + 1], (h, w), mode="bilinear")[0]
        above, before = int(top * (height - h + 1)), int(left * (width - w + 1))
        padded = functional.pad(small, (before, width - w - before, above, height - h - above))
        torch.testing.assert_close(found[row], padded, rtol=0, atol=1e-5)
        resized.add(h)
    assert len(resized) > 1


@pytest.mark.parametrize("size", [3, 15])
def test_the_kernel_is_a_gaussian_of_sum_one(size: int) -> None:
    impulse = torch.zeros(1, 2, 31, 31, dtype=torch.float64)
    impulse[0, 0, 15, 15] = 1
    smooth = smooth_gradient(impulse, size)
    k = size // 2
    offsets = torch.arange(-15, 16, dtype=torch.float64)
    distance = offsets[:, None] ** 2 + offsets**2
    inside = (offsets[:, None].abs() <= k) & (offsets.abs() <= k)
    expected = torch.where(inside, torch.exp(-distance / (2 * (k / 3**0.5) ** 2)), 0.0)
    torch.testing.assert_close(smooth[0, 0], expected / expected.sum())
    assert not smooth[0, 1].any()


@pytest.mark.parametrize(
    ("name", "transforms", "theirs"),
    [
        (
            "mifgsm",
            {"translation": 5},
            lambda ta, net: ta.TIFGSM(
                net, EPS, EPS / 10, 10, 1.0, len_kernel=5, nsig=3**0.5,
                diversity_prob=0.0, resize_rate=0.9,
            ),
        ),
        (
            "bim",
            {"scales": 4},
            lambda ta, net: ta.SINIFGSM(net, EPS, EPS / 10, 10, decay=0.0, m=4),
        ),
    ],
)  # fmt: skip
def test_smoothed_and_scaled_gradients_lead_where_those_of_torchattacks_do(
    name: str,
    transforms: dict[str, Any],
    theirs: Callable[..., Any],
    colours: Digits,
    run: Attacked,
) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    net = Colours().eval()
    found = run(net, colours, name, transforms).x_adv[0]
    expected = theirs(torchattacks, net)(colours[0], net(colours[0]).argmax(1))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    plain = run(net, colours, name, None).x_adv[0]
    assert not torch.allclose(found, plain, atol=1e-3)


ALL = {"diversity": 0.7, "scales": 2, "translation": 3}


@pytest.mark.parametrize("name", ["pgd", "mifgsm", "apgd", "fgsm"])
def test_no_image_depends_on_the_batch(name: str, colours: Digits, run: Attacked) -> None:
    net = Colours().double().eval()
    data = colours[0].double(), colours[1]
    short = {} if name == "fgsm" else {"params": {"steps": 8}}
    whole, alone = (run(net, data, name, ALL, rows=rows, **short).x_adv for rows in (6, 1))
    assert torch.equal(whole, alone)
    assert not torch.equal(whole, run(net, data, name, ALL, seed=1, **short).x_adv)


def test_every_step_and_every_restart_is_resized_anew(colours: Digits, run: Attacked) -> None:
    net = Colours().eval()

    def end(steps: int, restarts: int) -> Tensor:
        params = {"random_start": False, "alpha": 1e-4, "steps": steps, "restarts": restarts}
        found: Tensor = run(net, colours, "pgd", {"diversity": 1.0}, params=params).x_adv[0]
        return found

    one, two, again = end(1, 1), end(2, 1), end(1, 2)
    assert not torch.allclose(two - one, one - colours[0], atol=1e-5)
    assert not torch.equal(again, one)


@pytest.mark.parametrize(
    ("transforms", "forwards", "backwards"),
    [
        ({"translation": 3}, 10, 10),
        ({"scales": 3}, 30, 30),
        ({"diversity": 0.5}, 20, 10),
        ({"diversity": 0.5, "scales": 2}, 30, 20),
    ],
)
def test_every_copy_is_counted(
    transforms: dict[str, Any], forwards: int, backwards: int, colours: Digits, run: Attacked
) -> None:
    net = Colours().eval()
    net.rows = -len(colours[0])  # asked for the labels
    found = run(net, colours, "bim", transforms)
    assert net.rows == forwards * len(colours[0])
    assert found.forwards.unique().tolist() == [forwards]
    assert found.backwards.unique().tolist() == [backwards]


def test_the_iterate_itself_decides_whether_it_is_a_success(colours: Digits, run: Attacked) -> None:
    net = Colours().eval()
    found = run(net, colours, "pgd", {"diversity": 1.0}, stop="first-success")
    with torch.no_grad():
        fooled = net(found.x_adv[0]).argmax(1) != net(colours[0]).argmax(1)
    claimed = found.first_success[0] >= 0
    assert claimed.any()
    assert fooled[claimed].all()


def test_transformations_belong_to_the_plan_and_are_refused_where_nothing_follows_them() -> None:
    def plan(name: str, **more: Any) -> AttackEntry:
        raw = {"name": name, "norm": "linf", "eps": [0.1], **more}
        return parse_attack(raw, "here")

    facts = ModelFacts(10, (1, 28, 28), 8, "model", "data")
    tasks = [
        plan_task("net", plan("bim", **more), facts, 0, "independent")
        for more in ({}, {"transforms": {"diversity": 0.5}}, {"transforms": {"diversity": 0.6}})
    ]
    assert len({task.cells[0].identity for task in tasks}) == 3
    assert [task.cells[0].passes for task in tasks] == [10, 20, 20]
    assert "transforms" not in tasks[0].cells[0].settings
    for name in ("square", "autoattack"):
        with pytest.raises(bench.SuiteError, match="only iterative attacks that follow gradients"):
            plan(name, transforms={"scales": 2})
    with pytest.raises(bench.SuiteError, match="did you mean 'scales'"):
        plan("bim", transforms={"scale": 2})
    with pytest.raises(bench.SuiteError, match="expected an odd size, or 0 for none, got 4"):
        plan("bim", transforms={"translation": 4})
