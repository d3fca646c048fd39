"""Convolutions in oneDNN's layout against the model itself, in answers and in input gradients."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from bench.engine import determinism
from bench.engine.acceleration import accelerate, calibration, mkldnn_layout
from bench.engine.acceleration.layers import MaxPoolReLU, fuse_layers
from bench.engine.acceleration.mkldnn_layout import BlockedPoolReLU, lay_out_convolutions

pytestmark = pytest.mark.skipif(
    not mkldnn_layout.is_supported(), reason="this build of torch has no oneDNN"
)


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of calibrations of this test alone."""
    file = tmp_path / "calibrations.json"
    monkeypatch.setattr(calibration, "cache_file", lambda: file)
    return file


@pytest.fixture(autouse=True)
def _seeded() -> Any:
    """The nets built inside have the same weights in any order of the tests."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        yield


def images(n: int = 6, channels: int = 1, sides: int = 14) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, channels, sides, sides, generator=generator)


def padded(pool: nn.Module, **keys: Any) -> nn.Module:
    """Two padded convolutions, each with ReLU and pooling, and a linear layer."""
    features = nn.Sequential(
        nn.Conv2d(1, 16, 3, **{"padding": 1, **keys}), nn.ReLU(), pool,
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(inplace=True), pool, nn.Flatten(),
    )  # fmt: skip
    return nn.Sequential(features, nn.Linear(features(images(1)).shape[1], 4)).eval()


class Normed(nn.Module):
    """Batch norm, no pooling, strides, and a sum of two paths, one of which is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm, self.relu = nn.BatchNorm2d(16), nn.ReLU(inplace=True)
        self.second = nn.Conv2d(16, 16, 3, padding=1, groups=2)
        self.last, self.out = nn.Conv2d(16, 24, 4, stride=2), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.first(x)))
        x = x + self.second(x)
        x = functional.max_pool2d(functional.relu(x), 3, 2, 1)
        return self.out(functional.relu(self.last(x)).mean((2, 3)))


NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "max": (lambda: padded(nn.MaxPool2d(2)), 1),
    "same": (lambda: padded(nn.MaxPool2d(2), padding="same"), 1),
    "no padding": (lambda: padded(nn.MaxPool2d(2), padding=0), 1),
    "stride 2": (lambda: padded(nn.MaxPool2d(2), stride=2), 1),
    "sum": (Normed, 3),
}


def gradient_of(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of a net and the gradient of their weighted sum with respect to x."""
    x = x.clone().requires_grad_()
    logits = net(x)
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    (gradient,) = torch.autograd.grad((logits * weights).sum(), x)
    return logits.detach(), gradient


def laid_out(net: nn.Module) -> nn.Module:
    own = fuse_layers(net.eval(), on_cpu=True)
    assert lay_out_convolutions(own)
    return own.eval().requires_grad_(False)


@pytest.mark.parametrize("name", NETS)
def test_the_net_answers_and_leads_as_before_and_is_read_densely_once(name: str) -> None:
    make, channels = NETS[name]
    net, x = make().eval(), images(channels=channels)
    own = laid_out(net)
    for batch in (x, x[:1]):
        ours, theirs = gradient_of(own, batch), gradient_of(net, batch)
        assert torch.allclose(ours[0], theirs[0], rtol=1e-4, atol=1e-5)
        assert torch.cosine_similarity(ours[1].flatten(1), theirs[1].flatten(1)).min() > 0.9999
        with torch.no_grad():
            assert torch.allclose(own(batch), theirs[0], rtol=1e-4, atol=1e-5)
    assert own.code.count(".to_dense()") == 1


@pytest.mark.parametrize("clips", [True, False])
@pytest.mark.parametrize("low", [-1, 0])
def test_pooling_sends_the_gradient_of_ties_to_the_entry_that_torch_sends_it_to(
    low: int, clips: bool
) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(low, 2, (3, 16, 8, 8), generator=generator).float()
    pool = nn.MaxPool2d(2)
    ours = BlockedPoolReLU(MaxPoolReLU(pool, clips, on_cpu=True))
    blocked = gradient_of(lambda x: ours(x.to_mkldnn()).to_dense(), x)  # type: ignore[arg-type]
    wanted = gradient_of(lambda x: pool(x.relu() if clips else x), x)  # type: ignore[arg-type]
    for got, expected in zip(blocked, wanted, strict=True):
        assert torch.equal(got, expected)


WITHOUT_KERNEL: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": lambda x: x.sigmoid(),
    "average": lambda x: functional.avg_pool2d(x.relu(), 2),
    "ceil": lambda x: functional.max_pool2d(x.relu(), 2, ceil_mode=True),
    "dilated": lambda x: functional.max_pool2d(x.relu(), 2, dilation=2),
    "scaled sum": lambda x: torch.add(x, x, alpha=2),
    "sum with a number": lambda x: x + 1,
    "sum by name": lambda x: torch.add(input=x, other=x.relu()),
    "shape": lambda x: x.flatten(2).unsqueeze(3),
}


@pytest.mark.parametrize("name", WITHOUT_KERNEL)
def test_what_has_no_kernel_in_this_layout_reads_the_usual_one(name: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(WITHOUT_KERNEL[name](self.first(x))).flatten(1)

    net = Net().eval()
    own, x = laid_out(net), images(sides=9)
    for ours, theirs in zip(gradient_of(own, x), gradient_of(net, x), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert own.code.count(".to_dense()") >= 2


class Branching(nn.Module):
    """A forward that looks at values, which cannot be followed symbolically."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return (x if x.sum() > 0 else 2 * x).flatten(1)


@pytest.mark.parametrize(
    "net",
    [
        Branching(),
        nn.Sequential(nn.Flatten(), nn.Linear(196, 3)),
        nn.Sequential(nn.Conv2d(1, 4, 3)).double(),
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect")),
    ],
    ids=["branches", "no convolution", "float64", "reflects"],
)
def test_a_net_without_such_a_convolution_stays_as_it_is(net: nn.Module) -> None:
    assert not lay_out_convolutions(fuse_layers(net.eval(), on_cpu=True))


def test_a_shrinking_batch_is_computed_in_few_sizes_and_each_row_as_before() -> None:
    net = padded(nn.MaxPool2d(2))
    sizes: set[int] = set()

    x = images(50)
    wanted = gradient_of(net, x)
    own = accelerate.AcceleratedNet(net, "mkldnn", "float32")
    net.register_forward_pre_hook(lambda _, given: sizes.add(len(given[0])))
    for rows in range(50, 0, -1):
        assert own(x[:rows]).shape == (rows, 4)
    assert sizes == {1, 2, *range(4, 53, 4)}
    for ours, theirs in zip(gradient_of(own, x), wanted, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


class WeightGradients(TorchDispatchMode):
    """Notes for each backward pass of a convolution whether it computes the weight's gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            self.noted.append(any(args[-1][1:]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "mkldnn"])
def test_no_gradient_of_a_weight_is_computed(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = padded(nn.MaxPool2d(2))
    favour(monkeypatch, layout)
    own = accelerate.accelerate_model(net, images(), 8, fixed=True)
    assert own.layout == layout
    with WeightGradients() as gradients:
        gradient_of(own.model, images())
    assert gradients.noted == [False]  # the first convolution has a gradient of another kind


# ----------------------------------------------------------------------------- chosen by its time


def favour(monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    """Let a layout be the fastest one from now on."""

    def seconds(nets: Any, *_: Any) -> list[float]:
        return [1.0 if net.layout == layout else 2.0 for net in nets]

    monkeypatch.setattr(calibration, "_seconds_per_row", seconds)


def test_it_is_taken_where_it_is_the_fastest_and_remembered(
    monkeypatch: pytest.MonkeyPatch, memory: Path
) -> None:
    net, x = padded(nn.MaxPool2d(2)), images()
    favour(monkeypatch, "mkldnn")
    found = accelerate.accelerate_model(net, x, 8, fixed=True)
    assert (found.layout, found.timed, found.dropped) == ("mkldnn", True, "")
    assert list(json.loads(memory.read_text()).values()) == [["mkldnn", 8]]
    again = accelerate.accelerate_model(net, x, 8, fixed=True, ahead=0.0)
    assert again.layout == "mkldnn"
    rebuilt = accelerate.rebuild_model(net, accelerate.describe_choice(found, x.device))
    assert rebuilt is not None
    wanted = gradient_of(found.model, x)
    assert all(map(torch.equal, gradient_of(rebuilt.model, x), wanted))
    assert torch.allclose(wanted[1], gradient_of(net, x)[1], rtol=1e-3, atol=1e-5)


def test_where_another_layout_is_as_fast_it_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    favour(monkeypatch, "none of them")
    assert accelerate.accelerate_model(padded(nn.MaxPool2d(2)), images(), 8).layout == "contiguous"


def test_it_is_never_taken_by_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = padded(nn.MaxPool2d(2)), images()
    favour(monkeypatch, "mkldnn")
    tried: list[str] = []

    def refuse(candidate: Any, *_: Any) -> str:
        tried.append(candidate.layout)
        return "it is refused"

    with monkeypatch.context() as refusing:
        refusing.setattr(accelerate, "find_disagreement", refuse)
        assert accelerate.accelerate_model(net, x, 8, ahead=0.0).model is net
    assert set(tried) == {"contiguous", "channels-last"}
    with determinism.enforce_determinism(True):
        assert accelerate.accelerate_model(net, x, 8).layout == "contiguous"


def test_it_is_not_tried_in_bfloat16_or_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = padded(nn.MaxPool2d(2)), images()
    assert "mkldnn" in calibration.find_layouts(net, x, "float32")
    assert "mkldnn" not in calibration.find_layouts(net, x, "bfloat16")
    monkeypatch.setattr(mkldnn_layout, "is_supported", lambda: False)
    assert "mkldnn" not in calibration.find_layouts(net, x, "float32")
