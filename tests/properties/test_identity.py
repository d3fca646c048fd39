"""What a forward computes with belongs to its identity, how it is written does not."""

import argparse
import dataclasses
import operator
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bench.analysis.results import read_results
from bench.core import registry, rng, source_hash
from bench.core.contracts.dataset import Data
from bench.core.errors import SuiteError
from bench.evaluation import loading
from bench.execution import runner
from bench.execution.options import RunOptions
from bench.models.fingerprint import fingerprint, logits_differ, sketch_logits
from bench.storage import environment
from bench.suite import identity, plan, reader
from bench.suite.identity import ModelFacts
from bench.suite.schema import DataEntry, ModelEntry

CPU = torch.device("cpu")
DATA = """
import torch
from bench import Data

images = torch.linspace(0, 1, 12 * 16).reshape(12, 1, 4, 4)

def load(bright=1.0, **_):
    return Data(name="mine", read=lambda a, b: images[a:b] * bright, labels=torch.arange(12) % 3,
                n=12, shape=(1, 4, 4), classes=("a", "b", "c"), fingerprint="always the same")
"""
MODEL = '''
"""A model."""
import torch
from torch import nn
import sys; sys.path.insert(0, {folder!r})

GAIN = 1.0

def shift(x, by=0.0):
    return x + by

class Net(nn.Module):
    """Many things to compute with."""

    def __init__(self, scale, bias):
        super().__init__()
        self.scale, self.kept, self.table = scale, [torch.zeros(2)], {{"a": (1, 2)}}
        self.turn = lambda x: x * bias
        self.net = nn.Linear(16, 3)
        self.register_buffer("mean", torch.tensor(0.5), persistent=False)

    def forward(self, x):
        from {helper} import helped  # found inside a function, too
        return helped(self.turn(shift(self.net(x.flatten(1) - self.mean))) * self.scale * GAIN)

def build(scale=1.0, bias=1.0):
    return Net(scale, bias)
'''
HELPER = "from {deeper} import FACTOR\n\ndef helped(x):\n    return x * FACTOR\n"
DEEPER = "FACTOR = 2.0\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A suite's folder with a model whose forward calls a helper, which imports another."""
    names = {"helper": f"helper_{tmp_path.name}", "deeper": f"deeper_{tmp_path.name}"}
    (tmp_path / "data.py").write_text(DATA, encoding="utf-8")
    (tmp_path / "net.py").write_text(MODEL.format(folder=str(tmp_path), **names), encoding="utf-8")
    (tmp_path / f"{names['helper']}.py").write_text(HELPER.format(**names), encoding="utf-8")
    (tmp_path / f"{names['deeper']}.py").write_text(DEEPER, encoding="utf-8")
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def data(folder: Path, **params: Any) -> Data:
    return loading.load_data(DataEntry(name="data.py:load", params=params), folder, folder, None)


def printed(folder: Path, **keys: Any) -> str:
    entry = ModelEntry(name="net.py:build", label="net", **keys)
    return loading.load_model(entry, folder, 0, data(folder), CPU).fingerprint


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("net", "GAIN = 1.0", "GAIN = 1.25"),
        ("net", "by=0.0", "by=0.125"),
        ("net", "* self.scale", "/ self.scale"),
        ("net", "x * bias", "x + bias"),
        ("helper", "x * FACTOR", "x - FACTOR"),
        ("deeper", "FACTOR = 2.0", "FACTOR = 3.25"),
    ],
)
def test_an_edit_that_changes_answers_makes_another_model_and_another_number(
    folder: Path, file: str, old: str, new: str
) -> None:
    before, path = printed(folder), next(folder.glob(f"{file}*.py"))
    text = path.read_text(encoding="utf-8")
    path.write_text(f'"""Reworded."""\n\n# a remark\n{text}\n# more\n', encoding="utf-8")
    assert printed(folder) == before
    edit(path, old, new)
    assert printed(folder) != before


@pytest.mark.parametrize(
    "keys", [{"params": {"scale": 12.0}}, {"params": {"bias": 2.0}}, {"access": "scores"}], ids=str
)
def test_params_and_access_belong_to_a_model(folder: Path, keys: Any) -> None:
    assert printed(folder, **keys) != printed(folder) == printed(folder)


def built() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.BatchNorm1d(3)).eval()
    with rng.seed_global("identity"):
        net[1].reset_parameters()
    net.scale, net.kept, net.names = 1.0, [torch.zeros(2)], {"b", "a", "c"}
    net.register_buffer("hidden", torch.zeros(1), persistent=False)
    return net


def _leave_hook(net: Any) -> None:
    net[1].register_forward_hook(lambda module, given, answer: answer * 2)


def _parametrize(net: Any) -> None:
    nn.utils.parametrize.register_parametrization(net[1], "weight", nn.ReLU())


def _close_over(net: Any, value: float) -> None:
    def forward(x: Any) -> Any:
        return x * value

    net.after = forward


class _Opaque:
    """Refers to itself and to what cannot be looked into."""

    def __init__(self) -> None:
        self.own, self.lock = self, object()


CHANGES: dict[str, Any] = {
    "attribute": lambda net: setattr(net, "scale", 12.0),
    "new attribute": lambda net: setattr(net, "power", 2),
    "text": lambda net: setattr(net, "mode", "hard"),
    "container": lambda net: net.kept.append(1),
    "tensor in a container": lambda net: net.kept[0].add_(1),
    "set": lambda net: net.names.add("d"),
    "parameter": lambda net: net[1].bias.data.add_(0.1),
    "buffer": lambda net: net[2].running_mean.add_(0.1),
    "buffer that is not kept": lambda net: net.hidden.add_(0.1),
    "torch's own attribute": lambda net: setattr(net[2], "eps", 0.1),
    "hook": _leave_hook,
    "parametrization": _parametrize,
    "replaced forward": lambda net: setattr(net[1], "forward", lambda x: x),
    "closure": lambda net: _close_over(net, 1.0),
    "closure, other value": lambda net: _close_over(net, 2.0),
    "default argument": lambda net: setattr(net, "after", lambda x, k=3: x * k),
    "object": lambda net: setattr(net, "other", _Opaque()),
    "options": lambda net: setattr(net, "options", argparse.Namespace(scale=1.0)),
    "options, other value": lambda net: setattr(net, "options", argparse.Namespace(scale=2.0)),
    "namespace": lambda net: setattr(net, "options", types.SimpleNamespace(scale=1.0)),
    "namespace, other value": lambda net: setattr(net, "options", types.SimpleNamespace(scale=2.0)),
    "noise": lambda net: setattr(net, "noise", torch.distributions.Normal(0.0, 1.0)),
    "noise, other value": lambda net: setattr(net, "noise", torch.distributions.Normal(0.0, 2.0)),
    "getter": lambda net: setattr(net, "take", operator.itemgetter(0)),
    "getter, other value": lambda net: setattr(net, "take", operator.itemgetter(1)),
}


def test_whatever_a_forward_can_read_makes_another_model() -> None:
    found = {}
    for name, change in [("none", lambda net: None), *CHANGES.items()]:
        net = built()
        change(net)
        found[name] = fingerprint(net)
        again = built()
        change(again)
        assert fingerprint(again) == found[name], name  # and no address is in it
    assert len(set(found.values())) == len(found)


NOTEBOOK = """
from torch import nn

def shift(x):
    return x + SHIFT

class Net(nn.Module):
    def forward(self, x):
        return [row * GAIN for row in shift(x)]
"""


def test_a_model_of_a_notebook_counts_with_the_variables_and_functions_that_it_reads() -> None:
    def make(**variables: Any) -> str:
        cell: dict[str, Any] = {"__name__": "notebook", "GAIN": 1.0, "SHIFT": 0.0, **variables}
        exec(compile(NOTEBOOK, "<cell>", "exec"), cell)
        return fingerprint(cell["Net"]())

    assert make() == make(unread=1)
    assert len({make(), make(GAIN=2.0), make(SHIFT=0.5)}) == 3


SETTINGS = "import torch\nLEVELS = torch.tensor([1.0])\nNAME = 'x'\n"
READER = """
import {settings} as settings
from {settings} import LEVELS
from torch import nn

GAIN, UNREAD, OFFSETS, POWER, CALLS = 1.0, 1.0, {{"a": 1.0}}, 1, 0
INNER = nn.Linear(1, 1)

def shift(x):
    global CALLS
    CALLS += 1
    return x + OFFSETS["a"]

class Net(nn.Module):
    @property
    def power(self):
        return POWER

    @staticmethod
    def turn(x):
        return INNER(x)

    def forward(self, x):
        return self.turn([shift(row) * GAIN for row in x] * LEVELS) ** self.power, settings.NAME
"""


def test_a_model_counts_with_the_values_that_its_functions_read_when_they_run(
    tmp_path: Path,
) -> None:
    """A file may compute a value when it is imported, or a program may set it later."""
    settings = f"settings_{tmp_path.name}"
    (tmp_path / f"{settings}.py").write_text(SETTINGS, encoding="utf-8")
    path = tmp_path / "reads_settings.py"
    path.write_text(READER.format(settings=settings), encoding="utf-8")

    def make(**values: Any) -> str:
        sys.path.insert(0, str(tmp_path))
        module = types.ModuleType("reads_settings")
        module.__file__ = str(path)
        sys.modules[module.__name__] = module
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), vars(module))
        module.INNER.load_state_dict({"weight": torch.ones(1, 1), "bias": torch.zeros(1)})
        try:
            for name, value in values.items():
                setattr(module.settings if name == "NAME" else module, name, value)
            return fingerprint(module.Net())
        finally:
            sys.path.remove(str(tmp_path))
            del sys.modules[module.__name__], sys.modules[settings]

    same = [make(), make(), make(UNREAD=2.0), make(CALLS=7)]
    others = [
        make(GAIN=2.0),
        make(OFFSETS={"a": 2.0}),
        make(POWER=2),
        make(LEVELS=torch.tensor([2.0])),
        make(INNER=nn.Linear(1, 1, bias=False)),
        make(shift=lambda x: x),
        make(NAME="y"),
    ]
    assert len({*same}) == 1
    assert len({*same, *others}) == 1 + len(others)


def test_a_model_s_place_on_this_machine_is_no_part_of_it(folder: Path) -> None:
    other = folder / "elsewhere"
    other.mkdir()
    for path in folder.glob("*.py"):
        (other / path.name).write_bytes(path.read_bytes())
    assert source_hash.hash_code(folder / "net.py") == source_hash.hash_code(other / "net.py")
    nets: list[Any] = [built(), built(), built()]
    for net, place in zip(
        nets, ("/home/one/w.pt", "/home/two/w.pt", "/home/two/v.pt"), strict=True
    ):
        net.home, net.path = place, Path(place)
    one, two, three = map(fingerprint, nets)
    assert one == two != three


def test_a_fingerprint_is_the_same_in_another_process(folder: Path) -> None:
    code = (
        "from pathlib import Path\nfrom bench.evaluation import loading\n"
        "from bench.suite import schema as entries\nimport torch\n"
        f"base = Path({str(folder)!r})\n"
        "data = loading.load_data(entries.DataEntry(name='data.py:load'), base, base, None)\n"
        "entry = entries.ModelEntry(name='net.py:build', label='net')\n"
        "net = loading.load_model(entry, base, 0, data, torch.device('cpu'))\n"
        "print(net.fingerprint, net.sketch, data.fingerprint)\n"
    )
    entry = ModelEntry(name="net.py:build", label="net")
    here = loading.load_model(entry, folder, 0, data(folder), CPU)
    there = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={"PYTHONHASHSEED": "7", "PATH": ""}, cwd=folder,
    ).stdout.strip()  # fmt: skip
    assert there == f"{here.fingerprint} {here.sketch} {data(folder).fingerprint}"


def test_data_are_what_is_read_whatever_fingerprint_they_state(folder: Path) -> None:
    before = data(folder).fingerprint
    assert data(folder, bright=0.5).fingerprint != before
    edit(folder / "data.py", "import torch\n", "import torch  # a remark\n")
    assert data(folder).fingerprint == before
    edit(folder / "data.py", "% 3", "% 2")
    assert data(folder).fingerprint != before


def test_a_sketch_of_answers_outlives_rounding_and_sees_another_sign_or_size() -> None:
    with rng.seed_global("sketch"):
        logits = torch.randn(16, 10)
        rounded = logits * (1 + 1e-6 * torch.randn(16, 10))
    assert sketch_logits(rounded) == sketch_logits(logits)
    assert not logits_differ(rounded, logits)
    for other in (-logits, logits * 12, logits.flip(1)):
        assert sketch_logits(other) != sketch_logits(logits)
        assert logits_differ(other, logits)
    assert sketch_logits(torch.full((2, 3), float("nan"))) == sketch_logits(torch.zeros(2, 3))


# ----------------------------------------------------------------------------- through a whole run

SUITE = """schema = 1
name = "s"
[data]
name = "data.py:load"
[[models]]
name = "net.py:build"
label = "net"
params = { scale = 1.0 }
[[attacks]]
name = "fgsm"
norm = "linf"
eps = [0.3]
"""


def run(folder: Path, text: str) -> tuple[int, Any]:
    """The cells that ran and the records of a run into the folder's one place."""
    began = []
    found = reader.parse_suite(text, "s.toml", folder)
    runner.run_suite(
        found, folder / "out", RunOptions(device="cpu", data_dir=folder),
        lambda event: began.append(event) if event.what == "begin" else None,
    )  # fmt: skip
    return len(began), read_results(folder / "out")


def test_a_run_that_goes_on_makes_again_what_another_model_would_answer(folder: Path) -> None:
    helper = next(folder.glob("helper*.py"))
    made, first = run(folder, SUITE)
    assert made
    assert set(first.provenance["files"]) == {path.name for path in folder.glob("*.py")}
    assert len(first.provenance["models"]["net"]["logits"]) == 12
    assert run(folder, SUITE)[0] == 0
    edit(helper, "x * FACTOR", "x * FACTOR  # twice")
    assert run(folder, SUITE)[0] == 0
    edit(helper, "x * FACTOR", "-x * FACTOR")
    again, turned = run(folder, SUITE)
    assert again
    scaled, larger = run(folder, SUITE.replace("scale = 1.0", "scale = 12.0"))
    assert scaled
    each = [found.stored.frame["clean_pred"].tolist() for found in (first, turned)]
    assert each[0] != each[1]
    sure = [found.stored.frame["clean_confidence"].mean() for found in (turned, larger)]
    assert sure[0] != sure[1]


def test_two_models_that_differ_in_params_alone_get_their_own_numbers(folder: Path) -> None:
    twins = SUITE.replace(
        "[[attacks]]",
        '[[models]]\nname = "net.py:build"\nlabel = "twin"\nparams = { scale = -1.0 }\n[[attacks]]',
    )
    _, found = run(folder, twins)
    by_model = found.stored.frame.groupby("model", observed=True)["clean_pred"].apply(list)
    assert by_model["net"] != by_model["twin"]


def test_two_models_that_cannot_be_told_apart_and_answer_otherwise_end_the_run(
    folder: Path,
) -> None:
    (folder / "net.py").write_text(
        "import threading\nfrom torch import nn\nfrom itertools import cycle\n"
        "SIGN, SIGNS = cycle([1.0, -1.0]), threading.local()\n"  # cannot be inspected
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        setattr(SIGNS, str(id(self)), next(SIGN))\n"
        "    def forward(self, x):\n"
        "        return x.flatten(1)[:, :3] * getattr(SIGNS, str(id(self)))\n"
        "def build(**_):\n    return Net()\n",
        encoding="utf-8",
    )
    twins = SUITE.replace(
        "[[attacks]]",
        '[[models]]\nname = "net.py:build"\nlabel = "twin"\nparams = { scale = 1.0 }\n[[attacks]]',
    )
    with pytest.raises(SuiteError, match="models 'net' and 'twin': expected one's answers"):
        run(folder, twins)


# -------------------------------------------------------------------------------- what is bench's

FACTS = ModelFacts(classes=10, shape=(1, 28, 28), rows=64, model_fingerprint="m",
                   data_fingerprint="d")  # fmt: skip


def identities(monkeypatch: pytest.MonkeyPatch | None = None, **versions: int) -> set[str]:
    for name, value in versions.items():
        assert monkeypatch is not None
        monkeypatch.setattr(identity, name, value)
    raw = {"norm": "linf", "eps": [0.1]}
    entries = [reader.parse_attack({"name": name, **raw}, "test") for name in ("pgd", "autoattack")]
    return {
        plan.plan_task("net", each, FACTS, 0, "independent").cells[0].identity for each in entries
    }


def test_bench_s_own_code_counts_by_its_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identities()
    with monkeypatch.context() as patch:  # a whole rewriting of every file changes nothing
        patch.setattr(Path, "read_bytes", lambda path: b"other = 1")
        source_hash.parse_source.cache_clear()
        assert identities() == before
    for name in ("NUMERICS_VERSION", "JUDGE_VERSION"):
        with monkeypatch.context() as patch:
            assert identities(patch, **{name: 2}).isdisjoint(before)
    attack = dataclasses.replace(registry.find("attacks", "pgd"), version=2)
    monkeypatch.setattr("bench.attacks.pgd.ATTACK", attack)
    assert len(identities() & before) == 1


def test_a_user_s_attack_counts_with_what_it_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = f"step_{tmp_path.name}"
    (tmp_path / f"{helper}.py").write_text("BY = 1.0\n", encoding="utf-8")
    (tmp_path / "mine.py").write_text(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport dataclasses\n"
        f"from bench.attacks import fgsm\nimport {helper}\n"
        "def run(model, x, y, threat, params, noise):\n"
        f"    return (x + {helper}.BY * threat.eps).clamp(0, 1)\n"
        "ATTACK = dataclasses.replace(fgsm.ATTACK, rule=None, run=run)\n",
        encoding="utf-8",
    )

    def identity() -> str:
        attack = registry.find("attacks", "mine.py:ATTACK", tmp_path)
        entry = reader.parse_attack({"name": "fgsm", "norm": "linf", "eps": [0.1]}, "test")
        entry = dataclasses.replace(entry, name="mine.py:ATTACK", attack=attack)
        return plan.plan_task("net", entry, FACTS, 0, "independent").cells[0].identity

    before = identity()
    (tmp_path / f"{helper}.py").write_text('"""Step."""\nBY = 1.0  # whole\n', encoding="utf-8")
    assert identity() == before
    (tmp_path / f"{helper}.py").write_text("BY = -1.0\n", encoding="utf-8")
    assert identity() != before
    assert registry.find("attacks", "mine.py:ATTACK", tmp_path).run.__globals__[helper].BY == -1.0
    at_minus_one = identity()
    monkeypatch.setattr(sys.modules[helper], "BY", -2.0)
    assert identity() != at_minus_one  # set by a program, not by the file
    assert environment.hash_files(tmp_path, ["mine.py", "absent.py"]).keys() == {"mine.py"}
