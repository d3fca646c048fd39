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
NORMS: tuple[types.BallNorm, ...] = ("linf", "l2")
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


class Block(nn.Module):
    """A residual block with batch norm, in place where torchvision's is."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for _ in range(2))
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.norms[0](self.first(x)))
        out = self.norms[1](self.second(out))
        out += self.shortcut(x)
        return self.relu(out)


class Dense(nn.Module):
    """Concatenations, a difference, a constant added and the same branch twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(5, 3, 3, padding=1)
        self.third, self.last = nn.Conv2d(8, 4, 1), nn.Linear(4 + 144, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.cat([x, self.first(x).relu()], 1)
        b = torch.cat((self.second(a).relu() - self.first(x), a), dim=-3)
        pooled = self.third(b + 0.25).relu().mean((2, 3))
        pooled = pooled + pooled
        return self.last(torch.cat([pooled, x.flatten(1)], dim=1))


def nets(generator: torch.Generator) -> list[nn.Module]:
    """Small nets of every layer that has bounds, with random weights: chains, then graphs."""
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
        nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), Block(3, 3, 1), Block(3, 4, 2),
            nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(4, 4),
        ),
        Dense(),
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


def projected(point: Tensor, x: Tensor, eps: float, norm: types.BallNorm) -> Tensor:
    """The point moved into the ball around x; one inside the box stays there."""
    if norm == "linf":
        return torch.minimum(torch.maximum(point, (x - eps).clamp_min(0)), (x + eps).clamp_max(1))
    moved = point.clamp(0, 1) - x
    length = moved.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return x + moved * (eps / length.clamp_min(1e-12)).clamp_max(1)


def ascended(
    net: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, eps: float,
    norm: types.BallNorm = "linf",
) -> Tensor:  # fmt: skip
    """Images in the region at which gradient steps have brought the label's lead down."""
    there = x.clone()
    for _ in range(20):
        there = there.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(functional.cross_entropy(net(there), y), there)
        step = gradient.sign()
        if norm == "l2":
            step = gradient / gradient.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
        there = projected(there + eps / 6 * step, x, eps, norm)
    return there.detach()


def leads(logits: Tensor, y: Tensor) -> Tensor:
    """z_y - z_k for each k but y, (n, classes - 1)."""
    others = torch.arange(logits.shape[1]) != y[:, None]
    return (logits.gather(1, y[:, None]) - logits)[others].view(len(y), -1)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", range(6))
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("norm", NORMS)
def test_no_image_of_the_region_lies_below_a_bound(
    seed: int, kind: int, method: types.BoundMethod, norm: types.BallNorm
) -> None:
    generator, x = draw_images(seed)
    net = nets(generator)[kind]
    layers = read(net)
    y = net(x.float()).argmax(1)
    for eps in (0.003, 0.03, 0.2):
        inside = certification_bounds.input_region(x, eps, norm)
        bounds = certification_bounds.margin_bounds(layers, inside, y, method)
        corners = torch.rand(15, *x.shape, generator=generator, dtype=x.dtype).round()
        for share in (*torch.rand(10, *x.shape, generator=generator, dtype=x.dtype), *corners):
            point = projected(inside.low + share * (inside.high - inside.low), x, eps, norm)
            assert (leads(forward(layers, point), y) >= bounds - 1e-9).all()
        worst = ascended(lambda z: forward(layers, z), x, y, eps, norm)
        assert (leads(forward(layers, worst), y) >= bounds - 1e-9).all()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", range(6))
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


@pytest.mark.parametrize("kind", range(6))
@pytest.mark.parametrize("norm", NORMS)
def test_crown_is_nowhere_looser_than_intervals_and_bounds_fall_as_eps_grows(
    kind: int, norm: types.BallNorm
) -> None:
    generator, x = draw_images(3)
    layers, y = read(nets(generator)[kind]), torch.tensor([0, 1, 2, 3, 0, 1])
    before = leads(forward(layers, x), y)
    tighter = 0
    for eps in (0.0, 0.001, 0.01, 0.05, 0.2):
        ibp, crown = (
            certification_bounds.margin_bounds(
                layers, certification_bounds.input_region(x, eps, norm), y, m
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


# ------------------------------------------------------------------------------ graphs and L2 balls


class LinearGraph(nn.Module):
    """A linear map as branches that cancel in part: x A' - (x A' + x B') + [x, x] C'."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(144, 144), nn.Linear(144, 144)
        self.c, self.last = nn.Linear(288, 144), nn.Linear(144, 3)
        with torch.no_grad():
            for value in self.parameters():
                value.copy_(torch.randn(value.shape, generator=generator) / 12)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        a = self.a(x)
        return self.last(a - (a + self.b(x)) + self.c(torch.cat([x, x], 1)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("norm", NORMS)
def test_on_a_linear_graph_the_bound_is_the_minimum_over_the_ball(
    method: types.BoundMethod, norm: types.BallNorm
) -> None:
    generator, x = draw_images(5)
    net = LinearGraph(generator).double()
    x, y = 0.3 + 0.4 * x, torch.tensor([0, 1, 2, 0, 1, 2])  # the balls are inside the box
    shape = (1, *SHAPE)
    offset = net(torch.zeros(shape, dtype=x.dtype))[0]
    weight = (net(torch.eye(144, dtype=x.dtype).view(-1, *SHAPE)) - offset).T  # (classes, 144)
    for eps in (0.0, 0.01, 0.25):
        found = margins(net, certification_bounds.input_region(x, eps, norm), y, method)
        for row, label in enumerate(y.tolist()):
            others = [k for k in range(3) if k != label]
            w = weight[label] - weight[others]
            dual = w.abs().sum(1) if norm == "linf" else w.norm(dim=1)
            expected = w @ x[row].flatten() + offset[label] - offset[others] - eps * dual
            assert torch.allclose(found[row], expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_first_layer_is_bounded_by_the_norms_of_its_rows_in_an_l2_ball(
    method: types.BoundMethod,
) -> None:
    generator, x = draw_images(6)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(),
        nn.Linear(216, 2),
    ).double().eval()  # fmt: skip
    with torch.no_grad():
        net[0].weight.copy_(torch.randn(net[0].weight.shape, generator=generator))
        net[1].running_var.fill_(4.0)
        # With this last layer the margin of class 0 is one value behind the ReLU, and its bound
        # that of the value.
        net[4].weight.zero_()
        net[4].weight[0, 100] = 1.0
        net[4].bias.zero_()
        net[1].bias.fill_(20.0)
    eps, y = 0.2, torch.zeros(6, dtype=torch.int64)
    value = net[1](net[0](x)).flatten(1)[:, 100]
    start = torch.full_like(x, 0.5, requires_grad=True)
    (row,) = torch.autograd.grad(net[1](net[0](start)).flatten(1)[0, 100], start)
    found = margins(net, certification_bounds.input_region(0.3 + 0.4 * x, eps, "l2"), y, method)
    value = net[1](net[0](0.3 + 0.4 * x)).flatten(1)[:, 100]
    assert torch.allclose(found[:, 0], value - eps * row.norm(), atol=1e-9, rtol=0)


def test_an_l2_ball_is_certified_further_than_the_box_around_it() -> None:
    generator, x = draw_images(7, n=20)
    layers = read(nets(generator)[4])
    y = forward(layers, x).argmax(1)
    counts = [
        int((certification_bounds.certified_margins(
            layers, certification_bounds.input_region(x, 0.05, norm), y, "crown") > 0).sum())
        for norm in NORMS
    ]  # fmt: skip
    assert counts[0] < counts[1]


@pytest.mark.parametrize("kind", [4, 5])
def test_rounding_covers_what_float32_does_to_a_graph(kind: int) -> None:
    generator, x = draw_images(8, n=50)
    net, images = nets(generator)[kind], x.float()
    layers = read(net)
    values = [images.double()] + [
        forward(layers[: k + 1], images.double()) for k in range(len(layers))
    ]
    bounds = [certification_bounds.Bounds(each, each) for each in values]
    off = certification_bounds.rounding_error(layers, bounds)
    with torch.no_grad():
        measured = (net(images).double() - values[-1]).abs()
    assert (measured <= off).all()
    assert float(measured.max()) > 1e-9
    assert (off < 0.01 * values[-1].abs().amax()).all()  # of use


def test_a_sum_of_two_exact_branches_rounds_once() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x + x).flatten(1)

    layers = network.read_network(Twice(), SHAPE)
    point = certification_bounds.input_region(torch.full((1, *SHAPE), 0.75).double(), 0.0)
    off = certification_bounds.rounding_error(layers[:1], [point])
    assert torch.allclose(off, torch.full_like(off, 1.5 * 2.0**-24), rtol=1e-6, atol=0)


def test_forms_that_do_not_fit_into_memory_at_once_have_the_same_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator, x = draw_images(9)
    layers, y = read(nets(generator)[4]), torch.tensor([0, 1, 2, 3, 0, 1])
    region = certification_bounds.input_region(x, 0.01)
    whole = certification_bounds.certified_margins(layers, region, y, "crown")
    monkeypatch.setattr(certification_bounds, "MAX_BYTES", 1)
    assert torch.allclose(
        certification_bounds.certified_margins(layers, region, y, "crown"), whole, atol=1e-9
    )


def test_a_branch_that_the_output_does_not_read_is_left_out() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(144, 3), nn.Linear(144, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            self.second(x).relu()
            return self.first(x)

    assert len(network.read_network(Auxiliary(), SHAPE)) == 2


# -------------------------------------------------------------------------------- what is refused


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


class Overwriting(nn.Module):
    """Reads the input of a ReLU that works in place."""

    def forward(self, x: Tensor) -> Tensor:
        x = x - 0.5
        return (functional.relu(x.flatten(1), inplace=True).view(-1, 144) + x.flatten(1)) * 1.0


class Broadcasting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x + x.mean((2, 3), keepdim=True)).flatten(1)


class Splitting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)[0], x
        return (first + second).flatten(1)


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
    (Overwriting(), "flatten .*reads a value that was overwritten in place"),
    (Broadcasting(), "add .*combines branches of different shapes"),
    (Splitting(), "no bounds for chunk"),
    (nn.Sequential(nn.AdaptiveAvgPool2d(4)), r"AdaptiveAvgPool2d \(0\) averages over windows of"),
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
