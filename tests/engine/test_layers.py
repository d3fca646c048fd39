"""Exchanged layers against the layers they stand for, in answers and in input gradients.

In float64, so that what differs is a mistake and not rounding; pooling is held to the bit.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from bench.engine.acceleration.block_gradient import BlockGradientConv
from bench.engine.acceleration.layers import MaxPoolReLU, fuse_layers
from bench.engine.acceleration.memory_layout import WIDE


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def seen(net: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """What `net` answers at x, and the gradient of a weighted sum of that with respect to x."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    answer = net(x)
    (gradient,) = torch.autograd.grad((answer * draw(*answer.shape, seed=9)).sum(), x)
    return answer.detach(), gradient


def lived(net: nn.Module) -> nn.Module:
    """`net` as if trained: float64, in evaluation mode, batch-norm with statistics of its own."""
    generator = torch.Generator().manual_seed(5)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.running_mean is not None:
            for value in (layer.running_mean, layer.running_var, layer.weight, layer.bias):
                if value is not None:
                    value.data.uniform_(0.5, 2.0, generator=generator)
    return net.double().eval()


def same(net: nn.Module, x: Tensor, on_cpu: bool = True) -> nn.Module:
    """The exchanged net, which answers and leads as `net` does at x to rounding."""
    own = fuse_layers(net, on_cpu)
    for ours, theirs in zip(seen(own, x), seen(net, x), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-10)
    return own


def kinds(net: nn.Module) -> list[str]:
    """Names of the layers of `net` that hold no others, each once."""
    return [type(layer).__name__ for layer in net.modules() if not list(layer.children())]


def conv(into: int = 2, out: int = 3, kernel: Any = 3, **keys: Any) -> nn.Conv2d:
    return nn.Conv2d(into, out, kernel, **keys)


# ------------------------------------------------------------------------------------ convolutions


@st.composite
def geometries(draws: st.DrawFn) -> tuple[dict[str, Any], tuple[int, int]]:
    """A convolution that can be turned, and an image's height and width."""
    kernel = draws(st.integers(1, 7))
    padding = draws(st.integers(0, kernel - 1))
    sides = st.integers(max(1, kernel - 2 * padding), kernel + 9)
    keys = {
        "in_channels": draws(st.integers(1, 4)),
        "out_channels": draws(st.integers(1, 3)),
        "kernel_size": kernel,
        "stride": draws(st.integers(1, 3)),
        "padding": padding,
        "bias": draws(st.booleans()),
    }
    return keys, (draws(sides), draws(sides))


@given(geometries())
@settings(max_examples=80)
def test_a_turned_convolution_is_the_convolution_for_every_geometry(geometry: Any) -> None:
    keys, sides = geometry
    net = nn.Sequential(nn.Conv2d(**keys)).double()
    x = draw(2, keys["in_channels"], *sides)
    own = same(net, x)
    assert type(own.get_submodule("0")) is BlockGradientConv
    assert torch.equal(own(x), net(x))


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_turned_convolution_reads_images_in_either_layout(stride: int) -> None:
    net = nn.Sequential(conv(3, 4, 5, stride=stride, padding=2)).double()
    same(net, draw(2, 3, 11, 8).contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_a_convolution_whose_padding_is_a_word_is_turned(padding: str, kernel: int) -> None:
    net = nn.Sequential(conv(1, 4, kernel, padding=padding)).double()
    own = same(net, draw(2, 1, 12, 9))
    assert type(own.get_submodule("0")) is BlockGradientConv


@pytest.mark.parametrize("sides", [(28, 28), (12, 28), (10, 13)])
def test_no_gradient_is_copied_into_a_larger_one_where_blocks_from_the_first_pixel_on_suffice(
    sides: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[Any] = []
    pad = functional.pad
    monkeypatch.setattr(functional, "pad", lambda *given: (copies.append(given), pad(*given))[1])
    net = nn.Sequential(conv(1, 4, padding=1)).double()
    same(net, draw(2, 1, *sides))
    assert len(copies) == (13 in sides)


class Twofold(nn.Conv2d):
    """A convolution that does more than one."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(
    "layer",
    [
        conv(dilation=2),
        conv(2, 4, groups=2),
        conv(kernel=4, padding="same"),
        conv(padding=1, padding_mode="reflect"),
        conv(kernel=(3, 5)),
        conv(stride=(1, 2)),
        conv(padding=(0, 1)),
        conv(kernel=1, padding=1),
        conv(kernel=3, padding=3),
        conv(5),
        Twofold(2, 3, 3),
    ],
    ids=lambda layer: f"{type(layer).__name__}{layer.extra_repr()}",
)
def test_a_convolution_that_cannot_be_turned_is_left_alone(layer: nn.Conv2d) -> None:
    net = nn.Sequential(layer).double()
    own = same(net, draw(2, layer.in_channels, 9, 9))
    assert not any(isinstance(each, BlockGradientConv) for each in own.modules())


def test_a_convolution_that_is_the_whole_model_is_left_alone() -> None:
    own = same(conv().double(), draw(2, 2, 6, 6))
    assert not any(isinstance(layer, BlockGradientConv) for layer in own.modules())


def test_on_a_gpu_no_convolution_is_turned_and_no_pooling_sliced() -> None:
    net = nn.Sequential(conv(), nn.MaxPool2d(2)).double()
    assert kinds(same(net, draw(2, 2, 8, 8), on_cpu=False)) == ["Conv2d", "MaxPool2d"]


# ----------------------------------------------------------------------------------------- pooling


def whole(low: int, high: int) -> Callable[..., Tensor]:
    def numbers(*shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randint(low, high, shape, generator=generator).double()

    return numbers


IMAGES: dict[str, Callable[..., Tensor]] = {
    "no ties": draw,
    "many ties": whole(-1, 2),
    "constant": lambda *shape: torch.full(shape, 0.5, dtype=torch.float64),
    "below 0": lambda *shape: -1 - whole(0, 2)(*shape),
    "both zeros": lambda *shape: 0.0 * (2 * whole(0, 2)(*shape) - 1),
    "zeros and less": lambda *shape: whole(-1, 1)(*shape) * 1.0,
}
KERNELS = {
    "2x2": nn.MaxPool2d(2),
    "3x3": nn.MaxPool2d(3, stride=2, padding=1),
    "overlap": nn.MaxPool2d(2, stride=1),
    "ceil": nn.MaxPool2d(2, ceil_mode=True),
    "dilated": nn.MaxPool2d(2, dilation=2),
    "odd": nn.MaxPool2d((2, 3), stride=(2, 1)),
}


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("clips", [True, False], ids=["relu", "bare"])
def test_pooling_gives_the_same_bits_and_sends_the_gradient_to_the_same_entry(
    images: str, kernel: str, clips: bool
) -> None:
    pool = KERNELS[kernel]
    ours = MaxPoolReLU(pool, clips, on_cpu=True)
    assert ours.by_slices == (kernel == "2x2")
    for channels in (2, WIDE):
        for sides in ((6, 8), (7, 8), (6, 5), (7, 5), (4, 4)):
            x = IMAGES[images](2, channels, *sides)
            for at in (x, x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3)):
                answer, gradient = seen(ours, at)
                wanted, pulled = seen(lambda x: pool(x.relu() if clips else x), at)
                assert torch.equal(answer, wanted)
                assert torch.equal(ours(at), wanted)  # where no gradient is asked for
                assert torch.equal(gradient, pulled)


@given(
    st.lists(st.sampled_from([-1.0, -0.0, 0.0, 0.5, 1.0]), min_size=4, max_size=4), st.booleans()
)
def test_every_window_of_four_is_pooled_as_torch_pools_it(values: list[float], clips: bool) -> None:
    x = torch.tensor(values).double().view(1, 1, 2, 2)
    answer, gradient = seen(MaxPoolReLU(nn.MaxPool2d(2), clips, on_cpu=True), x)
    wanted, pulled = seen(lambda x: functional.max_pool2d(x.relu() if clips else x, 2), x)
    assert torch.equal(answer, wanted)
    assert torch.equal(gradient, pulled)


@pytest.mark.parametrize("clips", [True, False], ids=["relu", "bare"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_value_that_is_not_finite_is_passed_on_and_spoils_no_other_window(
    value: float, clips: bool
) -> None:
    ours, pool = MaxPoolReLU(nn.MaxPool2d(2), clips, on_cpu=True), nn.MaxPool2d(2)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        x = draw(2, 3, 6, 6)
        x[0, 1, 2 + row, 2 + column] = value
        answer, gradient = seen(ours, x)
        wanted, pulled = seen(lambda x: pool(x.relu() if clips else x), x)
        assert torch.equal(answer.nan_to_num(7), wanted.nan_to_num(7))
        assert gradient.isfinite().all()
        if value == value:
            assert torch.equal(gradient, pulled)
        gradient[0, 1, 2:4, 2:4] = pulled[0, 1, 2:4, 2:4] = 0  # a NaN's own window is lost
        assert torch.equal(gradient, pulled)


def test_sliced_pooling_works_in_bfloat16() -> None:
    x = draw(2, 3, 6, 6).bfloat16()
    answer, gradient = seen(MaxPoolReLU(nn.MaxPool2d(2), True, on_cpu=True), x)
    wanted, pulled = seen(lambda x: functional.max_pool2d(x.relu(), 2), x)
    assert torch.equal(answer, wanted)
    assert torch.equal(gradient, pulled)


# ---------------------------------------------------------------------------------- pairs of layers


class Through(nn.Module):
    """Two convolutions, and between them what `middle` makes of the first one's output."""

    def __init__(self, middle: Callable[..., Tensor]) -> None:
        super().__init__()
        self.first, self.last = conv(1, 4, padding=1), conv(4, 5)
        self.norm, self.relu, self.pool = nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)
        self.indexed, self.dropout = nn.MaxPool2d(2, return_indices=True), nn.Dropout(0.5)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self, self.first(x))).flatten(1)


POOLED_FIRST = {
    "layers": lambda net, z: net.pool(net.relu(z)),
    "torch.relu": lambda net, z: net.pool(torch.relu(z)),
    "F.relu": lambda net, z: functional.max_pool2d(functional.relu(z), 2),
    "in place": lambda net, z: functional.max_pool2d(functional.relu(z, inplace=True), (2, 2)),
    "method": lambda net, z: torch.max_pool2d(z.relu(), 2),
    "method in place": lambda net, z: functional.max_pool2d(z.relu_(), kernel_size=2, stride=2),
    "3x3": lambda net, z: functional.max_pool2d(z.relu(), 3, stride=2, padding=1),
    "positions": lambda net, z: functional.max_pool2d(z.relu(), 3, 2, 1, 1, True),
    "torch, positions": lambda net, z: torch.max_pool2d(z.relu(), 3, 2, 1, 1, True),
    "no indices": lambda net, z: functional.max_pool2d(z.relu(), 2, return_indices=False),
    "after batch-norm": lambda net, z: net.pool(net.relu(net.norm(z))),
}


@pytest.mark.parametrize("how", POOLED_FIRST)
@pytest.mark.parametrize("on_cpu", [True, False])
def test_relu_and_pooling_become_pooling_and_relu_however_they_are_written(
    how: str, on_cpu: bool
) -> None:
    own = same(lived(Through(POOLED_FIRST[how])), draw(3, 1, 9, 8), on_cpu)
    (pool,) = [layer for layer in own.modules() if isinstance(layer, MaxPoolReLU)]
    assert pool.clips
    assert "relu" not in own.code


KEPT = {
    "indices": lambda net, z: functional.max_pool2d(z.relu(), 2, return_indices=True)[0],
    "positions": lambda net, z: functional.max_pool2d(z.relu(), 2, 2, 0, 1, False, True)[0],
    "global": lambda net, z: functional.max_pool2d(z.relu(), z.size(2) // 4),
    "average": lambda net, z: functional.avg_pool2d(z.relu(), 2),
    "input by name": lambda net, z: functional.max_pool2d(input=z.relu(), kernel_size=2),
    "layer's input by name": lambda net, z: net.pool(input=z.relu()),
    "indexed layer": lambda net, z: net.indexed(z.relu())[0],
    "batch-norm's input by name": lambda net, z: net.norm(input=z),
    "dropout's input by name": lambda net, z: net.dropout(input=z),
    "ceil": lambda net, z: nn.functional.max_pool2d(z.sigmoid(), 3, ceil_mode=True),
}


@pytest.mark.parametrize("how", KEPT)
def test_what_is_no_plain_pooling_stays_and_the_rest_is_exchanged_all_the_same(how: str) -> None:
    own = same(lived(Through(KEPT[how])), draw(3, 1, 8, 8))
    assert type(own.first) is BlockGradientConv


def test_a_relu_that_is_read_twice_stays_and_the_pooling_is_still_sliced() -> None:
    def middle(net: Any, z: Tensor) -> Tensor:
        z = net.relu(z)
        return net.pool(z) + functional.avg_pool2d(z, 2)

    own = same(lived(Through(middle)), draw(3, 1, 8, 8))
    (pool,) = [layer for layer in own.modules() if isinstance(layer, MaxPoolReLU)]
    assert pool.by_slices
    assert not pool.clips


def test_two_poolings_of_one_layer_are_both_exchanged() -> None:
    def middle(net: Any, z: Tensor) -> Tensor:
        return net.pool(net.relu(net.pool(net.relu(z))))

    own = same(lived(Through(middle)), draw(3, 1, 16, 16))
    assert kinds(own).count("Pool") == 0  # Pool holds the layer that it stands for
    assert len([layer for layer in own.modules() if isinstance(layer, MaxPoolReLU)]) == 2


def test_batch_norm_goes_into_the_layer_before_it() -> None:
    net = nn.Sequential(
        conv(1, 4, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        conv(4, 5), nn.BatchNorm2d(5, affine=False), nn.Flatten(),
        nn.Linear(80, 7), nn.BatchNorm1d(7), nn.ReLU(),
        nn.Linear(7, 3, bias=False), nn.BatchNorm1d(3),
    )  # fmt: skip
    own = same(lived(net), draw(3, 1, 8, 8))
    assert not {"BatchNorm1d", "BatchNorm2d"} & set(kinds(own))


def test_a_batch_norm_without_weights_after_a_linear_layer_stays_and_the_rest_is_exchanged() -> (
    None
):
    net = nn.Sequential(
        conv(1, 4), nn.Flatten(), nn.Linear(144, 3), nn.BatchNorm1d(3, affine=False)
    )
    own = same(lived(net), draw(3, 1, 8, 8))
    assert type(own.get_submodule("0")) is BlockGradientConv


def norm_of_batch(net: Any, z: Tensor) -> Tensor:
    return net.norm(z)


def norm_and_more(net: Any, z: Tensor) -> Tensor:
    return net.norm(z) + z


def norm_of_relu(net: Any, z: Tensor) -> Tensor:
    return net.norm(z.relu())


@pytest.mark.parametrize("middle", [norm_and_more, norm_of_relu])
def test_batch_norm_stays_where_another_reads_the_layer_or_something_lies_between(
    middle: Any,
) -> None:
    own = same(lived(Through(middle)), draw(3, 1, 8, 8))
    assert "BatchNorm2d" in kinds(own)


def test_batch_norm_stays_where_it_takes_the_statistics_of_the_batch() -> None:
    net = Through(norm_of_batch)
    net.norm = nn.BatchNorm2d(4, track_running_stats=False)
    assert "BatchNorm2d" in kinds(same(lived(net), draw(3, 1, 8, 8)))


class Shared(nn.Module):
    """One convolution twice, a batch-norm of its own after each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(2, 2, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(2), nn.BatchNorm2d(2)])

    def forward(self, x: Tensor) -> Tensor:
        for norm in self.norms:
            x = norm(self.conv(x))
        return x


def test_batch_norm_stays_where_the_layer_is_shared() -> None:
    own = same(lived(Shared()), draw(3, 2, 6, 6))
    assert kinds(own).count("BatchNorm2d") == 2
    assert type(own.conv) is BlockGradientConv  # still one for both


def test_one_batch_norm_after_two_convolutions_goes_into_both() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = conv(2, 4), conv(2, 4), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.a(x)) * self.norm(self.b(x))

    assert "BatchNorm2d" not in kinds(same(lived(Twice()), draw(3, 2, 6, 6)))


def test_dropout_and_identity_go() -> None:
    net = nn.Sequential(
        nn.Identity(), conv(1, 4), nn.Dropout2d(0.5), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(144, 3), nn.Dropout1d(), nn.Identity(),
    )  # fmt: skip
    own = same(net.double().eval(), draw(3, 1, 8, 8))
    assert not {"Identity", "Dropout", "Dropout1d", "Dropout2d"} & set(kinds(own))


def test_a_dropout_that_does_more_than_dropout_stays() -> None:
    class Doubling(nn.Dropout):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    same(nn.Sequential(conv(1, 4), Doubling(0.5)).double().eval(), draw(3, 1, 8, 8))


LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "conv": lambda n: conv(n, 3, padding=1),
    "strided": lambda n: conv(n, 4, 3, stride=2, padding=1),
    "wide": lambda n: conv(n, WIDE, 1),
    "norm": lambda n: nn.BatchNorm2d(n),
    "relu": lambda n: nn.ReLU(),
    "norm, relu in place": lambda n: nn.Sequential(nn.BatchNorm2d(n), nn.ReLU(inplace=True)),
    "tanh": lambda n: nn.Tanh(),
    "pool": lambda n: nn.MaxPool2d(2),
    "pool 3": lambda n: nn.MaxPool2d(3, 2, 1),
    "dropout": lambda n: nn.Dropout(0.3),
    "identity": lambda n: nn.Identity(),
}


@given(st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=9))
@settings(max_examples=40)
def test_any_stack_of_layers_keeps_its_answer_and_its_gradient(names: list[str]) -> None:
    layers: list[nn.Module] = []
    x = draw(2, 2, 17, 18)
    for name in names:
        layers.append(LAYERS[name](x.shape[1]).double().eval())
        x = layers[-1](x)
        if min(x.shape[2:]) < 2:
            break
    net = lived(nn.Sequential(*layers))
    same(net, draw(2, 2, 17, 18))
    same(net, draw(2, 2, 17, 18).contiguous(memory_format=torch.channels_last))


# ------------------------------------------------------------------------------- the model itself


class Branching(nn.Module):
    """A forward that looks at values, which cannot be followed symbolically."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.pool = conv(1, 4), nn.ReLU(), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        z = self.pool(self.relu(self.conv(x)))
        return (z if z.sum() > 0 else 3 * z).flatten(1)


def test_where_the_forward_branches_on_values_the_convolutions_are_still_turned() -> None:
    own = same(Branching().double().eval(), draw(3, 1, 8, 8))
    assert type(own) is Branching
    assert type(own.conv) is BlockGradientConv
    same(Branching().double().eval(), -draw(3, 1, 8, 8))


def test_a_convolution_of_the_users_own_kind_is_never_turned() -> None:
    net = Branching()
    net.conv = Twofold(1, 4, 3)
    assert type(same(net.double().eval(), draw(3, 1, 8, 8)).conv) is Twofold


def mixed() -> nn.Module:
    return nn.Sequential(
        conv(1, 4), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Dropout(0.5),
        nn.Flatten(), nn.Linear(36, 3),
    )  # fmt: skip


@pytest.mark.parametrize("make", [mixed, Branching, Shared])
def test_the_users_model_is_left_as_it_was_and_trains_on(make: Any) -> None:
    net = make().eval()
    twin, before = copy.deepcopy(net), list(net.named_modules())
    x = draw(4, 2 if make is Shared else 1, 8, 8).float()
    fuse_layers(net, on_cpu=True)(x).sum()
    assert list(net.named_modules()) == before
    for each in (net, twin):
        each.train().requires_grad_(True)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            each(x).square().mean().backward()
        torch.optim.SGD(each.parameters(), 0.1).step()
    state = twin.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert any(p.grad.abs().sum() > 0 for p in net.parameters())


def test_a_copy_shares_no_tensor_with_the_model() -> None:
    net = mixed().eval()
    owned = {tensor.data_ptr() for tensor in net.state_dict().values() if tensor.numel()}
    assert not owned & {t.data_ptr() for t in fuse_layers(net, True).state_dict().values()}


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_resnet_keeps_its_answer_and_its_gradient_without_batch_norm(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = getattr(torchvision.models, name)(weights=None, num_classes=10).eval()
    x = draw(2, 3, 64, 64).float().sigmoid()
    net.train(), net(x), net.eval()  # statistics of the kind that training leaves
    own = fuse_layers(net.requires_grad_(False), on_cpu=True)
    assert "BatchNorm2d" not in kinds(own)
    (answer, gradient), (wanted, pulled) = seen(own, x), seen(net, x)
    assert torch.allclose(answer, wanted, rtol=0, atol=1e-3 * float(wanted.abs().max()))
    assert torch.cosine_similarity(gradient.flatten(1), pulled.flatten(1)).min() > 0.999
