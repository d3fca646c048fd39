"""The boundary where data become what bench computes with: what is taken, what is refused."""

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bench
from bench.core.contracts.dataset import Data
from bench.core.errors import SuiteError
from bench.datasets import inputs
from bench.datasets.in_memory import make_data
from bench.evaluation import loading
from bench.execution import runner
from bench.execution.options import RunOptions
from bench.storage import fingerprint, images
from bench.storage import reader as records
from bench.suite import reader
from bench.suite.schema import DataEntry

SHAPE = (6, 3, 4, 5)
LEVELS = (torch.arange(6 * 3 * 4 * 5) * 7 % 256).to(torch.uint8).view(SHAPE)
FLOATS = LEVELS.float() / 256  # exact in float16 and bfloat16, too
Y = torch.tensor([0, 1, 2, 0, 1, 2])


class Pixels(Tensor):
    """A subclass that holds its own values, as torchvision's tv_tensors.Image does."""


def read_only(x: Tensor) -> Tensor:
    array = x.numpy().copy()
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.from_numpy(array)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "permuted from NHWC": lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "every second of a larger one": lambda x: x.repeat_interleave(2, 0)[::2],
    "a view with an offset": lambda x: torch.cat([x[:1], x])[1:],
    "cut out of larger images": lambda x: nn.functional.pad(x, (1, 1))[..., 1:-1],
    "read-only": read_only,
    "a subclass": lambda x: x.clone().as_subclass(Pixels),
    "a parameter": lambda x: nn.Parameter(x.clone(), requires_grad=x.is_floating_point()),
}


def same(value: Data, plain: Data) -> None:
    """Everything that records are made of is the same, to the bit and the stride."""
    assert value.fingerprint == plain.fingerprint
    assert (value.n, value.shape, value.classes) == (plain.n, plain.shape, plain.classes)
    for first, last in ((0, value.n), (2, 3)):
        ours, theirs = value.read(first, last), plain.read(first, last)
        assert (type(ours), ours.dtype, ours.stride()) == (Tensor, torch.float32, theirs.stride())
        assert ours.numpy().tobytes() == theirs.numpy().tobytes()
    assert value.labels is not None
    assert plain.labels is not None
    assert value.labels.dtype == torch.int64
    assert torch.equal(value.labels, plain.labels)


@pytest.mark.parametrize("grey", [False, True], ids=["colour", "grey"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_layout_of_memory_makes_another_data_set(layout: str, grey: bool) -> None:
    for x in (LEVELS, FLOATS):
        plain = x[:, :1].contiguous() if grey else x
        data = make_data("given", LAYOUTS[layout](plain), Y, ())
        same(data, make_data("given", plain, Y, ()))
        assert data.read(0, 6).is_contiguous()


def test_lazy_negation_and_expansion_are_resolved() -> None:
    turned = torch.complex(torch.zeros(SHAPE), -FLOATS).conj().imag
    assert turned.is_neg()
    same(make_data("given", turned, Y, ()), make_data("given", FLOATS, Y, ()))
    one = FLOATS[:1].expand(SHAPE)
    same(make_data("given", one, Y, ()), make_data("given", one.contiguous(), Y, ()))


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floats_are_the_float32_of_their_values(kind: torch.dtype) -> None:
    data = make_data("given", FLOATS.to(kind), Y, ())
    same(data, make_data("given", FLOATS, Y, ()))
    name = str(kind).removeprefix("torch.")
    assert data.mapping["pixels"] == f"{name} from 0 to 0.9961, converted to float32"


def test_bool_images_are_0_and_1_and_8_bits_are_divided_by_255() -> None:
    same(make_data("x", FLOATS > 0.5, Y, ()), make_data("x", (FLOATS > 0.5).float(), Y, ()))
    levels = make_data("x", LEVELS, Y, ())
    assert torch.equal(levels.read(0, 6), LEVELS.float().div(255))
    assert levels.mapping["pixels"] == "uint8 from 0 to 255, divided by 255"


def test_labels_of_every_integer_type_are_the_same() -> None:
    plain = make_data("x", LEVELS, Y, ())
    for kind in inputs.INTEGERS[1:]:
        same(make_data("x", LEVELS, Y.to(kind), ()), plain)
    same(make_data("x", LEVELS, torch.stack([Y, Y], 1)[:, 0], ()), plain)
    same(make_data("x", LEVELS, Y > 0, ()), make_data("x", LEVELS, (Y > 0).long(), ()))


def test_fingerprints_are_those_that_published_records_rest_on() -> None:
    digits = loading.load_data(DataEntry(name="digits"), Path(), Path(), None)
    assert digits.fingerprint.startswith("68a8f047224a4eb4")
    data = make_data("x", torch.arange(8.0).view(2, 1, 2, 2) / 8, torch.tensor([0, 1]), ())
    assert data.fingerprint.startswith("e52180f079b2")


REFUSED: dict[str, Callable[[], tuple[Tensor, Tensor, str]]] = {
    "int64 of 0 and 1": lambda: (
        LEVELS.long() % 2,
        Y,
        "got int64, whose scale is not known; divide",
    ),
    "int16 to 4000": lambda: (LEVELS.short() * 16, Y, "got int16, whose scale is not known"),
    "uint16": lambda: (LEVELS.to(torch.uint16), Y, "got uint16, whose scale is not known"),
    "uint8 of 0 and 1": lambda: (
        LEVELS % 2,
        Y,
        "got 0 and 1 alone; for images of 0 and 1 give them as",
    ),
    "complex": lambda: (FLOATS + 0j, Y, "got complex64"),
    "sparse": lambda: (
        FLOATS.to_sparse(),
        Y,
        "expected a plain tensor with values, got sparse_coo; call to_dense()",
    ),
    "nested": lambda: (
        torch.nested.nested_tensor([*FLOATS]),
        Y,
        "got a nested tensor; stack images",
    ),
    "meta": lambda: (FLOATS.to("meta"), Y, "on meta, which holds none of its own"),
    "too bright": lambda: (FLOATS.double() + 0.1, Y, "expected pixels in [0, 1], got [0.1, 1.096]"),
    "overflowing": lambda: (
        FLOATS.double() * 1e300,
        Y,
        "expected pixels in [0, 1], got [0, inf]; 6 of 6 images have pixels that are NaN or inf",
    ),
    "one NaN": lambda: (
        FLOATS.masked_fill(torch.arange(6).view(6, 1, 1, 1) == 2, torch.nan),
        Y,
        "got [nan, nan]; 1 of 6 images have pixels that are NaN or infinite in float32: look for",
    ),
    "without pixels": lambda: (FLOATS[:, :0], Y, "expected images with pixels, got (6, 0, 4, 5)"),
    "float labels": lambda: (
        FLOATS,
        Y.float(),
        "(6,) torch.float32; labels.long() makes them whole",
    ),
    "a column": lambda: (FLOATS, Y[:, None], "and (6, 1) torch.int64; labels.squeeze(1) takes"),
    "one-hot": lambda: (
        FLOATS,
        nn.functional.one_hot(Y),
        "and (6, 3) torch.int64; labels.argmax(1)",
    ),
    "negative labels": lambda: (
        FLOATS,
        Y.to(torch.int8) - 1,
        "expected labels from 0, got -1; number the classes from 0, and leave out images without",
    ),
    "labels -1 and 1": lambda: (
        FLOATS,
        2 * (Y % 2) - 1,
        "expected labels from 0, got -1; write 0 for -1",
    ),
    "fewer labels": lambda: (
        FLOATS,
        Y[:5],
        "and (5,) torch.int64; give one label for each of the 6",
    ),
}


@pytest.mark.filterwarnings("ignore")  # that nested tensors are a prototype
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_on_the_list_is_refused_in_one_sentence(case: str) -> None:
    x, y, part = REFUSED[case]()
    with pytest.raises(SuiteError) as caught:
        bench.evaluate(nn.Flatten(), x, y)
    assert str(caught.value).startswith("data given: ")
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------ whole runs

MINE = """
import os
import torch
from torch import nn

def data():
    x = torch.linspace(0, 1, 12 * 3 * 4 * 4).view(12, 4, 4, 3)
    y = torch.arange(12) % 2
    how = os.environ["HOW"]
    x = x.permute(0, 3, 1, 2) if how != "plain" else x.permute(0, 3, 1, 2).contiguous()
    return (x, y) if how != "double" else (x.double().requires_grad_(), y.to(torch.uint8))

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
"""
SUITE = """
schema = 1
name = "own"
[data]
name = "mine.py:data"
[[models]]
name = "mine.py:net"
label = "net"
[[attacks]]
name = "pgd"
norm = "linf"
eps = [0.02, 0.1]
params = { steps = 3 }
"""


def test_a_run_on_permuted_images_has_the_records_of_the_plain_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    (tmp_path / "own.toml").write_text(SUITE, encoding="utf-8")
    checked, result = reader.read_suite(str(tmp_path / "own.toml")), {}
    for how in ("plain", "permuted", "double"):
        monkeypatch.setenv("HOW", how)
        options = RunOptions(device="cpu", batch_size=8, image_quota=2**20, command="test")
        runner.run_suite(checked, tmp_path / how, options)
        stored = records.read_records(tmp_path / how)
        result[how] = fingerprint.records_hash(stored.frame)
        assert len(stored.frame) == 24
        assert images.read_images(tmp_path / how)
    assert result["plain"] == result["permuted"] == result["double"]


def test_images_are_read_correctly_with_any_strides(tmp_path: Path) -> None:
    turned = FLOATS.permute(0, 3, 2, 1).requires_grad_()
    images.write_images(tmp_path, "x", {"one": turned, "two": FLOATS[:1].expand(SHAPE)})
    kept = images.read_images(tmp_path)
    assert torch.equal(kept["one"], turned.detach())
    assert torch.equal(kept["two"], FLOATS[:1].expand(SHAPE))


def test_what_is_read_is_never_the_users_own_memory() -> None:
    x = FLOATS.clone()
    data = make_data("x", x, Y, ())
    data.read(0, 6).fill_(2)
    assert torch.equal(x, FLOATS)
    assert torch.equal(data.read(0, 6), FLOATS)


def test_a_model_whose_class_is_called_source_is_not_the_source_of_its_transfer(
    linear: Callable[..., nn.Module],
) -> None:
    class source(nn.Sequential):  # noqa: N801
        """An unlucky name."""

    class victim(nn.Sequential):  # noqa: N801
        """The same net under another."""

    x, y = torch.tensor([0.1, 0.9]).view(2, 1, 1, 1), torch.tensor([0, 1])
    w, b = torch.tensor([[-4.0], [4.0]]), torch.tensor([2.0, -2.0])
    other = linear(-w, -b)  # it is wrong everywhere, so that nothing is crafted if it judges
    asked: dict[str, Any] = {"attack": "fgsm", "eps": 0.5, "device": "cpu", "source": other}
    tables = [
        bench.evaluate(kind(linear(w, b)), x, y, allow=["near-chance"], **asked).table
        for kind in (source, victim)
    ]
    columns = ["n", "clean_correct", "robust_correct"]
    assert tables[0][columns].equals(tables[1][columns])
    assert tables[0]["clean_correct"].tolist() == [2]


# ----------------------------------------------------------------------- data sets of the user's


def own(change: Callable[[Tensor, int, int], Any], **fields: Any) -> Data:
    """A data set of 40 images whose `read` goes through `change`."""
    x = torch.linspace(0, 1, 40 * 4).view(40, 1, 2, 2)
    result = Data(
        name="own", read=lambda a, b: change(x[a:b], a, b), labels=torch.arange(40) % 3, n=40,
        shape=(1, 2, 2), classes=(), fingerprint="own",
    )  # fmt: skip
    return dataclasses.replace(result, **fields)


def test_a_users_slices_become_plain_float32() -> None:
    plain = own(lambda x, a, b: x)
    for change in (
        lambda x, a, b: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x, a, b: x.clone().requires_grad_(),
        lambda x, a, b: x.double(),
    ):
        data = inputs.check_data("own", own(change, labels=(torch.arange(40) % 3).to(torch.uint8)))
        same(data, plain)
    inputs.check_data("own", plain).read(0, 4).fill_(2)
    assert float(plain.read(0, 4).max()) < 1


LATE: dict[str, tuple[Callable[[Tensor, int, int], Any], str]] = {
    "levels": (lambda x, a, b: (x * 255).byte(), "expected float images in [0, 1], got uint8"),
    "too bright": (lambda x, a, b: x * 255, "expected pixels in [0, 1], got ["),
    "NaN": (lambda x, a, b: x / 0 * 0, "expected pixels in [0, 1], got [nan, nan]"),
    "fewer": (lambda x, a, b: x[1:], "expected a tensor of images (8, 1, 2, 2), got (7, 1, 2, 2)"),
    "another shape": (lambda x, a, b: x.flatten(1), "got (8, 4)"),
    "an array": (lambda x, a, b: np.zeros(3), "got ndarray"),
}


@pytest.mark.parametrize("case", LATE)
def test_a_later_slice_that_breaks_the_promise_is_refused_when_it_is_read(case: str) -> None:
    change, part = LATE[case]
    data = inputs.check_data("own", own(lambda x, a, b: x if a < 32 else change(x, a, b)))
    assert len(data.read(0, 32)) == 32
    with pytest.raises(SuiteError) as caught:
        data.read(32, 40)
    assert str(caught.value).startswith("data own: read(32, 40): ")
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"labels": torch.zeros(39).long()}, "got (39,) torch.int64; give one for each image"),
        ({"labels": torch.zeros(40)}, "expected integer labels (40,), got (40,) torch.float32"),
        ({"labels": [0] * 40}, "expected integer labels (40,), got list"),
        ({"labels": torch.arange(40) - 1}, "expected labels from 0, got -1"),
        ({"n": 0, "labels": None}, "expected at least one example, got none"),
        ({"shape": (3, 2, 2)}, "expected a tensor of images (32, 3, 2, 2), got (32, 1, 2, 2)"),
    ],
)
def test_a_users_data_set_that_contradicts_itself_is_refused(
    fields: dict[str, Any], part: str
) -> None:
    with pytest.raises(SuiteError) as caught:
        inputs.check_data("own", own(lambda x, a, b: x, **fields))
    assert part in str(caught.value)


def test_images_that_are_others_when_they_are_read_again_are_refused() -> None:
    def flip(at: int) -> Callable[[Tensor, int, int], Tensor]:
        """Turn one image upside down in every second slice, as a random flip may."""
        turns = iter([False, True])

        def change(x: Tensor, first: int, last: int) -> Tensor:
            place = torch.arange(first, last).view(-1, 1, 1, 1)
            return torch.where((place == at) & next(turns), x.flip(2), x)

        return change

    for at in (1, 31):
        with pytest.raises(
            SuiteError, match="read\\(1, 32\\) gave other images than read\\(0, 32\\)"
        ):
            inputs.check_data("own", own(flip(at)))


def test_a_limit_holds_for_every_kind_of_data_set(tmp_path: Path) -> None:
    code = (
        "import torch\nfrom bench import Data\n"
        "x, y = torch.linspace(0, 1, 40).view(10, 1, 2, 2), torch.arange(10) % 2\n"
        "def pair(): return x, y\n"
        "def whole():\n    return Data(name='w', read=lambda a, b: x[a:b], labels=y, n=10,\n"
        "                shape=(1, 2, 2), classes=(), fingerprint='w')\n"
    )
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")

    def load(name: str, limit: int | None) -> Data:
        return loading.load_data(DataEntry(name=f"mine.py:{name}"), tmp_path, tmp_path, limit)

    for name in ("pair", "whole"):
        one, all_, more = load(name, 4), load(name, None), load(name, 99)
        assert (one.n, all_.n, more.n) == (4, 10, 10)
        assert one.labels is not None
        assert len(one.labels) == 4
        assert one.fingerprint != all_.fingerprint == more.fingerprint
        assert torch.equal(one.read(1, 4), all_.read(1, 4))
        for limit in (0, -3):
            with pytest.raises(SuiteError, match=f"limit: expected at least 1, got {limit}"):
                load(name, limit)


def test_labels_that_count_from_1_are_reported(linear: Callable[..., nn.Module]) -> None:
    net = linear(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(3))
    x = torch.linspace(0, 1, 24).view(6, 1, 2, 2)
    with pytest.raises(SuiteError, match="has the label 3; if the labels count from 1, subtract 1"):
        bench.evaluate(net, x, Y + 1, device="cpu")
