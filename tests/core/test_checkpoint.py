"""Checkpoints as they are published: every usual layout loads, and nothing is dropped unsaid."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from bench.core import checkpoint, checkpoint_states
from bench.core.errors import SuiteError

WHERE = "model 'net': weights 'w.pt'"
State = dict[str, Tensor]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        self.fc = nn.Linear(8, 3)


@pytest.fixture
def state() -> State:
    return {key: value + 1 for key, value in Net().state_dict().items()}


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def halved(state: State) -> State:
    return {key: value.half() if "num" not in key else value for key, value in state.items()}


def optimiser() -> dict[str, Any]:
    net = Net()
    adam = torch.optim.Adam(net.parameters())
    net.fc(torch.ones(1, 8)).sum().backward()
    adam.step()
    return adam.state_dict()


LAYOUTS: dict[str, tuple[Callable[[State], object], str]] = {
    "a plain state": (lambda s: s, ""),
    "state_dict": (
        lambda s: {"state_dict": s, "epoch": 3}, "'state_dict' of w.pt (ignored in it: epoch)"
    ),
    "model_state_dict": (
        lambda s: {"model_state_dict": s, "optimizer_state_dict": optimiser(), "loss": 0.1},
        "(ignored in it: loss, optimizer_state_dict)",
    ),
    "model and settings": (
        lambda s: {"model": s, "args": argparse.Namespace(lr=0.1)}, "(ignored in it: args)"
    ),
    "net and NumPy scalars": (
        lambda s: {"net": s, "acc": np.float64(92.1), "seen": np.zeros(3), "at": Path("x")},
        "(ignored in it: acc, at, seen)",
    ),
    "an average": (lambda s: {"ema": {"module": s, "decay": 0.9}}, "'ema.module' of w.pt"),
    "torch's AveragedModel": (
        lambda s: {"n_averaged": torch.tensor(3), **prefixed(s, "module.")},
        "ignored in it: n_averaged",
    ),
    "DataParallel": (lambda s: prefixed(s, "module."), ""),
    "Lightning": (
        lambda s: {"state_dict": prefixed(s, "model."), "hyper_parameters": {"lr": 1}},
        "ignored in it: hyper_parameters",
    ),
    "compiled": (lambda s: prefixed(s, "_orig_mod."), ""),
    "wrapped three times": (lambda s: prefixed(s, "module._orig_mod.model."), ""),
    "a part in DataParallel": (
        lambda s: {key.replace("features.", "features.module."): s[key] for key in s}, ""
    ),
    "old batch norm": (
        lambda s: {key: s[key] for key in s if "num_batches" not in key},
        "1 num_batches_tracked are not in it",
    ),
    "half precision": (halved, "float16 converted to float32"),
    "the same state twice": (lambda s: {"state_dict": s, "model": dict(s)}, "ignored in it: model"),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_usual_layout_is_loaded_and_what_is_ignored_is_said(
    name: str, state: State, tmp_path: Path
) -> None:
    layout, said = LAYOUTS[name]
    torch.save(layout(state), tmp_path / "w.pt")
    net = Net()
    note = checkpoint_states.load_checkpoint(WHERE, net, tmp_path / "w.pt")
    for key, value in net.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        torch.testing.assert_close(value, state[key], rtol=1e-3, atol=1e-3)
    assert said in note
    assert bool(said) == bool(note)


def test_tensors_saved_on_a_gpu_are_loaded_without_one(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as saving:
        saving.setattr(torch.serialization, "location_tag", lambda storage: "cuda:3")
        torch.save(state, tmp_path / "w.pt")
    assert b"cuda:3" in (tmp_path / "w.pt").read_bytes()
    net = Net()
    checkpoint_states.load_checkpoint(WHERE, net, tmp_path / "w.pt")
    assert torch.equal(net.fc.weight, state["fc.weight"])


def sharded(folder: Path, state: State) -> None:
    keys = sorted(state)
    files = {key: f"model-{1 + (key in keys[3:])}-of-2.safetensors" for key in keys}
    for name in set(files.values()):
        save_file({key: state[key] for key in keys if files[key] == name}, folder / name)
    index = {"metadata": {"total_size": 1}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def single(folder: Path, state: State) -> None:
    save_file(state, folder / "model.safetensors")
    torch.save({}, folder / "optimizer.pt")


@pytest.mark.parametrize("write", [sharded, single])
def test_a_folder_of_one_or_several_files_is_loaded(
    write: Callable[[Path, State], None], state: State, tmp_path: Path
) -> None:
    write(tmp_path, state)
    net = Net()
    assert checkpoint_states.load_checkpoint(WHERE, net, tmp_path) == ""
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_shards_that_lack_a_tensor_or_leave_the_folder_are_refused(
    state: State, tmp_path: Path
) -> None:
    sharded(tmp_path, state)
    index = tmp_path / "model.safetensors.index.json"
    files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    for change, said in (
        ({"fc.wight": files["fc.bias"]}, "lists fc.wight in model-1-of-2.safetensors, which lacks"),
        ({"fc.bias": "../model-1-of-2.safetensors"}, "expected the name of a file beside it"),
        ({"fc.bias": "absent.safetensors"}, "absent.safetensors, found no file"),
        ({"fc.bias": ".."}, r"expected the name of a file beside it, got '\.\.'"),
        ({"fc.bias": ""}, "expected the name of a file beside it, got ''"),
        ({"fc.bias": index.name}, "expected the name of a file beside it"),
        ({"fc.bias": "long" * 1000}, "expected the name of a file beside it"),
    ):
        index.write_text(json.dumps({"weight_map": {**files, **change}}), encoding="utf-8")
        with pytest.raises(SuiteError, match=said):
            checkpoint.read_checkpoint(WHERE, tmp_path)
    for content in ("[]", "[" * 100_000):
        index.write_text(content, encoding="utf-8")
        with pytest.raises(SuiteError, match="expected the index of a sharded checkpoint"):
            checkpoint.read_checkpoint(WHERE, tmp_path)


def refused(content: object, tmp_path: Path, part: str = "", net: nn.Module | None = None) -> str:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(SuiteError) as caught:
        checkpoint_states.load_checkpoint(WHERE, net or Net(), tmp_path / "w.pt", part)
    (only,) = caught.value.problems
    assert "\n" not in only
    return only


def test_several_states_that_fit_are_named_and_one_can_be_chosen(
    state: State, tmp_path: Path
) -> None:
    other = {key: value + 1 for key, value in state.items()}
    content = {"model": state, "model_ema": other}
    said = refused(content, tmp_path)
    assert "2 states in the file fit ('model', 'model_ema') and differ; name one" in said
    assert 'weights = "w.pt#model_ema"' in said
    net = Net()
    note = checkpoint_states.load_checkpoint(WHERE, net, tmp_path / "w.pt", "model_ema")
    assert torch.equal(net.fc.weight, other["fc.weight"])
    assert note == "loaded from 'model_ema' of w.pt (ignored in it: model)"
    assert "w.pt has no part 'model_ma'; did you mean 'model_ema'?" in refused(
        content, tmp_path, "model_ma"
    )


def test_a_part_of_the_keys_is_loaded_only_where_it_is_named(state: State, tmp_path: Path) -> None:
    content = {"model": {**prefixed(state, "module.model."), "module.loss.scale": torch.ones(2)}}
    said = refused(content, tmp_path)
    assert "module.loss.scale" in said
    assert 'a part of it fits: name "w.pt#model.module.model" to leave the rest out' in said
    note = checkpoint_states.load_checkpoint(WHERE, Net(), tmp_path / "w.pt", "model.module.model")
    assert "ignored in it: model.module.loss.scale" in note


def test_what_is_left_over_missing_or_misshapen_is_named_with_the_nearest_key(
    state: State, tmp_path: Path
) -> None:
    renamed = {key.replace("fc", "head.fc"): value for key, value in state.items()}
    said = refused({"state_dict": renamed}, tmp_path)
    assert f"{WHERE} ('state_dict') belong to another architecture: 2 missing" in said
    assert "fc.weight like head.fc.weight" in said
    assert "1 misshapen (fc.weight (4, 8) instead of (3, 8))" in refused(
        {**state, "fc.weight": torch.zeros(4, 8)}, tmp_path
    )
    assert "1 unexpected (extra)" in refused({**state, "extra": torch.ones(1)}, tmp_path)
    assert "1 missing (fc.bias)" in refused(
        {key: value for key, value in state.items() if key != "fc.bias"}, tmp_path
    )


def test_a_state_of_the_bare_net_fits_behind_a_normalisation(state: State, tmp_path: Path) -> None:
    torch.save({"net": prefixed(state, "module.")}, tmp_path / "w.pt")
    net = Net()
    checkpoint_states.load_checkpoint(WHERE, nn.Sequential(nn.Identity(), net), tmp_path / "w.pt")
    assert torch.equal(net.fc.weight, state["fc.weight"])


def test_an_object_that_needs_code_is_refused_by_its_name(state: State, tmp_path: Path) -> None:
    said = refused({"model": state, "config": nn.ReLU()}, tmp_path)
    assert (
        "holds more than tensors (torch.nn.modules.activation.ReLU), and a pickle can run" in said
    )


def test_the_part_is_split_from_the_name_unless_a_file_has_that_name(tmp_path: Path) -> None:
    assert checkpoint.split_name(tmp_path, "w.pt#ema") == (tmp_path / "w.pt", "ema")
    (tmp_path / "w#1.pt").touch()
    assert checkpoint.split_name(tmp_path, "w#1.pt") == (tmp_path / "w#1.pt", "")
    assert checkpoint.is_checkpoint(tmp_path, "w.ckpt#ema")
    assert not checkpoint.is_checkpoint(tmp_path, "digits")


class TiedNet(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight


def test_one_of_tied_parameters_is_enough(tmp_path: Path) -> None:
    trained = TiedNet()
    save_model(trained, str(tmp_path / "w.safetensors"))
    net = TiedNet()
    note = checkpoint_states.load_checkpoint(WHERE, net, tmp_path / "w.safetensors")
    assert note == ""
    assert all(torch.equal(net.state_dict()[k], v) for k, v in trained.state_dict().items())


def test_different_values_of_tied_parameters_are_refused(tmp_path: Path) -> None:
    state = TiedNet().state_dict()
    state["second.weight"] = state["second.weight"] + 1
    said = refused(state, tmp_path, net=TiedNet())
    assert "1 misshapen (second.weight other than first.weight, with which the model ties" in said


@pytest.mark.parametrize(
    ("convert", "said"),
    [
        (lambda x: x.to_sparse(), "sparse_coo instead of plain values"),
        (lambda x: x.to("meta"), "without values instead of plain values"),
        (lambda x: x + 1j, "complex64 instead of float32"),
    ],
)
def test_a_weight_without_plain_real_values_is_refused(
    convert: Callable[[Tensor], Tensor], said: str, state: State, tmp_path: Path
) -> None:
    state["fc.weight"] = convert(state["fc.weight"])
    assert f"1 misshapen (fc.weight {said})" in refused(state, tmp_path)


def test_a_float_buffer_fits_an_integer_one_if_it_is_whole(state: State, tmp_path: Path) -> None:
    key = "features.1.num_batches_tracked"
    assert f"1 misshapen ({key} float32 instead of int64)" in refused(
        {**state, key: torch.tensor(1.5)}, tmp_path
    )
    torch.save({**state, key: torch.tensor(2.0)}, tmp_path / "w.pt")
    net = Net()
    checkpoint_states.load_checkpoint(WHERE, net, tmp_path / "w.pt")
    assert int(net.state_dict()[key]) == 2
