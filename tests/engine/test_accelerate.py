"""The copy that attacks lead with: it agrees with its model or is dropped, and is timed once."""

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bench
from bench.core import registry
from bench.core.errors import SuiteError
from bench.engine import timing
from bench.engine.acceleration import accelerate, calibration
from bench.engine.acceleration.block_gradient import BlockGradientConv
from bench.engine.functional import gradients, losses

SHIPPED = ("lenet", "lenet_caffe", "dropout_cnn", "strided_cnn", "maxout", "softmax")


def image(n: int = 24, sides: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, 1, sides, sides, generator=generator)


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of calibrations of this test alone."""
    file = tmp_path / "cache" / "calibrations.json"
    monkeypatch.setattr(calibration, "cache_file", lambda: file)
    return file


@pytest.fixture(autouse=True)
def _seeded() -> Any:
    """The nets built inside have the same weights in any order of the tests."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        yield


def untimed(net: nn.Module, x: Tensor, **settings: Any) -> accelerate.AcceleratedModel:
    """The copy of a net, for an attack too short to be worth a calibration."""
    return accelerate.accelerate_model(net, x, 4, ahead=0.0, **settings)


def looked(net: nn.Module, x: Tensor) -> gradients.PassResult:
    y = torch.zeros(len(x), dtype=torch.int64)
    return gradients.gradient_pass(net, losses.make_objective("margin", "untargeted"), x, y, y)


# --------------------------------------------------------------------------------- what is attacked


@pytest.mark.parametrize("name", SHIPPED)
def test_the_copy_of_a_shipped_model_answers_and_leads_as_the_model_does(name: str) -> None:
    net = registry.find("models", name).build().eval().requires_grad_(False)
    x = image(20, 28)
    accelerated = untimed(net, x)
    assert accelerated.exchanged
    assert accelerated.dropped == ""
    assert accelerated.model is not net
    ours, theirs = looked(accelerated.model, x), looked(net, x)
    assert torch.allclose(ours.logits, theirs.logits, rtol=1e-4, atol=1e-5)
    cosine = torch.cosine_similarity(ours.gradient.flatten(1), theirs.gradient.flatten(1))
    assert cosine.min() > 0.9999


def test_the_model_and_its_modes_are_left_as_they_were(lenet: nn.Module) -> None:
    lenet[3].train()
    before = {key: value.clone() for key, value in lenet.state_dict().items()}
    modes = [layer.training for layer in lenet.modules()]
    accelerated = untimed(lenet, image(8, 28))
    assert [layer.training for layer in lenet.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in lenet.state_dict().items())
    assert not any(layer.training for layer in accelerated.model.modules())
    assert not any(p.requires_grad for p in accelerated.model.parameters())
    assert all(p.requires_grad for p in lenet.parameters())


def test_the_description_of_a_copy_is_json(lenet: nn.Module) -> None:
    result = untimed(lenet, image(8, 28)).to_manifest()
    assert json.loads(json.dumps(result)) == result
    assert result["rows"] == 4


# ------------------------------------------------------------------------------------- odd models


class Net(nn.Module):
    """A small convolutional net; the odd ones below change what lies in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, stride=2)
        self.norm, self.pool, self.out = nn.BatchNorm2d(8), nn.MaxPool2d(2), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        z = self.pool(self.norm(self.conv(x)).relu())
        return self.out(self.odd(z).flatten(1))

    def odd(self, z: Tensor) -> Tensor:
        return z


class NoGrad(Net):
    def odd(self, z: Tensor) -> Tensor:
        with torch.no_grad():
            return z.clone()


class HalfNoGrad(Net):
    def odd(self, z: Tensor) -> Tensor:
        with torch.no_grad():
            half = z.sin()
        return half + z


class Detached(Net):
    def odd(self, z: Tensor) -> Tensor:
        return z.detach()


class HalfDetached(Net):
    def odd(self, z: Tensor) -> Tensor:
        return z.sin().detach() + z


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return z * 1.0

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


class Own(Net):
    """A gradient of its own, that a trace of the forward pass does not see."""

    def odd(self, z: Tensor) -> Tensor:
        return Reversed.apply(z)


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return (8 * z).round() / 8

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Turning(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        return z * 1.0

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient if len(gradient) == 1 else gradient


class OwnWhenAlone(Net):
    """A gradient of its own for an image by itself."""

    def odd(self, z: Tensor) -> Tensor:
        return Turning.apply(z)


class Straight(Net):
    def odd(self, z: Tensor) -> Tensor:
        return Rounded.apply(z)


class StraightByDetaching(Net):
    def odd(self, z: Tensor) -> Tensor:
        return z + ((8 * z).round() / 8 - z).detach()


class Branching(Net):
    def odd(self, z: Tensor) -> Tensor:
        return 3 * z if z.mean() > 0.5 else z


class Counting(Net):
    """Another answer for many images than for few."""

    def odd(self, z: Tensor) -> Tensor:
        return z * 2 if z.shape[0] > 5 else z


class OfTheBatch(Net):
    def odd(self, z: Tensor) -> Tensor:
        return z - z.mean(0) / z.shape[0]


class Viewing(Net):
    def odd(self, z: Tensor) -> Tensor:
        return z.view(z.size(0), 32)


class Locked(Net):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class Loyal(Net):
    """Refuses to answer as anything but the module that was built."""

    def __init__(self) -> None:
        super().__init__()
        self.mine = id(self)

    def odd(self, z: Tensor) -> Tensor:
        if id(self) != self.mine:
            raise RuntimeError("no copies, please\nby order")
        return z


class Noisy(Net):
    def odd(self, z: Tensor) -> Tensor:
        return z + torch.rand_like(z)


class NoisyAlike(Net):
    """Noise that does not depend on the input, which a trace takes for a constant."""

    def odd(self, z: Tensor) -> Tensor:
        return z + torch.rand(8, 1, 1)


class OtherAxis(Net):
    """A batch-norm over another axis than that of the linear layer before it."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.rows = nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.rows.running_var.uniform_(0.1, 4.0)

    def odd(self, z: Tensor) -> Tensor:
        return self.rows(self.mix(z.reshape(-1, 8, 4).repeat(1, 1, 2)))[:, :, :4]


class InPlace(Net):
    """Reads again what a ReLU clipped in place."""

    def odd(self, z: Tensor) -> Tensor:
        z = z - 0.3
        large = nn.functional.max_pool2d(nn.functional.relu(z, inplace=True), 1)
        return large + z


EXCHANGED = (
    NoGrad, HalfNoGrad, HalfDetached, Detached, StraightByDetaching, Branching, Counting,
    OfTheBatch, Viewing,
)  # fmt: skip
COPIED = (Own, OwnWhenAlone, Straight, OtherAxis, InPlace)


@pytest.mark.parametrize("kind", EXCHANGED)
def test_an_odd_model_may_have_its_layers_exchanged(kind: Callable[[], Net]) -> None:
    accelerated = untimed(kind().eval(), image())
    assert accelerated.exchanged
    assert any(isinstance(layer, BlockGradientConv) for layer in accelerated.model.modules())


@pytest.mark.parametrize("kind", COPIED)
@pytest.mark.parametrize("brief", [False, True])
def test_where_exchanged_layers_lead_elsewhere_a_plain_copy_is_attacked(
    kind: Callable[[], Net], brief: bool
) -> None:
    accelerated = untimed(kind().eval(), image(), brief=brief)
    assert not accelerated.exchanged
    assert isinstance(accelerated.model, accelerate.AcceleratedNet)
    assert accelerated.dropped


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Locked, "the copy failed, TypeError: cannot pickle '_thread.lock' object"),
        (Loyal, "the copy failed, RuntimeError: no copies, please"),
        (Noisy, "its logits are off by "),
        (NoisyAlike, "its logits are off by "),
    ],
)
@pytest.mark.parametrize("brief", [False, True])
def test_where_no_copy_agrees_the_model_itself_is_attacked_and_the_reason_is_reported(
    kind: Callable[[], Net], why: str, brief: bool
) -> None:
    net = kind().eval()
    accelerated = accelerate.accelerate_model(net, image(), 4, brief=brief)
    assert accelerated.model is net
    assert accelerated.rows == 4
    assert accelerated.dropped.startswith(why)
    assert "\n" not in accelerated.dropped


def test_a_masked_gradient_is_reported_as_such() -> None:
    assert untimed(Own().eval(), image()).dropped.startswith("its gradients point elsewhere")


def test_a_model_that_cannot_take_the_channels_last_layout_is_attacked_in_the_other() -> None:
    accelerated = accelerate.accelerate_model(Viewing().eval(), image(), 4, fixed=True)
    assert accelerated.layout in ("contiguous", "mkldnn")  # whichever was timed to be faster
    assert accelerated.exchanged


def test_a_copy_that_fails_says_nothing_but_its_reason(capfd: pytest.CaptureFixture[str]) -> None:
    for kind in (Viewing, Loyal):
        untimed(kind().eval(), image())
    assert capfd.readouterr() == ("", "")


def test_a_model_that_answers_nan_or_nothing_but_zeros_is_no_error() -> None:
    for spoil in (torch.zeros_like, lambda weight: weight * torch.nan):
        net = Net().eval().requires_grad_(False)
        net.out.weight.copy_(spoil(net.out.weight))
        net.out.bias.zero_()
        assert accelerate.accelerate_model(net, image(), 4, ahead=0.0).rows == 4


@pytest.mark.parametrize("kind", [*EXCHANGED, *COPIED, Locked, Loyal])
def test_an_attack_counts_the_same_with_a_copy_and_without(kind: Callable[[], Net]) -> None:
    net, x = kind().eval(), image(24)
    y = net(x).argmax(1)
    settings: dict[str, Any] = {"eps": [0.01, 0.03, 0.1], "params": {"steps": 4}}
    with_copy, without = (
        bench.evaluate(net, x, y, batch_size=8, device="cpu", copied=copied, **settings).table
        for copied in (True, False)
    )
    assert with_copy["violations"].tolist() == [0, 0, 0]
    assert with_copy["attacked"].tolist() == without["attacked"].tolist()
    for ours, theirs in zip(with_copy["fooled"], without["fooled"], strict=True):
        assert abs(ours - theirs) <= 1  # a rounding may turn a step on another processor


@pytest.mark.parametrize("kind", [Noisy, NoisyAlike])
def test_a_random_model_can_be_attacked_through_the_same_door(kind: Callable[[], Net]) -> None:
    net, x = kind().eval(), image()
    evaluation = bench.evaluate(net, x, net(x).argmax(1), eps=0.1, batch_size=8, device="cpu")
    assert evaluation.table["status"].tolist() == ["ok"]


# --------------------------------------------------------------------------------------- bfloat16


@pytest.mark.parametrize("name", ["lenet", "maxout"])
def test_a_copy_in_bfloat16_takes_and_returns_float32(name: str) -> None:
    net = registry.find("models", name).build().eval().requires_grad_(False)
    x = image(20, 28)
    accelerated = untimed(net, x, precision="bfloat16")
    ours, theirs = looked(accelerated.model, x), looked(net, x)
    assert {p.dtype for p in accelerated.model.parameters()} == {torch.bfloat16}
    assert ours.logits.dtype == ours.gradient.dtype == torch.float32
    assert not torch.equal(ours.logits, theirs.logits)
    assert torch.allclose(ours.logits, theirs.logits, atol=0.1 * float(theirs.logits.abs().max()))
    cosine = torch.cosine_similarity(ours.gradient.flatten(1), theirs.gradient.flatten(1))
    assert cosine.min() > 0.9


def test_a_shipped_net_with_batch_norm_left_in_it_computes_in_bfloat16() -> None:
    net = nn.Sequential(nn.BatchNorm2d(1), Net()).eval()
    accelerated = untimed(net, image(), precision="bfloat16")
    assert looked(accelerated.model, image()).logits.dtype == torch.float32


@pytest.mark.parametrize("copied", [True, False])
def test_gradients_in_bfloat16_are_judged_in_float32(
    lenet: nn.Module, digits: tuple[Tensor, Tensor], copied: bool
) -> None:
    x, y = (part[:40] for part in digits)
    evaluation = bench.evaluate(
        lenet, x, y, eps=[0.07, 0.1], params={"steps": 5}, precision="bfloat16", copied=copied,
        keep_adversarial=True, batch_size=20, device="cpu",
    )  # fmt: skip
    assert evaluation.adversarial is not None
    verdict = torch.cat([lenet(images).argmax(1) for images in evaluation.adversarial])
    assert evaluation.records["adv_pred"].tolist() == verdict.tolist()
    assert evaluation.table["precision"].tolist() == ["bfloat16", "bfloat16"]
    assert evaluation.table["caveats"].str.contains("Gradients in bfloat16").all()
    whole = bench.evaluate(lenet, x, y, eps=[0.07, 0.1], params={"steps": 5}, device="cpu")
    for low, full in zip(evaluation.table["fooled"], whole.table["fooled"], strict=True):
        assert abs(low - full) <= 2
    assert (whole.table["fooled"] > 5).all()


def test_the_precision_belongs_to_the_identity_and_float32_is_what_it_was(
    lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = (part[:4] for part in digits)
    settings: dict[str, Any] = {"attack": "fgsm", "batch_size": 4, "device": "cpu"}
    default, full, low = (
        bench.evaluate(lenet, x, y, **settings, **more).table["cell"].item()
        for more in ({}, {"precision": "float32"}, {"precision": "bfloat16"})
    )
    assert default == full != low
    assert default == bench.evaluate(lenet, x, y, **settings, copied=False).table["cell"].item()


def test_an_attack_with_a_loop_of_its_own_has_no_precision_to_choose(
    lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(SuiteError, match=r"precision: expected float32.*got bfloat16") as error:
        bench.evaluate(lenet, *digits, attack="torchattacks:FGSM", precision="bfloat16")
    assert "\n" not in str(error.value)


def test_where_nothing_that_agrees_computes_in_bfloat16_that_is_said() -> None:
    net, x = Locked().eval(), image()
    with pytest.raises(SuiteError, match=r"precision bfloat16: the copy failed.*float32") as error:
        bench.evaluate(net, x, net(x).argmax(1), precision="bfloat16", device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rows", [1, 4, 24, 64, 200])
def test_a_brief_comparison_makes_as_many_passes_as_it_is_said_to(rows: int) -> None:
    """Of the model; those of the copy are as many."""
    net = Net().eval()
    with timing.count_passes(net) as passes:
        accelerate.make_probes(net, image(16), rows, brief=True)
    counted = (passes.forwards + passes.backwards) / 2
    assert 2 * counted == accelerate.count_probe_passes(16, rows)


def test_one_layout_is_compared_where_none_is_timed(
    lenet: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []

    def note(candidate: accelerate.AcceleratedNet, *_: Any) -> str:
        built.append(candidate.layout)
        return "it is refused" if len(built) == 1 else ""

    monkeypatch.setattr(accelerate, "find_disagreement", note)
    assert untimed(lenet, image(16, 28)).layout == "channels-last"
    assert built == ["contiguous", "channels-last"]
    assert untimed(lenet, image(16, 28)).layout == "contiguous"
    assert built[2:] == ["contiguous"]


# ------------------------------------------------------------------------------------- calibration

Pace = Callable[[str, int], float]


@pytest.fixture
def paced(monkeypatch: pytest.MonkeyPatch) -> Callable[[Pace], list[tuple[str, int]]]:
    """(pace) -> the (layout, rows) timed from now on: `pace` says how long a row takes."""

    def setting(pace: Pace) -> list[tuple[str, int]]:
        timed: list[tuple[str, int]] = []

        def paces(nets: Any, x: Tensor, rows: int, *rounds: Any, **named: Any) -> list[float]:
            timed.extend((net.layout, rows) for net in nets)
            return [pace(net.layout, rows) for net in nets]

        monkeypatch.setattr(calibration, "_seconds_per_row", paces)
        return timed

    return setting


def choice(result: accelerate.AcceleratedModel) -> tuple[str, int, bool]:
    return result.layout, result.rows, result.timed


def quickest_at(rows: int, layout: str = "contiguous") -> Pace:
    """Slower the farther from `rows`, by a tenth for each halving, and in the other layout."""
    return lambda at, held: (
        (1 + 0.1 * abs(held.bit_length() - rows.bit_length())) * (1.0 if at == layout else 2.0)
    )


@pytest.mark.parametrize("layout", calibration.LAYOUTS)
@pytest.mark.parametrize("best", [8, 32, 64, 512])
def test_the_quickest_layout_and_number_of_rows_are_found(
    layout: str, best: int, paced: Any
) -> None:
    paced(quickest_at(best, layout))
    assert choice(accelerate.accelerate_model(Net(), image(), 64)) == (layout, best, True)


@pytest.mark.parametrize("threads", [1, 2])
def test_one_thread_is_timed_in_processor_time_and_several_by_the_clock(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = [0.0]

    class Working(nn.Module):
        """Uses up processor time."""

        def __init__(self, seconds: float) -> None:
            super().__init__()
            self.seconds = seconds

        def forward(self, x: Tensor) -> Tensor:
            busy[0] += self.seconds
            return x.flatten(1)

    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(timing, "busy_seconds", lambda device: busy[0])
    monkeypatch.setattr(timing, "time_call", lambda work, device: (work(), 8.0))
    found = calibration._seconds_per_row([Working(2.0), Working(4.0)], image(), 4)
    assert found == ([0.5, 1.0] if threads == 1 else [2.0, 2.0])


def test_a_few_percent_are_no_reason_for_another_number_of_rows(paced: Any) -> None:
    paced(lambda layout, rows: 1.0 if rows == 64 else 0.96)
    assert accelerate.accelerate_model(Net(), image(), 64).rows == 64


def test_rows_stay_within_reason_however_quick_more_or_fewer_would_be(paced: Any) -> None:
    paced(lambda layout, rows: 1.0 / rows)
    assert accelerate.accelerate_model(Net(), image(), 64).rows == calibration.MOST_ROWS
    paced(lambda layout, rows: float(rows))
    assert (
        accelerate.accelerate_model(nn.Sequential(Net()), image(), 64).rows
        == calibration.LEAST_ROWS
    )


def test_more_rows_than_memory_holds_are_not_chosen(paced: Any) -> None:
    def pace(layout: str, rows: int) -> float:
        if rows > 256:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return 1.0 / rows

    paced(pace)
    assert accelerate.accelerate_model(Net(), image(), 64).rows == 256


def test_a_calibration_is_remembered(paced: Any, memory: Path) -> None:
    paced(quickest_at(32, "channels-last"))
    first = accelerate.accelerate_model(Net(), image(), 64)
    timed = paced(quickest_at(128))
    assert choice(accelerate.accelerate_model(Net(), image(), 64)) == choice(first)
    assert choice(untimed(Net(), image())) == choice(first)  # whatever lies ahead
    assert timed == []
    memory.unlink()
    assert accelerate.accelerate_model(Net(), image(), 64).rows == 128


@pytest.mark.parametrize("rows", [1, 3, 64, 30_000])
def test_rows_that_the_user_gave_stay_and_the_layout_is_remembered(rows: int, paced: Any) -> None:
    paced(quickest_at(32, "channels-last"))
    wanted = ("channels-last", rows, True)
    assert choice(accelerate.accelerate_model(Net(), image(), rows, fixed=True)) == wanted
    timed = paced(quickest_at(32))
    assert choice(accelerate.accelerate_model(Net(), image(), rows, fixed=True)) == wanted
    assert timed == []


def test_too_little_work_is_not_worth_a_calibration(paced: Any, memory: Path) -> None:
    timed = paced(quickest_at(32, "channels-last"))
    accelerated = accelerate.accelerate_model(Net(), image(), 64, ahead=100.0)
    assert choice(accelerated) == ("contiguous", 64, False)
    assert timed == []
    assert not memory.exists()
    assert accelerated.worth == calibration.WORTH * calibration.TIMINGS * 64
    again = accelerate.accelerate_model(Net(), image(), 64, ahead=1.01 * accelerated.worth)
    assert choice(again) == ("channels-last", 32, True)


def test_the_rows_that_one_attack_was_given_are_not_those_of_the_next(tmp_path: Path) -> None:
    attack = '[[attacks]]\nname = "bim"\nnorm = "linf"\neps = [0.1]\n'
    file = tmp_path / "s.toml"
    file.write_text(
        'schema = 1\nname = "s"\n[data]\nname = "digits"\nlimit = 12\n[[models]]\n'
        f'name = "lenet"\nweights = "digits"\n{attack}batch_size = 2\nparams.steps = 2\n'
        f'{attack}label = "many"\nparams.steps = 3\n'
    )
    table = bench.run(str(file), out=tmp_path / "out", device="cpu").table
    few, many = table["rows_per_pass"]
    assert few == 2 < many


def test_untimed_a_wide_net_takes_the_channels_last_layout(paced: Any) -> None:
    paced(quickest_at(32))
    wide = nn.Sequential(
        nn.Conv2d(1, calibration.WIDE, 3), nn.Conv2d(calibration.WIDE, 2, 10), nn.Flatten()
    )
    assert untimed(wide, image()).layout == "channels-last"
    assert untimed(Net(), image()).layout == "contiguous"


DAMAGED = [
    b"", b"{", b"[]", b'"key"', b"null", b"3", b"\xff\xfe", b"[[1, 2]]",
    b'{"KEY": ["sideways", 64]}', b'{"KEY": ["contiguous", "64"]}',
    b'{"KEY": ["contiguous", -1]}', b'{"KEY": ["contiguous", 0]}',
    b'{"KEY": ["contiguous", 1000000000]}', b'{"KEY": ["contiguous", 8.0]}',
    b'{"KEY": [["contiguous"], 64]}', b'{"KEY": "ab"}', b'{"KEY": null}',
]  # fmt: skip


def test_a_damaged_memory_is_no_error_and_is_made_anew(paced: Any, memory: Path) -> None:
    paced(quickest_at(32))
    net = Net()
    wanted = choice(accelerate.accelerate_model(net, image(), 64))
    (key,) = json.loads(memory.read_text())
    for content in DAMAGED:
        memory.write_bytes(content.replace(b"KEY", key.encode()))
        assert choice(accelerate.accelerate_model(net, image(), 64)) == wanted, content
        assert json.loads(memory.read_text())[key] == ["contiguous", 32], content


def test_a_remembered_layout_that_no_copy_has_is_no_error(paced: Any, memory: Path) -> None:
    paced(lambda layout, rows: 1.0)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(144, 4))
    accelerate.accelerate_model(flat, image(), 64)
    (key,) = json.loads(memory.read_text())
    memory.write_text(json.dumps({key: ["channels-last", 64]}))
    assert accelerate.accelerate_model(flat, image(), 64).layout == "contiguous"


def test_a_memory_that_cannot_be_written_is_no_error(paced: Any, memory: Path) -> None:
    paced(quickest_at(32))
    memory.parent.write_text("a file, where a folder should be")
    for _ in range(2):
        assert choice(accelerate.accelerate_model(Net(), image(), 64)) == ("contiguous", 32, True)


def test_one_memory_holds_many_models(paced: Any, memory: Path) -> None:
    paced(quickest_at(32))
    accelerate.accelerate_model(Net(), image(), 64)
    accelerate.accelerate_model(nn.Sequential(nn.Flatten(), nn.Linear(144, 4)), image(), 64)
    assert len(json.loads(memory.read_text())) == 2


def key(net: nn.Module, sides: int = 12, precision: str = "float32", rows: int = 0) -> str:
    return calibration._cache_key(net, image(2, sides), precision, rows, ["contiguous"])


def test_a_calibration_is_the_architectures_and_not_the_weights() -> None:
    assert key(Net()) == key(Net())
    others = {
        key(Net()), key(nn.Sequential(Net())), key(Straight()), key(Net(), sides=13),
        key(Net(), precision="bfloat16"), key(Net(), rows=8),
    }  # fmt: skip
    assert len(others) == 6
    wider = Net()
    wider.out = nn.Linear(32, 5)
    assert key(wider) not in others


def test_a_calibration_is_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {key(Net())}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    known.add(key(Net()))
    monkeypatch.setattr(calibration, "device_name", lambda device: "abacus")
    known.add(key(Net()))
    monkeypatch.setattr(torch, "__version__", "0.0")
    known.add(key(Net()))
    assert len(known) == 4


def test_a_calibration_can_really_be_timed(lenet: nn.Module, memory: Path) -> None:
    accelerated = accelerate.accelerate_model(lenet, image(8, 28), 8, fixed=True)
    assert (accelerated.rows, accelerated.timed) == (8, True)
    assert list(json.loads(memory.read_text()).values()) == [[accelerated.layout, 8]]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no variable moves the user's cache")
def test_the_memory_lies_in_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert calibration.cache_file().is_relative_to(os.environ["XDG_CACHE_HOME"])
