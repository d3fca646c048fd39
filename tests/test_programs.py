"""Models in files of their own: answers and gradients as of the net, and nothing of a file runs."""

import io
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench import evaluate
from bench.analysis.results import read
from bench.core.contracts.dataset import Data
from bench.core.errors import SuiteError
from bench.datasets.in_memory import in_memory
from bench.engine import timing
from bench.engine.acceleration import accelerate
from bench.engine.functional.gradients import gradient_pass
from bench.engine.functional.losses import make_objective
from bench.evaluation import loading
from bench.execution import runner
from bench.execution.options import RunOptions
from bench.models import serialized
from bench.models.fingerprint import fingerprint
from bench.models.preflight import checks
from bench.suite import reader
from bench.suite.schema import ModelEntry

CPU = torch.device("cpu")
Save = Callable[[nn.Module, Path], None]


@pytest.fixture
def data(digits: tuple[Tensor, Tensor]) -> Data:
    return in_memory("digits", digits[0][:40], digits[1][:40], tuple("0123456789"))


def exported(rows: int | None, net: nn.Module, path: Path) -> None:
    """A torch.export program for any number of images, or for `rows`."""
    x = torch.zeros(rows or 2, 1, 28, 28)
    shapes = None if rows else ({0: torch.export.Dim("n")},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what export deprecates inside itself
        torch.export.save(torch.export.export(net, (x,), dynamic_shapes=shapes), path)


def scripted(net: nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(torch.jit.script(net), path)


def traced(net: nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(torch.jit.trace(net, torch.zeros(2, 1, 28, 28)), path)


WAYS: dict[str, tuple[str, Save]] = {
    "exported": ("net.pt2", lambda net, path: exported(None, net, path)),
    "exported for four": ("net.pt2", lambda net, path: exported(4, net, path)),
    "scripted": ("net.ts", scripted),
    "traced": ("net.pt", traced),
}


MADE: dict[str, bytes] = {}


def saved(way: str, lenet: nn.Module, folder: Path) -> Path:
    """LeNet with the digits' weights as a file in `folder`; written by torch once for all tests."""
    name, save = WAYS[way]
    path = folder / name
    if way not in MADE:
        save(lenet, path)
        MADE[way] = path.read_bytes()
    path.write_bytes(MADE[way])
    return path


@pytest.mark.parametrize("way", WAYS)
def test_a_program_answers_and_leads_as_its_net_does(
    lenet: nn.Module, data: Data, tmp_path: Path, way: str
) -> None:
    name = saved(way, lenet, tmp_path).name
    found = serialized.opened(tmp_path / name).eval()
    for n in (1, 4, 7):
        x, y = data.read(0, n), torch.arange(n)
        seen, wanted = (
            gradient_pass(net, make_objective("margin", "untargeted"), x, y, y)
            for net in (found, lenet)
        )
        assert torch.allclose(seen.logits, wanted.logits, atol=1e-5)
        assert torch.allclose(seen.gradient, wanted.gradient, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_a_program_is_found_fit_and_its_copy_agrees_with_it(
    lenet: nn.Module, data: Data, tmp_path: Path, way: str
) -> None:
    name = saved(way, lenet, tmp_path).name
    entry = ModelEntry(name=name, label="net")
    found = loading.load_model(entry, tmp_path, 0, data, CPU)
    assert (found.classes, found.findings) == (10, ())
    copied = accelerate.accelerate_model(found.model, data.read(0, 16), 16, fixed=True, ahead=0.0)
    assert copied.dropped == ""
    assert not {*copied.model.parameters()} & {*found.model.parameters()}


def test_another_program_has_another_fingerprint(lenet: nn.Module, tmp_path: Path) -> None:
    exported(None, lenet, tmp_path / "a.pt2")
    exported(None, nn.Sequential(lenet, nn.ReLU()).eval(), tmp_path / "b.pt2")
    (tmp_path / "c.pt2").write_bytes((tmp_path / "a.pt2").read_bytes())
    a, b, c = (fingerprint(serialized.opened(tmp_path / f"{k}.pt2")) for k in "abc")
    assert a == c != b


@pytest.mark.parametrize("way", WAYS)
def test_a_suite_names_the_file_and_the_net_loses_as_much_as_in_python(
    lenet: nn.Module, tmp_path: Path, way: str
) -> None:
    name = saved(way, lenet, tmp_path).name
    text = (
        'schema = 1\nname = "s"\n[data]\nname = "digits"\nlimit = 20\n'
        f'[[models]]\nname = "{name}"\nlabel = "program"\n'
        '[[models]]\nname = "lenet"\nlabel = "net"\nweights = "digits"\n'
        '[[attacks]]\nname = "pgd"\nnorm = "linf"\neps = [0.1]\nparams = { steps = 5 }\n'
    )
    (tmp_path / "s.toml").write_text(text, encoding="utf-8")
    runner.run_suite(
        reader.read(str(tmp_path / "s.toml")), tmp_path / "out", RunOptions(device="cpu")
    )
    found = read(tmp_path / "out")
    assert found.provenance["files"].keys() == {name}
    table = found.table.set_index("model")
    assert set(table["status"]) == {"ok"}
    assert table.loc["program", "clean_correct"] == table.loc["net", "clean_correct"]
    assert abs(table.loc["program", "robust_correct"] - table.loc["net", "robust_correct"]) <= 1


def check_layout(path: Path) -> None:
    """Skips where the torch that is installed lays a program otherwise than is altered here."""
    if path.suffix == ".pt2" and not any("models/" in n for n in zipfile.ZipFile(path).namelist()):
        pytest.skip("this torch lays exported programs as an earlier one did")


def laid_as(layout: str, path: Path) -> Path:
    """The program at `path` as an earlier torch laid it: tensors in one pickle of tensors."""
    check_layout(path)
    state = {**serialized.opened(path).net.held.state_dict()}
    pickles = {}
    for name, held in (("weights", state), ("constants", {})):
        sink = io.BytesIO()
        torch.save(held, sink)
        pickles[name] = sink.getvalue()
    with zipfile.ZipFile(path) as archive:
        (graph,) = [archive.read(name) for name in archive.namelist() if "models/" in name]
    other = path.with_name("laid.pt2")
    with zipfile.ZipFile(other, "w") as archive:
        if layout == "2.6":
            archive.writestr("serialized_exported_program.json", graph)
            archive.writestr("serialized_state_dict.pt", pickles["weights"])
            archive.writestr("serialized_constants.pt", pickles["constants"])
        else:
            archive.writestr("net/models/model.json", graph)
            archive.writestr("net/data/weights/model.pt", pickles["weights"])
            archive.writestr("net/data/constants/model.pt", pickles["constants"])
    return other


@pytest.mark.parametrize("layout", ["2.6", "2.8"])
def test_what_an_earlier_torch_laid_otherwise_is_read(
    lenet: nn.Module, data: Data, tmp_path: Path, layout: str
) -> None:
    saved("exported", lenet, tmp_path)
    found = serialized.opened(laid_as(layout, tmp_path / "net.pt2"))
    assert torch.allclose(found(data.read(0, 3)), lenet(data.read(0, 3)), atol=1e-5)


def test_dropout_that_was_exported_in_training_mode_is_found_to_be_random(
    lenet: nn.Module, data: Data, tmp_path: Path
) -> None:
    exported(None, nn.Sequential(lenet, nn.Dropout(0.5)).train(), tmp_path / "net.pt2")
    found = checks.preflight("net", serialized.opened(tmp_path / "net.pt2"), data, CPU)
    assert found.random
    assert [told for told in found.findings if told.endswith("(random)")]


# --------------------------------------------------------------------------- what does not run


def told(path: Path) -> str:
    with pytest.raises(SuiteError) as caught:
        serialized.opened(path)
    (only,) = caught.value.problems
    assert "\n" not in only
    return only


def altered(path: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """The archive at `path` with other content in its parts."""
    check_layout(path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    other = path.with_name(f"other-{path.name}")
    with zipfile.ZipFile(other, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, change(name, content))
    return other


def with_target(target: str) -> Callable[[str, bytes], bytes]:
    """Every step of a graph asks for `target` instead."""

    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("model.json"):
            return content
        raw = json.loads(content)
        for node in raw["graph_module"]["graph"]["nodes"]:
            node["target"] = target
        return json.dumps(raw).encode()

    return change


@pytest.mark.parametrize(
    "target",
    ["torch.hub.load", "torch.ops.aten.from_file.default", "torch.ops.image.write_file.default",
     "torch.ops.higher_order.cond", "torch.ops.aten.relu.__init__", "torch.ops.aten.relu.no",
     "_operator.attrgetter", "math.prod", "os.system", ""],
)  # fmt: skip
def test_a_program_that_asks_for_more_than_arithmetic_is_refused(
    lenet: nn.Module, tmp_path: Path, target: str
) -> None:
    saved("exported", lenet, tmp_path)
    assert f"asks for {target}" in told(altered(tmp_path / "net.pt2", with_target(target)))


class Evil:
    """A pickle that makes a file when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, ("ran",)


def pickled() -> bytes:
    sink = io.BytesIO()
    torch.save(Evil(), sink)
    return sink.getvalue()


def weights_pickled(name: str, content: bytes) -> bytes:
    if name.endswith("weights_config.json"):
        raw = json.loads(content)
        for about in raw["config"].values():
            about["use_pickle"] = True
        return json.dumps(raw).encode()
    return pickled() if "/weights/weight_" in name else content


def hidden_in_expressions(name: str, content: bytes) -> bytes:
    if name.endswith("model.json"):
        code = rb'\1"__import__(`os`).mkdir(`ran`)"'.replace(b"`", b"'")
        hidden, times = re.subn(rb'("expr_str": ?)"[^"]*"', code, content)
        assert times
        return hidden
    return pickled() if "sample_inputs" in name else content


def test_nothing_in_an_exported_program_runs_while_it_is_read(
    lenet: nn.Module, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch's own reader evaluates expressions and unpickles the example's images."""
    monkeypatch.chdir(tmp_path)
    saved("exported", lenet, tmp_path)
    found = serialized.opened(altered(tmp_path / "net.pt2", hidden_in_expressions))
    assert torch.allclose(found(data.read(0, 3)), lenet(data.read(0, 3)), atol=1e-5)
    assert "is damaged or no program" in told(altered(tmp_path / "net.pt2", weights_pickled))
    assert not (tmp_path / "ran").exists()


class Writes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        torch.save(x, "ran")
        return x.flatten(1)


class Prints(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        print("\x1b[2J")
        return x.flatten(1)


class Maps(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) + torch.from_file("ran", shared=True, size=4)


class Wakes(nn.Module):
    """Code of its own runs while it is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.training = False

    @torch.jit.export
    def __getstate__(self) -> int:
        return 1

    @torch.jit.export
    def __setstate__(self, state: int) -> None:
        torch.save(torch.zeros(state), "ran")
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


@pytest.mark.parametrize(
    ("net", "what"),
    [(Writes(), "aten::save"), (Prints(), "prim::Print"), (Maps(), "aten::from_file"),
     (Wakes(), "__setstate__")],
)  # fmt: skip
def test_a_script_that_asks_for_more_than_arithmetic_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, net: nn.Module, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    scripted(net, tmp_path / "net.ts")
    assert f"asks for {what}, which bench runs from no file" in told(tmp_path / "net.ts")
    assert not (tmp_path / "ran").exists()


# ---------------------------------------------------------------------------- what is not usable


@pytest.mark.parametrize("way", ["exported", "scripted"])
def test_a_damaged_program_is_told(lenet: nn.Module, tmp_path: Path, way: str) -> None:
    name = saved(way, lenet, tmp_path).name
    whole = (tmp_path / name).read_bytes()
    damaged = tmp_path / f"damaged-{name}"
    for content in (b"", whole[: len(whole) // 2], whole[:-1], b"no program" * 99):
        damaged.write_bytes(content)
        assert f"{damaged} is damaged or no program" in told(damaged)


def test_an_archive_of_weights_is_told_apart(lenet: nn.Module, tmp_path: Path) -> None:
    torch.save(lenet.state_dict(), tmp_path / "net.pt")
    assert "of a state_dict name the architecture" in told(tmp_path / "net.pt")


def test_a_program_that_unpacks_to_more_than_code_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.ts", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/code/x.py", bytes(serialized.UNPACKED + 1))
    assert (tmp_path / "net.ts").stat().st_size < 200_000
    assert "more than a program's code takes" in told(tmp_path / "net.ts")


def test_two_parts_of_one_name_are_refused(lenet: nn.Module, tmp_path: Path) -> None:
    """torch would read the first, Python the last."""
    saved("scripted", lenet, tmp_path)
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "net.ts", "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr(archive.namelist()[0], b"other")
    assert "two parts of one name" in told(tmp_path / "net.ts")


@pytest.mark.parametrize("claim", [[10**12], [-1, 4], [5, 5, 28, 28]])
def test_a_tensor_that_claims_more_than_its_bytes_is_told(
    lenet: nn.Module, tmp_path: Path, claim: list[int]
) -> None:
    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("weights_config.json"):
            return content
        raw = json.loads(content)
        for about in raw["config"].values():
            about["tensor_meta"]["sizes"] = [{"as_int": size} for size in claim]
            about["tensor_meta"]["strides"] = [{"as_int": 0} for _ in claim]
        return json.dumps(raw).encode()

    saved("exported", lenet, tmp_path)
    assert "ValueError: a tensor (" in told(altered(tmp_path / "net.pt2", change))


def test_a_program_exported_while_it_was_training_is_told(tmp_path: Path) -> None:
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(784, 10)).train()
    exported(4, net, tmp_path / "net.pt2")
    assert "changes its own tensors as it answers: export model.eval()" in told(
        tmp_path / "net.pt2"
    )


def test_images_of_another_size_are_told(lenet: nn.Module, tmp_path: Path) -> None:
    saved("exported", lenet, tmp_path)
    images = in_memory("wide", torch.rand(4, 1, 30, 30), torch.arange(4), ())
    with pytest.raises(SuiteError, match=r"the program was exported for images \(1, 28, 28\)"):
        checks.preflight("net", serialized.opened(tmp_path / "net.pt2"), images, CPU)


def test_weights_beside_a_program_and_a_file_that_is_not_there_are_told(
    lenet: nn.Module, tmp_path: Path
) -> None:
    saved("exported", lenet, tmp_path)
    text = (
        'schema = 1\nname = "s"\n[data]\nname = "digits"\n[[models]]\nname = "net.pt2"\n'
        'weights = "random"\n[[models]]\nname = "absent.pt2"\nlabel = "b"\n'
        '[[attacks]]\nname = "fgsm"\nnorm = "linf"\neps = [0.1]\n'
    )
    with pytest.raises(SuiteError) as caught:
        reader.parse(text, "s.toml", tmp_path)
    first, second = caught.value.problems
    assert "models[0].weights: expected none, since a program's file brings its own" in first
    assert "absent.pt2: expected a program's file there, found none" in second


def test_a_script_that_a_users_own_code_made_is_attacked_as_its_net_is(
    lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    x, y = (each[:10] for each in digits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        script = torch.jit.script(lenet)
    found, wanted = (evaluate(net, x, y, attack="fgsm", device="cpu") for net in (script, lenet))
    assert found.records["adv_pred"].tolist() == wanted.records["adv_pred"].tolist()


def test_a_pass_holds_as_many_rows_of_a_program_as_its_operators_give_bytes_for(
    tmp_path: Path,
) -> None:
    """A program has no layers to hook; without a count a pass would hold as many as are allowed."""
    widths = {16: 0, 512: 0}
    for width in widths:
        net = nn.Sequential(
            nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(676 * width, 2)
        )
        exported(None, net.eval(), tmp_path / "net.pt2")
        program = serialized.opened(tmp_path / "net.pt2")
        widths[width] = timing.rows_per_pass(program, torch.zeros(1, 1, 28, 28))
    assert widths[512] < widths[16] < 256


def test_a_pickle_that_is_no_archive_is_told(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(pickle.dumps({"a": 1}))
    assert "is damaged or no program" in told(tmp_path / "net.pt")
