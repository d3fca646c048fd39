"""Attacks that ask for labels alone, held to what a search by labels owes."""

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.attacks import surfree
from bench.attacks.common import MOST_STARTS
from bench.core import registry
from bench.core.contracts.attack import AttackSpec, ExternalAttack
from bench.core.contracts.rule import AttackBatch
from bench.core.contracts.types import Norm, Threat
from bench.core.errors import SuiteError
from bench.core.rng import Noise, hash_normal
from bench.engine import stream
from bench.engine.functional import norms
from bench.models.query_only import QueryOnlyModel
from bench.suite.identity import collect_settings
from bench.suite.reader import parse_attack

Linear = Callable[[Tensor, Tensor], nn.Module]
SEARCHES: list[tuple[str, Norm]] = [
    ("hopskipjump", "l2"),
    ("hopskipjump", "linf"),
    ("surfree", "l2"),
    ("rays", "linf"),
]
search = pytest.mark.parametrize(("name", "norm"), SEARCHES)


def attack(
    net: nn.Module, x: Tensor, y: Tensor, name: str, norm: Norm, *, rows: int = 64, **settings: Any
) -> stream.StreamResult:
    found = registry.find("attacks", name)
    params = found.params(**settings.pop("params", {"steps": 200}))
    spec = AttackSpec(
        name=name, attack=found, params=params, norm=norm, eps=(torch.inf,), stop="never",
        **settings,
    )  # fmt: skip
    return stream.run_attack(net, spec, x, y, torch.arange(len(x)), rows)


def images(n: int = 12, channels: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return 0.3 + 0.4 * torch.rand(n, channels, 6, 6, generator=generator)


@pytest.fixture
def plane(linear: Linear) -> nn.Module:
    """Two classes on the two sides of a plane through grey, of 36 pixels that all matter."""
    w = torch.arange(20.0, 128.0, 3.0) / 64 * torch.tensor([1.0, -1.0, 1.0]).repeat(12)
    b = float(-w.sum()) / 2
    net = linear(torch.stack([-w / 2, w / 2]), torch.tensor([-b / 2, b / 2]))
    return net.requires_grad_(False)


def plane_distance(net: nn.Module, x: Tensor, norm: Norm) -> Tensor:
    """Distance of the plane: |score| / ||w|| in the dual norm."""
    with torch.no_grad():
        logits, w = net(x), net(torch.eye(36).view(36, 1, 6, 6)) - net(torch.zeros(1, 1, 6, 6))
    slope = (w[:, 1] - w[:, 0]).norm(p=1 if norm == "linf" else 2)
    return (logits[:, 1] - logits[:, 0]).abs() / slope


@search
def test_a_search_approaches_the_plane_between_two_classes(
    name: str, norm: Norm, plane: nn.Module
) -> None:
    # The plane's normal has high frequencies, which SurFree leaves out by default.
    wide = {"frequencies": 0.99} if name == "surfree" else {}
    x = images(6)
    y = plane(x).argmax(1)
    found = attack(plane, x, y, name, norm, params={"steps": 600, **wide})
    far, least = norms.distance(found.x_adv[0], x, norm), plane_distance(plane, x, norm)
    assert (plane(found.x_adv[0]).argmax(1) != y).all()
    assert (far >= least * (1 - 1e-3)).all()
    assert (far / least).median() < 1.6


@search
def test_a_search_reads_labels_alone(name: str, norm: Norm, plane: nn.Module) -> None:
    x = images()
    y = plane(x).argmax(1)
    labels = QueryOnlyModel("labels", plane, "labels", 2)
    shown, hidden = (attack(net, x, y, name, norm) for net in (plane, labels))
    assert torch.equal(shown.x_adv, hidden.x_adv)
    assert not (shown.x_adv[0] == x).flatten(1).all(1).any()


@search
def test_a_model_with_one_class_for_all_images_leaves_the_image_itself(
    name: str, norm: Norm, linear: Linear
) -> None:
    flat = linear(torch.zeros(3, 36), torch.zeros(3)).requires_grad_(False)  # all logits tie
    x = images(3)
    found = attack(flat, x, torch.zeros(3, dtype=torch.int64), name, norm, params={"steps": 90})
    assert torch.equal(found.x_adv[0], x)
    assert (found.first_success == -1).all()
    assert (found.forwards == 90).all()


@search
def test_a_model_that_takes_every_image_for_adversarial_gives_finite_images(
    name: str, norm: Norm, linear: Linear
) -> None:
    flat = linear(torch.zeros(3, 36), torch.zeros(3)).requires_grad_(False)
    x = images(3)
    found = attack(flat, x, torch.ones(3, dtype=torch.int64), name, norm)
    assert found.x_adv.isfinite().all()
    assert found.x_adv.min() >= 0
    assert found.x_adv.max() <= 1


@search
def test_an_example_does_not_depend_on_the_rows_of_a_pass(
    name: str, norm: Norm, plane: nn.Module
) -> None:
    x = images(7)
    y = plane(x).argmax(1)
    many, few = (attack(plane, x, y, name, norm, rows=rows, budgets=(50, 200)) for rows in (7, 2))
    assert torch.allclose(many.x_adv, few.x_adv, rtol=0, atol=1e-5)
    assert torch.allclose(many.nearest, few.nearest, rtol=0, atol=1e-5)


@search
def test_images_of_several_channels_and_odd_sizes_stay_in_the_box(name: str, norm: Norm) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(4, 3, 5, 7, generator=generator).round(decimals=1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(105, 4)).requires_grad_(False)
    y = net(x).argmax(1)
    found = attack(net, x, y, name, norm)
    assert found.x_adv.min() >= 0
    assert found.x_adv.max() <= 1
    assert (net(found.x_adv[0]).argmax(1) != y).any()


def test_rays_turns_every_block_down_to_single_entries(linear: Linear) -> None:
    asked: list[Tensor] = []

    class Watched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            asked.append(x.clone())
            return torch.zeros(len(x), 2)

    x = torch.full((1, 1, 2, 2), 0.5)
    attack(Watched(), x, torch.zeros(1, dtype=torch.int64), "rays", "linf", params={"steps": 8})
    signs = [(image[0, 0].flatten() * 2 - 1).int().tolist() for image in asked]
    assert signs == [
        [-1, -1, -1, -1], [1, 1, 1, 1], [1, 1, -1, -1], [-1, -1, 1, 1], [1, -1, -1, -1],
        [-1, 1, -1, -1], [-1, -1, 1, -1], [-1, -1, -1, 1],
    ]  # fmt: skip


def test_directions_of_surfree_are_orthogonal_to_u_of_length_1_and_of_low_frequencies() -> None:
    x, zero = images(5, 3), torch.zeros(5, dtype=torch.int64)
    batch = AttackBatch(x, zero, zero, torch.ones(5), zero, zero - 1, zero, torch.ones(5))
    u = torch.rand(5, 3, 6, 6, generator=torch.Generator().manual_seed(2))
    v = surfree.draw_direction(torch.arange(5), batch, u, 0.5)
    assert torch.allclose(v.flatten(1).norm(dim=1), torch.ones(5), atol=1e-5)
    assert torch.allclose((u * v).flatten(1).sum(1), torch.zeros(5), atol=1e-5)
    free = surfree.draw_direction(torch.arange(5), batch, torch.zeros_like(u), 0.5)
    cosines = surfree.make_cosines(6, torch.float32, torch.device("cpu"))
    high = (cosines @ free @ cosines.T)[:, :, 3:]
    assert torch.allclose(high, torch.zeros_like(high), atol=1e-6)


def test_the_cosine_transform_is_orthonormal_and_a_constant_has_one_frequency() -> None:
    cosines = surfree.make_cosines(8, torch.float64, torch.device("cpu"))
    assert torch.allclose(cosines @ cosines.T, torch.eye(8, dtype=torch.float64), atol=1e-12)
    first = torch.eye(8, dtype=torch.float64)[0]
    assert torch.allclose(cosines @ torch.ones(8, dtype=torch.float64), 8**0.5 * first)


def test_normal_draws_have_the_moments_of_the_distribution_and_are_finite() -> None:
    draws = hash_normal(torch.arange(40), torch.arange(40), 5000).double()
    assert draws.isfinite().all()
    n = draws.numel()
    assert abs(draws.mean()) < 5 / math.sqrt(n)
    assert abs(draws.square().mean() - 1) < 5 * math.sqrt(2 / n)
    assert abs((draws < 1).double().mean() - 0.841345) < 5 * 0.366 / math.sqrt(n)


# ------------------------------------------------------------------------ starts of other libraries

STARTED = [
    pytest.param(
        library, name, settings,
        marks=pytest.mark.skipif(
            importlib.util.find_spec(library) is None, reason=f"{library} is not installed here"
        ),
    )
    for library, name, settings in [
        ("foolbox", "HopSkipJumpAttack", {"steps": 1, "initial_gradient_eval_steps": 5}),
        ("foolbox", "BoundaryAttack", {"steps": 3}),
        ("art", "HopSkipJump", {"max_iter": 1, "max_eval": 20, "init_eval": 5}),
        ("art", "BoundaryAttack", {"max_iter": 2, "num_trial": 2, "sample_size": 2}),
    ]
]  # fmt: skip


class Corner(nn.Module):
    """Class 1 if the corner is bright, which few random images are; notes what it is asked."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold, self.asked = threshold, list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        self.asked.extend(x.detach().clone())
        score = x[:, 0, :6, :6].mean((1, 2)) - self.threshold
        return torch.stack([-score, score], 1)


def ask(library: str, name: str, settings: dict[str, Any], net: nn.Module, x: Tensor) -> Tensor:
    found = registry.find("attacks", f"{library}:{name}")
    assert isinstance(found, ExternalAttack)
    params = found.params(**settings, start="hopskipjump")
    ids, zeros = torch.arange(len(x)) + 3, torch.zeros(len(x), dtype=torch.int64)
    noise = Noise(0, f"{library}:{name}", ids, zeros)
    return found.run(net.eval(), x, zeros, Threat(norm="l2", eps=1.0), params, noise)


@pytest.mark.parametrize(("library", "name", "settings"), STARTED)
def test_an_attack_of_a_library_starts_at_the_image_of_hopskipjump_after_as_many_queries(
    library: str, name: str, settings: dict[str, Any]
) -> None:
    x, ids = torch.full((1, 1, 12, 12), 0.1), torch.tensor([3])
    ours, theirs = Corner(0.7), Corner(0.7)
    found = registry.find("attacks", "hopskipjump")
    spec = AttackSpec(
        name="hopskipjump", attack=found, params=found.params(steps=60), norm="l2",
        eps=(torch.inf,), stop="never",
    )  # fmt: skip
    stream.run_attack(ours, spec, x, torch.zeros(1, dtype=torch.int64), ids, 1)
    x_adv = ask(library, name, settings, theirs, x)
    first = next(at for at, image in enumerate(ours.asked) if image[0, :6, :6].mean() > 0.7)
    assert first > 1  # so that the order of the draws is compared, too
    before = 1 if library == "art" else 0  # the adapter asks for the number of classes
    start = theirs.asked[before : before + first + 1]
    assert all(torch.equal(*pair) for pair in zip(ours.asked, start, strict=False))
    assert len(start) == first + 1
    assert Corner(0.7)(x_adv).argmax(1).tolist() == [1]
    assert (x_adv - x).norm() <= (start[-1] - x[0]).norm()


@pytest.mark.parametrize(("library", "name", "settings"), STARTED)
def test_without_a_start_the_clean_image_comes_back_after_a_limited_number_of_queries(
    library: str, name: str, settings: dict[str, Any]
) -> None:
    x, flat = torch.full((2, 1, 12, 12), 0.1), Corner(2.0)
    assert torch.equal(ask(library, name, settings, flat, x), x)
    assert 2 * MOST_STARTS <= len(flat.asked) <= 2 * MOST_STARTS + 4


@pytest.mark.parametrize(("library", "name", "settings"), STARTED)
def test_the_start_belongs_to_the_settings_of_a_cell_only_where_it_is_set(
    library: str, name: str, settings: dict[str, Any]
) -> None:
    def collect(**given: str) -> dict[str, Any]:
        keys = {"name": f"{library}:{name}", "norm": "l2", "eps": [1], "params": given}
        entry = parse_attack(keys, "test")
        spec = AttackSpec(
            name=entry.name, attack=entry.attack, params=entry.params, norm="l2", eps=(1.0,),
            stop="never",
        )  # fmt: skip
        return collect_settings(spec, entry)

    assert "params.start" not in collect()
    assert collect(start="library") == collect()
    assert collect(start="hopskipjump")["params.start"] == "hopskipjump"
    with pytest.raises(SuiteError, match=r"params.start: .*'library' or 'hopskipjump'"):
        collect(start="hopskipjmp")
