"""Weights, data and devices: what loads, what is refused, and what preflight finds."""

import functools
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.datasets import MNIST

from bench.core.contracts.dataset import Data
from bench.core.errors import SuiteError
from bench.datasets.in_memory import make_data
from bench.engine import device
from bench.evaluation import loading
from bench.models import lenet as lenet_architecture
from bench.models.fingerprint import fingerprint
from bench.models.preflight import checks
from bench.models.preflight.checks import LoadedModel
from bench.suite.schema import DataEntry, ModelEntry

CPU = torch.device("cpu")


@pytest.fixture
def data(digits: tuple[Tensor, Tensor]) -> Data:
    return make_data("digits", digits[0][:40], digits[1][:40], tuple("0123456789"))


def load(data: Data, base: Path = Path(), seed: int = 0, **keys: Any) -> LoadedModel:
    entry = ModelEntry(**{"name": "lenet", "label": "net", **keys})
    return loading.load_model(entry, base, seed, data, CPU)


def refused(data: Data, base: Path = Path(), **keys: Any) -> str:
    with pytest.raises(SuiteError) as caught:
        load(data, base, **keys)
    (only,) = caught.value.problems
    assert "\n" not in only
    return only


def same(loaded: LoadedModel, model: nn.Module) -> bool:
    state, expected = loaded.model.state_dict(), model.state_dict()
    return all(torch.equal(state[key], expected[key]) for key in expected)


# ----------------------------------------------------------------------------------------- weights


def test_published_weights_are_found_by_what_they_were_trained_on(
    data: Data, lenet: nn.Module
) -> None:
    loaded = load(data, weights="digits")
    assert same(loaded, lenet)
    assert (loaded.classes, loaded.findings) == (10, ())
    assert not any(module.training for module in loaded.model.modules())


def test_random_weights_are_the_same_for_the_same_seed_and_leave_the_global_state(
    data: Data,
) -> None:
    before = torch.get_rng_state()
    one, again, other = (load(data, seed=seed, weights="random") for seed in (1, 1, 2))
    assert same(one, again.model)
    assert not same(one, other.model)
    assert one.fingerprint == again.fingerprint != other.fingerprint
    assert torch.equal(before, torch.get_rng_state())


FILES: dict[str, Callable[[dict[str, Tensor], Path], Any]] = {
    "w.safetensors": save_file,
    "w.pt": torch.save,
    "w.pth": torch.save,
    "nested.pt": lambda state, path: torch.save({"state_dict": state, "epoch": 3}, path),
    "parallel.pt": lambda state, path: torch.save(
        {f"module.{key}": value for key, value in state.items()}, path
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_weights_of_a_file_beside_the_suite_are_loaded(
    data: Data, lenet: nn.Module, tmp_path: Path, name: str
) -> None:
    FILES[name](lenet.state_dict(), tmp_path / name)
    assert same(load(data, tmp_path, weights=name), lenet)


class Evil:
    """A pickle that makes a file when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def test_a_pickle_that_runs_code_is_refused_and_not_run(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, "zip.pt")
    Path("plain.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    torch.save(nn.Linear(2, 2), "whole.pt")
    for name in ("zip.pt", "plain.pt", "whole.pt"):
        sentence = refused(data, tmp_path, weights=name)
        assert "holds more than tensors" in sentence
        assert "save model.state_dict()" in sentence
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_a_truncated_file_is_named(data: Data, lenet: nn.Module, tmp_path: Path, name: str) -> None:
    FILES[name](lenet.state_dict(), tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for length in (0, 3, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / name).write_bytes(whole[:length])
        sentence = refused(data, tmp_path, weights=name)
        assert str(tmp_path / name) in sentence
        assert "is damaged or no checkpoint" in sentence


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_a_file_that_is_something_else_is_named(data: Data, tmp_path: Path, name: str) -> None:
    for content in (b"some text, no weights\n" * 9, b"\x89PNG\r\n\x1a\n" * 30, b"\xff" * 300):
        (tmp_path / name).write_bytes(content)
        assert "is damaged or no checkpoint" in refused(data, tmp_path, weights=name)


@pytest.mark.parametrize("holds", [[1, 2], {"a": 3}, torch.zeros(3)])
def test_a_checkpoint_without_a_state_dict_is_refused(
    data: Data, tmp_path: Path, holds: object
) -> None:
    torch.save(holds, tmp_path / "w.pt")
    assert "expected a state_dict, got " in refused(data, tmp_path, weights="w.pt")


def test_weights_of_another_architecture_are_refused_with_what_differs(
    data: Data, lenet: nn.Module, tmp_path: Path
) -> None:
    state = lenet.state_dict()
    save_file({f"x.{key}": value for key, value in state.items()}, tmp_path / "keys.safetensors")
    save_file({**state, "12.weight": torch.zeros(5, 84)}, tmp_path / "shapes.safetensors")
    keys = refused(data, tmp_path, weights="keys.safetensors")
    shapes = refused(data, tmp_path, weights="shapes.safetensors")
    assert "belong to another architecture: 10 missing (1.bias like x.1.bias, 1.weight like" in keys
    assert "1 misshapen (12.weight (5, 84) instead of (10, 84))" in shapes


@pytest.mark.parametrize(
    ("weights", "part"),
    [
        ("absent.pt", "expected weights at "),
        (
            "digit",
            "weights 'digit' are unknown; did you mean 'digits'? known: digits, mnist, "
            "mnist-adversarial, mnist-pgd, random",
        ),
        (
            None,
            "expected weights; known: digits, mnist, mnist-adversarial, mnist-pgd, 'random', or a",
        ),
    ],
)
def test_weights_that_are_not_there_are_one_sentence(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str | None, part: str
) -> None:
    monkeypatch.setenv("BENCH_DATA_DIR", str(tmp_path))  # no weights of this machine's user
    assert part in refused(data, weights=weights)


def test_weights_of_the_data_folder_are_found_by_name_after_the_shipped_ones(
    data: Data, lenet: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_DATA_DIR", str(tmp_path))
    (tmp_path / "weights").mkdir()
    other = lenet_architecture.build()
    for name in ("own", "digits"):
        save_file(other.state_dict(), tmp_path / "weights" / f"lenet-{name}.safetensors")
    assert same(load(data, weights="own"), other)
    assert same(load(data, weights="digits"), lenet)
    assert loading.find_default_weights("lenet") == "digits"
    known = "known: digits, mnist, mnist-adversarial, mnist-pgd, own, random"
    assert known in refused(data, weights="absent")
    (tmp_path / "weights" / "lenet-own.safetensors").write_bytes(b"cut")
    assert "is damaged or no checkpoint" in refused(data, weights="own")


def test_weights_that_a_shipped_recipe_makes_are_named_with_its_command(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_DATA_DIR", str(tmp_path / "my data"))
    (tmp_path / "tall-digits.toml").write_text(
        'weights = "digits"\nmodel = { name = "tall" }', encoding="utf-8"
    )
    (tmp_path / "lenet-new.toml").write_text(
        'weights = "new"\nmodel = { name = "lenet" }', encoding="utf-8"
    )
    monkeypatch.setattr(loading, "RECIPES", tmp_path)
    assert refused(data, weights="new") == (
        "model 'net': weights 'new' are not shipped; `bench train lenet-new --out "
        f"'{tmp_path / 'my data' / 'weights'}'` makes them"
    )
    assert "are unknown" in refused(data, weights="old")


def test_the_recipe_of_the_widest_net_is_known_to_make_its_weights(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_DATA_DIR", str(tmp_path))
    sentence = refused(data, name="maxout", weights="1600-mnist")
    assert "`bench train maxout-1600-mnist --out" in sentence


def test_torchvisions_weights_that_are_absent_offline_name_file_and_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    images = make_data("given", torch.rand(2, 3, 32, 32), torch.zeros(2).long(), ())
    sentence = refused(images, name="resnet50", weights="IMAGENET1K_V2")
    assert "BENCH_OFFLINE is set" in sentence
    assert f"put torchvision's file resnet50-11ad3fa6.pth into {tmp_path}" in sentence


def test_a_torchvision_file_that_is_damaged_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "resnet50-0676ba61.pth"
    path.parent.mkdir(parents=True)
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    path.write_bytes(path.read_bytes()[:-100])
    images = make_data("given", torch.rand(2, 3, 32, 32), torch.zeros(2).long(), ())
    assert path.name in refused(images, name="resnet50", weights="IMAGENET1K_V1")


def test_resnet50_with_random_weights_takes_small_images() -> None:
    images = make_data("given", torch.rand(2, 3, 32, 32), torch.tensor([0, 999]), ())
    loaded = load(images, name="resnet50", weights="random")
    assert loaded.classes == 1000


def test_a_model_in_training_mode_is_never_asked_in_it(tmp_path: Path, data: Data) -> None:
    code = (
        "from torch import nn\n"
        "def make(): return nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(784, 10))\n"
    )
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    loaded = load(data, tmp_path, name="mine.py:make")
    assert loaded.model.get_buffer("0.num_batches_tracked") == 0
    assert not loaded.model.training


def test_a_factory_without_weights_is_noted_as_random(tmp_path: Path, data: Data) -> None:
    code = (
        "from torch import nn\ndef make(): return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n"
    )
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    (note,) = load(data, tmp_path, name="mine.py:make").findings
    assert "weights (random unless its entry or its own code loads some)" in note
    assert "(near-chance)" in note


@pytest.mark.parametrize(
    ("code", "part"),
    [
        ("make = lambda: 3", "expected the factory to return a torch.nn.Module, got int"),
        ("def make():\n    raise ValueError('why')", "ValueError: why (mine.py:2)"),
        ("def make():\n    return {}['x']", "KeyError: 'x' (mine.py:2)"),
    ],
)
def test_a_factory_that_breaks_is_one_sentence(
    data: Data, tmp_path: Path, code: str, part: str
) -> None:
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    assert part in refused(data, tmp_path, name="mine.py:make")


def test_a_fingerprint_holds_weights_constants_and_code(lenet: nn.Module) -> None:
    same_again = lenet_architecture.build()
    same_again.load_state_dict(lenet.state_dict())
    assert fingerprint(same_again) == fingerprint(lenet)
    same_again.get_buffer("0.mean").add_(0.01)  # not in its state_dict
    assert fingerprint(same_again) != fingerprint(lenet)


def _scaled(self: nn.Module, x: Tensor, factor: float) -> Tensor:
    return self.get_submodule("1")(x.flatten(1)) * factor


def _replace_forward(net: nn.Module, factor: float) -> None:
    forward = net.forward
    net.forward = lambda x: forward(x) * factor


def _bind_part(net: nn.Module, factor: float) -> None:
    class Scaled(nn.Sequential):
        forward = functools.partialmethod(_scaled, factor=factor)  # type: ignore[assignment]

    net.__class__ = Scaled


def _seed_noise(net: nn.Module, factor: float) -> None:
    net.noise = torch.Generator().manual_seed(int(factor))  # type: ignore[assignment]


@pytest.mark.parametrize("change", [_replace_forward, _bind_part, _seed_noise])
def test_a_fingerprint_holds_what_is_assigned_to_a_model(
    change: Callable[[nn.Module, float], None],
) -> None:
    def changed(factor: float) -> str:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        change(net, factor)
        return fingerprint(net)

    assert changed(1) == changed(1)
    assert changed(1) != changed(2)


class Masked(nn.Linear):
    """A layer that a program configures by attributes of its class."""

    masked = False

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.round() if self.masked else x)


def _rounded(self: nn.Linear, x: Tensor) -> Tensor:
    return nn.functional.linear(x.round(), self.weight, self.bias)


@pytest.mark.parametrize(("name", "value"), [("masked", True), ("forward", _rounded)])
def test_a_fingerprint_holds_what_is_assigned_to_the_class_of_a_model(
    name: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = Masked(4, 2)
    before = fingerprint(net)
    monkeypatch.setattr(Masked, name, value)
    assert fingerprint(net) != before


def test_a_pass_through_a_model_leaves_its_fingerprint() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    _seed_noise(net, 1)
    before = fingerprint(net)
    torch.rand(3, generator=net.noise)  # type: ignore[call-overload]
    assert fingerprint(net) == before


# -------------------------------------------------------------------------------------------- data

FACTORIES = """
import torch
x = torch.linspace(0, 1, 6 * 4).reshape(6, 1, 2, 2)
y = torch.tensor([0, 1, 2, 0, 1, 2])
asked = {}

def plain(): return x, y
def some(limit, split): asked.update(limit=limit, split=split); return x[:limit], y[:limit]
def every(**keys): asked.update(keys); return x, y
def scaled(by): return x * by, y
def late(): return torch.cat([x.repeat(10, 1, 1, 1), x + 1]), y.repeat(11)
def nan(): return x / x, y
def levels(): return (x * 255).to(torch.uint8), y
def double(): return x.double(), y.int()
def flat(): return x.flatten(1), y
def short(): return x, y[:3]
def floats(): return x, y.float()
def negative(): return x, y - 1
def empty(): return x[:0], y[:0]
def text(): return 'images', y
def one(): return x
def broken(): return 1 / 0
"""


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., Data]:
    (tmp_path / "mine.py").write_text(FACTORIES, encoding="utf-8")

    def load(name: str, limit: int | None = None, **keys: Any) -> Data:
        entry = DataEntry(name=f"mine.py:{name}", **keys)
        return loading.load_data(entry, tmp_path, tmp_path, limit)

    return load


def test_a_factory_gives_images_and_labels_and_need_not_ask_for_anything(
    own: Callable[..., Data],
) -> None:
    loaded = own("plain", limit=4)
    assert (loaded.n, loaded.shape, loaded.name) == (4, (1, 2, 2), "mine.py:plain")
    assert loaded.read(1, 3).shape == (2, 1, 2, 2)
    assert own("plain", limit=3, **{"params": {}}).n == 3


def test_the_smaller_of_the_two_limits_holds(own: Callable[..., Data]) -> None:
    assert own("some", limit=5, **{"split": "train"}).n == 5
    entry_limit = own("plain")
    assert entry_limit.n == 6


def test_a_factory_is_passed_what_it_asks_for(own: Callable[..., Data], tmp_path: Path) -> None:
    from bench.core import registry

    asked = registry.find("datasets", "mine.py:asked", tmp_path)
    own("some", limit=2, split="train")
    assert asked == {"limit": 2, "split": "train"}
    own("every")
    assert asked == {"limit": None, "split": "test", "data_dir": tmp_path}


def test_levels_of_8_bits_and_doubles_become_floats_in_the_unit_interval(
    own: Callable[..., Data],
) -> None:
    for name in ("levels", "double"):
        images = own(name).read(0, 6)
        assert (images.dtype, float(images.min()), float(images.max())) == (torch.float32, 0, 1)


@pytest.mark.parametrize(
    ("name", "keys", "part"),
    [
        ("scaled", {"by": 255}, "expected pixels in [0, 1], got [0, 255]; scale the images"),
        ("scaled", {"by": -1}, "expected pixels in [0, 1], got [-1, "),
        ("late", {}, "expected pixels in [0, 1], got [0, 2]"),
        ("nan", {}, "expected pixels in [0, 1], got [nan, nan]"),
        ("flat", {}, "expected images (n, c, h, w) and integer labels (n,), got (6, 4)"),
        ("short", {}, "got (6, 1, 2, 2) and (3,)"),
        ("floats", {}, "torch.float32"),
        ("negative", {}, "expected labels from 0, got -1"),
        ("empty", {}, "expected at least one example, got none"),
        ("text", {}, "expected images in a tensor or an array, got str"),
        ("one", {}, "expected (images, labels) as tensors or arrays, a map-style data set"),
        ("broken", {}, "ZeroDivisionError: division by zero (mine.py:"),
    ],
)
def test_data_that_cannot_be_used_are_one_sentence(
    own: Callable[..., Data], name: str, keys: dict[str, Any], part: str
) -> None:
    with pytest.raises(SuiteError) as caught:
        own(name, params=keys)
    assert str(caught.value).startswith(f"data mine.py:{name}: ")
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def mnist_files(folder: Path, n: int, cut: int = 0) -> Path:
    """`folder` with files like MNIST's in it, of `n` images, the last `cut` bytes missing."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    bytes_ = bytes(range(251)) * (n * 784 // 251 + 1)
    images = struct.pack(">4i", 2051, n, 28, 28) + bytes_[: n * 784]
    labels = struct.pack(">2i", 2049, n) + bytes(k % 10 for k in range(n))
    for name, content in (("images-idx3", images), ("labels-idx1", labels)):
        for part in ("t10k", "train"):
            (raw / f"{part}-{name}-ubyte").write_bytes(content[: len(content) - cut])
    return folder


def mnist(folder: Path, n: int = 3, cut: int = 0) -> str:
    """What is said of such files."""
    mnist_files(folder, n, cut)
    with pytest.raises(SuiteError) as caught:
        loading.load_data(DataEntry(name="mnist"), folder, folder, 5)
    return str(caught.value)


def test_mnist_that_is_missing_cut_or_too_short_names_file_and_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_OFFLINE", "1")
    with pytest.raises(SuiteError) as caught:
        loading.load_data(DataEntry(name="mnist"), tmp_path, tmp_path, 5)
    assert "t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte not found" in str(caught.value)
    assert f"put the unpacked MNIST files into {tmp_path / 'MNIST' / 'raw'}" in str(caught.value)
    assert "a file of the test split is damaged" in mnist(tmp_path, cut=2)
    assert "damaged" in mnist(tmp_path, n=0, cut=8)
    assert "expected 10000 images and labels" in mnist(tmp_path)


def test_mnist_is_what_torchvision_reads_from_the_same_files(tmp_path: Path) -> None:
    folder = mnist_files(tmp_path, 10_000)
    (folder / "MNIST" / "raw" / "train-labels-idx1-ubyte").rename(tmp_path / "kept")
    data = loading.load_data(DataEntry(name="mnist"), folder, folder, None)
    (tmp_path / "kept").rename(folder / "MNIST" / "raw" / "train-labels-idx1-ubyte")
    theirs = MNIST(str(folder), train=False)
    assert data.labels is not None
    assert torch.equal(data.read(0, 10_000), theirs.data.unsqueeze(1) / 255)
    assert torch.equal(data.labels, theirs.targets)
    limited = loading.load_data(DataEntry(name="mnist"), folder, folder, 5)
    assert torch.equal(limited.read(0, 5), data.read(0, 5))
    assert limited.n == 5


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_an_unknown_split_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="split 'dev' is unknown; expected 'train' or 'test'"):
        loading.load_data(DataEntry(name=name, split="dev"), tmp_path, tmp_path, None)


# --------------------------------------------------------------------------------------- preflight


class Answer(nn.Module):
    """A net whose logits go through `change` before they are returned."""

    def __init__(self, net: nn.Module, change: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.net, self.change = net, change

    def forward(self, x: Tensor) -> object:
        return self.change(self.net(x))


def raises(logits: Tensor) -> Tensor:
    raise KeyError("mask")


REFUSED: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "NaN": (lambda z: z * float("nan"), "expected finite logits, got NaN or infinity"),
    "infinite": (lambda z: z / 0, "expected finite logits, got NaN or infinity"),
    "probabilities": (lambda z: z.softmax(1), "expected logits, got probabilities"),
    "a feature map": (lambda z: z[..., None], "expected logits (n, classes) with n = 16, got (16"),
    "one answer for all": (lambda z: z.mean(0, keepdim=True), "got (1, 10)"),
    "a tuple": (lambda z: (z, z), "got tuple"),
    "one class": (lambda z: z[:, :1], "expected at least 2 classes, got 1"),
    "too few classes": (lambda z: z[:, :9], "has 9 classes, but data digits has the label 9"),
    "an error": (
        raises,
        "does not take images (1, 28, 28) of data digits: KeyError: 'mask' (test_",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_does_not_return_logits_is_refused(
    data: Data, lenet: nn.Module, case: str
) -> None:
    change, part = REFUSED[case]
    with pytest.raises(SuiteError) as caught:
        checks.preflight("net", Answer(lenet, change), data, CPU)
    assert str(caught.value).startswith("model 'net'")
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


NOTED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "log-probabilities": (lambda z: z.log_softmax(1), "returns log-probabilities"),
    "no gradient": (lambda z: z.detach(), "a gradient of zeros on 16 of 16 clean images"),
    "rounded": (lambda z: z.round() + 0 * z, "a gradient of zeros on 16 of 16 clean images"),
    "random": (lambda z: z + torch.randn_like(z), "answers the same images differently"),
    "the batch": (lambda z: z - z.mean(0), "answers an image differently beside other images"),
}


@pytest.mark.parametrize("case", NOTED)
def test_a_model_whose_numbers_are_doubtful_is_noted(
    data: Data, lenet: nn.Module, case: str
) -> None:
    change, part = NOTED[case]
    loaded = checks.preflight("net", Answer(lenet, change), data, CPU).findings
    assert len([sentence for sentence in loaded if part in sentence]) == 1


def test_a_sound_model_is_noted_for_nothing_and_comes_back_as_it_was(
    data: Data, lenet: nn.Module
) -> None:
    lenet.train()
    lenet.get_submodule("3").eval()
    assert checks.preflight("net", lenet, data, CPU).findings == ()
    assert [m.training for m in lenet.children()].count(False) == 1
    assert all(p.grad is None and p.requires_grad for p in lenet.parameters())


def test_double_precision_is_refused(data: Data, lenet: nn.Module) -> None:
    with pytest.raises(
        SuiteError, match=r"expected float32 parameters; convert it with model.float"
    ):
        checks.preflight("net", lenet.double(), data, CPU)


# ----------------------------------------------------------------------------------------- devices


def test_devices_that_are_there_are_found() -> None:
    assert loading.select_device("cpu") == CPU
    assert loading.select_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    "name", ["cuda:99", "xpu:99", "mps:9", "gpu", "meta", "cuda:x", "", "cpu:cpu"]
)
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(SuiteError, match=f"device '{name}'"):
        loading.select_device(name)


class Gpus:
    """A stand-in for torch.cuda or torch.xpu with one GPU, with or without float64."""

    def __init__(self, double: bool) -> None:
        self.has_fp64 = double

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def get_device_properties(self, device: torch.device) -> "Gpus":
        return self

    def get_device_name(self, device: torch.device) -> str:
        return f"a GPU of type {device.type}"

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        return 2**30, 2**31


def pretend(monkeypatch: pytest.MonkeyPatch, kind: str, double: bool) -> None:
    """Let torch see one GPU of a type, and no other."""
    seen, real = Gpus(double), torch.get_device_module

    def module(of: torch.device) -> object:
        return seen if torch.device(of).type == kind else real(of)

    monkeypatch.setattr(torch, "get_device_module", module)


@pytest.mark.parametrize("kind", ["xpu", "cuda"])
def test_a_gpu_that_torch_sees_is_used_and_named(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, kind, double=True)
    assert loading.select_device(kind).type == kind
    assert loading.select_device(f"{kind}:0").index == 0
    assert loading.select_device("auto").type == kind
    with pytest.raises(SuiteError, match=f"torch sees 1 {kind.upper()} devices; use --device cpu"):
        loading.select_device(f"{kind}:1")
    assert device.device_name(torch.device(kind)) == f"a GPU of type {kind}"
    assert device.read_memory(torch.device(kind)) == (2**30, 2**31)


@pytest.mark.parametrize("kind", ["xpu", "mps"])
def test_a_device_without_float64_is_refused_and_never_chosen(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, kind, double=False)
    with pytest.raises(SuiteError, match="does not compute in float64, in which bench verifies"):
        loading.select_device(kind)
    assert loading.select_device("auto").type in ("cpu", "cuda")


def test_a_suite_names_the_part_of_a_checkpoint_and_is_told_what_of_it_is_ignored(
    data: Data, lenet: nn.Module, tmp_path: Path
) -> None:
    state = lenet.state_dict()
    other = {key: value + 1 for key, value in state.items()}
    torch.save({"model": other, "model_ema": state, "epoch": 3}, tmp_path / "w.ckpt")
    assert "2 states in the file fit" in refused(data, tmp_path, weights="w.ckpt")
    loaded = load(data, tmp_path, weights="w.ckpt#model_ema")
    assert same(loaded, lenet)
    (sentence,) = loaded.findings
    assert sentence == (
        "model 'net' is loaded from 'model_ema' of w.ckpt (ignored in it: epoch, model). "
        "(checkpoint)"
    )


WRITTEN = """
import torch
from torch import nn

from bench.models import lenet


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = lenet.MODEL.build()

    def forward(self, x):
        return self.net(x.view(8, 1, 28, 28)), self.net(x)


def ask():
    net = Two()
    return lambda x: {"scores": net.net(x), "classes": 10}
"""


def test_an_entry_says_which_output_and_how_many_images_at_once(
    data: Data, lenet: nn.Module, tmp_path: Path
) -> None:
    (tmp_path / "nets.py").write_text(WRITTEN, encoding="utf-8")
    torch.save(lenet.state_dict(), tmp_path / "w.pt")
    keys = {"name": "nets.py:Two", "weights": "w.pt"}
    x = data.read(0, 12)
    assert "a tuple of 2" in refused(data, tmp_path, **keys)
    loaded = load(data, tmp_path, **keys, output=0)
    torch.testing.assert_close(loaded.model(x), lenet(x))
    query = {"name": "nets.py:ask", "access": "scores", "output": "scores"}
    assert load(data, tmp_path, **query).classes == 10
