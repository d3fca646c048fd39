"""Bounds: sound wherever one looks, exact where a formula is known, refused where none are."""

import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.core import registry
from bench.core.contracts import types
from bench.core.contracts.attack import AttackSpec
from bench.core.errors import SuiteError
from bench.engine import stream
from bench.evaluation.certification import bounds as certification_bounds
from bench.evaluation.certification import network
from bench.evaluation.certification.layers import Node, forward

METHODS: tuple[types.BoundMethod, ...] = ("ibp", "crown")
SHAPE = (2, 9, 8)


class FunctionalNet(nn.Module):
    """(x - mean) / std as a module of one's own, and a forward in functions."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.2, 0.4]).view(-1, 1, 1))
        self.conv = nn.Conv2d(2, 4, 3, padding="same")
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.conv((x - self.mean) / 0.3))
        x = functional.max_pool2d(x, 2)
        x = functional.dropout(x, 0.5, self.training)
        return self.body(x.view(x.size(0), -1))


def nets(generator: torch.Generator) -> list[nn.Module]:
    """Small nets of every layer that has bounds, with random weights."""
    made: list[nn.Module] = [
        nn.Sequential(nn.Flatten(), nn.Linear(144, 12), nn.ReLU(), nn.Linear(12, 4)),
        nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
            nn.AvgPool2d(2), nn.Conv2d(4, 6, 2, groups=2), nn.ReLU(), nn.Flatten(),
            nn.Dropout(0.3), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4),
        ),
        nn.Sequential(
            nn.Conv2d(2, 5, 3), nn.MaxPool2d(3, stride=2, padding=1), nn.Sequential(
                nn.Conv2d(5, 4, 2, dilation=2), nn.ReLU(), nn.Flatten()), nn.Linear(8, 9),
            nn.Identity(), nn.ReLU(), nn.Linear(9, 4),
        ),
        FunctionalNet(nn.Sequential(nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 4))),
    ]  # fmt: skip
    with torch.no_grad():
        for net in made:
            for value in (*net.parameters(), *net.buffers()):
                if value.is_floating_point():
                    drawn = torch.rand(value.shape, generator=generator)
                    value.copy_(drawn + 0.5 if value.dim() == 1 else (drawn - 0.5))
            if isinstance(net, FunctionalNet):
                net.mean.fill_(0.3)
    return [net.eval() for net in made]


def read(net: nn.Module, shape: tuple[int, ...] = SHAPE) -> tuple[Node, ...]:
    sample = torch.full((2, *shape), 0.5)
    return network.read_network_in_double(net, sample)


@torch.no_grad()
def margins(
    net: nn.Module,
    inside: certification_bounds.Region,
    y: Tensor,
    method: types.BoundMethod,
) -> Tensor:
    return certification_bounds.margin_bounds(network.read_network(net, SHAPE), inside, y, method)


def draw_images(seed: int, n: int = 6) -> tuple[torch.Generator, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return generator, torch.rand(n, *SHAPE, generator=generator, dtype=torch.float64)


def ascended(net: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Images in the region at which sign steps have brought the label's lead down."""
    low, high = (x - eps).clamp_min(0), (x + eps).clamp_max(1)
    there = x.clone()
    for _ in range(20):
        there = there.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(functional.cross_entropy(net(there), y), there)
        there = torch.minimum(torch.maximum(there + eps / 6 * gradient.sign(), low), high)
    return there.detach()


def leads(logits: Tensor, y: Tensor) -> Tensor:
    """z_y - z_k for each k but y, (n, classes - 1)."""
    others = torch.arange(logits.shape[1]) != y[:, None]
    return (logits.gather(1, y[:, None]) - logits)[others].view(len(y), -1)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("method", METHODS)
def test_no_image_of_the_region_lies_below_a_bound(
    seed: int, kind: int, method: types.BoundMethod
) -> None:
    generator, x = draw_images(seed)
    net = nets(generator)[kind]
    layers = read(net)
    y = net(x.float()).argmax(1)
    for eps in (0.003, 0.03, 0.2):
        inside = certification_bounds.input_region(x, eps)
        bounds = certification_bounds.margin_bounds(layers, inside, y, method)
        corners = torch.rand(15, *x.shape, generator=generator, dtype=x.dtype).round()
        for share in (*torch.rand(10, *x.shape, generator=generator, dtype=x.dtype), *corners):
            point = inside.low + share * (inside.high - inside.low)
            assert (leads(forward(layers, point), y) >= bounds - 1e-9).all()
        worst = ascended(lambda z: forward(layers, z), x, y, eps)
        assert (leads(forward(layers, worst), y) >= bounds - 1e-9).all()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", range(4))
def test_a_certified_example_is_not_broken_in_float32(seed: int, kind: int) -> None:
    generator, x = draw_images(seed + 100, n=10)
    net = nets(generator)[kind]
    images = x.float()
    y, layers = net(images).argmax(1), read(net)
    certified = 0
    for eps in (1e-4, 1e-3, 0.01, 0.05):
        found = (
            certification_bounds.certified_margins(
                layers, certification_bounds.input_region(images.double(), eps), y, "crown"
            )
            > 0
        )
        certified += int(found.sum())
        with torch.enable_grad():
            worst = ascended(net, images, y, eps)
        assert (net(worst).argmax(1) == y)[found].all()
    assert certified > 0


@pytest.mark.parametrize("method", METHODS)
def test_on_a_linear_net_the_bound_is_what_the_best_attack_reaches(
    method: types.BoundMethod,
) -> None:
    generator, x = draw_images(1)
    weight = torch.randn(3, 144, generator=generator, dtype=torch.float64)
    net = nn.Sequential(nn.Flatten(), nn.Linear(144, 3)).double()
    with torch.no_grad():
        net[1].weight.copy_(weight)
        bias = net[1].bias.clone()
    x[0], x[1, 0] = 0.0, 1.0  # at the walls of the box
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    for eps in (0.0, 0.01, 0.3, 1.0):
        found = margins(net, certification_bounds.input_region(x, eps), y, method)
        for row, label in enumerate(y.tolist()):
            others = [k for k in range(3) if k != label]
            for place, k in enumerate(others):
                w = weight[label] - weight[k]
                flat = x[row].flatten()
                room = torch.where(w > 0, flat, 1 - flat).clamp_max(eps)
                expected = w @ flat + bias[label] - bias[k] - (w.abs() * room).sum()
                assert float(found[row, place]) == pytest.approx(float(expected), abs=1e-9)


def test_where_no_relu_can_change_its_mind_crown_is_exact() -> None:
    generator, x = draw_images(2)
    net = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        for layer in (net[1], net[3]):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / 9)
        net[1].bias.copy_(torch.tensor([20.0] * 5 + [-20.0] * 3))  # five are on, three are off
    on = (net[1].bias > 0).double()
    w = net[3].weight @ (on[:, None] * net[1].weight)
    b = net[3].bias + net[3].weight @ (on * net[1].bias)
    y = torch.zeros(6, dtype=torch.int64)
    found = margins(net, certification_bounds.input_region(x, 0.1), y, "crown")
    for k in (1, 2):
        lead, flat = w[0] - w[k], x.flatten(1)
        room = torch.where(lead > 0, flat, 1 - flat).clamp_max(0.1)
        expected = flat @ lead + b[0] - b[k] - room @ lead.abs()
        assert torch.allclose(found[:, k - 1], expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", range(4))
def test_crown_is_nowhere_looser_than_intervals_and_bounds_fall_as_eps_grows(kind: int) -> None:
    generator, x = draw_images(3)
    layers, y = read(nets(generator)[kind]), torch.tensor([0, 1, 2, 3, 0, 1])
    before = leads(forward(layers, x), y)
    tighter = 0
    for eps in (0.0, 0.001, 0.01, 0.05, 0.2):
        ibp, crown = (
            certification_bounds.margin_bounds(
                layers, certification_bounds.input_region(x, eps), y, m
            )
            for m in METHODS
        )
        if eps == 0:
            assert torch.allclose(ibp, before, atol=1e-9)
            assert torch.allclose(crown, before, atol=1e-9)
        assert (crown >= ibp - 1e-9).all()
        assert (ibp <= before + 1e-9).all()
        tighter += int((crown > ibp + 1e-6).sum())
        before = ibp
    assert tighter > 0


def test_a_certificate_does_not_depend_on_what_is_certified_beside_it(
    lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = (part[:2] for part in digits)
    layers, inside = (
        network.read_network_in_double(lenet, x),
        certification_bounds.input_region(x.double(), 0.005),
    )
    together = certification_bounds.certified_margins(layers, inside, y, "crown")
    alone = [
        certification_bounds.certified_margins(layers, inside.select(row), y[row], "crown")
        for row in (slice(0, 1), slice(1, 2))
    ]
    assert torch.allclose(torch.cat(alone), together, atol=1e-9)


def test_the_shipped_attacks_break_no_certified_digit(
    lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = (part[:6] for part in digits)
    layers, eps = network.read_network_in_double(lenet, x), 0.005
    region = certification_bounds.input_region(x.double(), eps)
    certified = certification_bounds.certified_margins(layers, region, y, "crown") > 0
    assert int(certified.sum()) > 3
    for name in ("fgsm", "pgd", "apgd"):
        attack = registry.find("attacks", name)
        steps = {} if name == "fgsm" else {"steps": 20}
        spec = AttackSpec(
            name=name, attack=attack, params=attack.params(**steps), norm="linf", eps=(eps, 0.2),
            stop="never", seed=0,
        )  # fmt: skip
        x_adv = stream.run_attack(lenet, spec, x, y, torch.arange(6), rows=6).x_adv
        with torch.no_grad():
            near, far = (lenet(each).argmax(1) == y for each in x_adv)
        assert near[certified].all()
        assert not far[certified].all()  # the attack works


def test_rounding_covers_what_float32_does_to_the_logits(
    lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x = digits[0][:50]
    layers = network.read_network_in_double(lenet, x[:1])
    point = certification_bounds.input_region(x.double(), 0.0)
    bounds = [point]
    for k in range(len(layers)):
        at = forward(layers[: k + 1], x.double())
        bounds.append(certification_bounds.Bounds(at, at))
    off = certification_bounds.rounding_error(layers, bounds).detach()
    with torch.no_grad():
        measured = (lenet(x).double() - bounds[-1].low).abs()
    assert (measured <= off).all()
    assert float(measured.max()) > 1e-7
    assert float(off.max()) < 1.0  # of use: logits of the digits are tens


def test_a_relu_that_is_surely_off_hands_no_rounding_on() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(144, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    _, x = draw_images(4)
    off = {}
    for bias in (-40.0, 40.0):
        with torch.no_grad():
            net[1].bias.fill_(bias)
            layers = network.read_network(net, SHAPE)
            bounds = [certification_bounds.input_region(x, 0.1)]
            for k in range(4):
                bounds.append(certification_bounds.propagate_interval(layers[k].layer, bounds[k]))
            off[bias] = certification_bounds.rounding_error(layers, bounds)
    assert torch.allclose(off[-40.0], 7 * 2.0**-24 * net[3].bias.detach().abs(), rtol=1e-5)
    assert (off[40.0] > 100 * off[-40.0]).all()


@pytest.mark.parametrize("window", [*itertools.product((1, 2, 3), (1, 2), (0, 1))])
def test_the_lines_of_max_pooling_hold_for_every_window(window: tuple[int, int, int]) -> None:
    kernel, stride, padding = window
    if 2 * padding > kernel:
        pytest.skip("torch pads by half a window at most")
    net = nn.Sequential(nn.MaxPool2d(kernel, stride, padding), nn.Flatten())
    generator, x = draw_images(7, n=3)
    outputs = net(x).shape[1]
    net.append(nn.Linear(outputs, 5).double())
    with torch.no_grad():
        net[2].weight.copy_(torch.randn(5, outputs, generator=generator))
    y, inside = torch.tensor([0, 1, 2]), certification_bounds.input_region(x, 0.2)
    found = margins(net.double(), inside, y, "crown")
    for share in torch.rand(30, *x.shape, generator=generator, dtype=x.dtype):
        point = inside.low + share.round() * (inside.high - inside.low)
        assert (leads(net(point), y) >= found - 1e-9).all()


# -------------------------------------------------------------------------------- what is refused


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(144, 144), nn.Linear(144, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.second(x + self.first(x))


class AlwaysDropping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, 0.5, training=True).flatten(1)


class Squaring(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * x).flatten(1)


class Wayward(nn.Module):
    """Answers otherwise in float64."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) + torch.ones((), dtype=x.dtype)[None]

    def double(self) -> nn.Module:
        return nn.Sequential(nn.Flatten())


REFUSED: Sequence[tuple[nn.Module, str]] = (
    (nn.Sequential(nn.Flatten(), nn.Softplus()), r"no bounds for Softplus \(1\)"),
    (nn.Sequential(nn.Conv2d(2, 3, 3, padding_mode="reflect")), r"Conv2d \(0\) pads with reflect"),
    (nn.Sequential(nn.MaxPool2d(2, ceil_mode=True)), r"MaxPool2d \(0\) pools with dilation"),
    (nn.Sequential(nn.AvgPool2d(2, ceil_mode=True)), r"AvgPool2d \(0\) averages over windows of"),
    (nn.Sequential(nn.Linear(8, 3)), r"no bounds for Linear \(0\)"),
    (nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False)), "keeps no running statistics"),
    (AlwaysDropping(), "no bounds for dropout"),
    (Squaring(), "mul reads what a layer gave on both sides"),
    (Branching(), "cannot be followed"),
    (Wayward(), "answer otherwise than the net"),
)


@pytest.mark.parametrize(("net", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_another_layer_is_refused_by_name(net: nn.Module, words: str) -> None:
    with pytest.raises(SuiteError, match=words):
        network.read_network_in_double(net.eval(), torch.full((1, *SHAPE), 0.5))


def test_maxout_is_refused_and_every_other_small_net_that_ships_is_read() -> None:
    for name in (each for each in registry.names("models") if each[-1] != ":"):
        found = registry.find("models", name)
        if found.shape != (1, 28, 28):
            continue
        net = found.build().eval()
        if name == "maxout":
            with pytest.raises(SuiteError, match=r"no bounds for unflatten \(in Maxout\)"):
                network.read_network_in_double(net, torch.full((1, 1, 28, 28), 0.5))
        else:
            assert len(network.read_network_in_double(net, torch.full((1, 1, 28, 28), 0.5))) >= 2


def test_reading_leaves_the_net_as_it_was(lenet: nn.Module) -> None:
    lenet.train()
    before = {key: value.clone() for key, value in lenet.state_dict().items()}
    network.read_network_in_double(lenet, torch.full((1, 1, 28, 28), 0.5))
    assert lenet.training
    assert all(torch.equal(value, before[key]) for key, value in lenet.state_dict().items())
