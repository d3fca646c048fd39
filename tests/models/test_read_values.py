"""The fingerprint of a model covers what its code reads when it runs, not the process."""

import sys
import types
from pathlib import Path

import pytest

from bench.models.fingerprint import fingerprint

START = """
import collections, contextvars, dataclasses, enum, functools, os, sys, types
import torch
from torch import nn
G = float(os.environ["TEST_GAIN"])
"""
NET = """
class Net(nn.Module):
    def forward(self, x):
        return {result}
"""
FUNCTION = "def act(x{more}): return x * {by}\n"
CLASS = "class C:\n    {body}\n"

READ = {
    "a default argument": (FUNCTION.format(more=", g=G", by="g"), "act(x)"),
    "a keyword's default": (FUNCTION.format(more=", *, g=G", by="g"), "act(x)"),
    "a closure": (
        "def make(g):\n    def act(x): return x * g\n    return act\nact = make(G)",
        "act(x)",
    ),
    "an attribute of a function": (f"{FUNCTION.format(more='', by='act.g')}act.g = G", "act(x)"),
    "a decorator's closure": (
        "def scale(g):\n    def wrap(f):\n        @functools.wraps(f)\n"
        "        def act(x): return f(x) * g\n        return act\n    return wrap\n"
        "@scale(G)\ndef act(x): return x",
        "act(x)",
    ),
    "what a decorator of torch wraps": (
        f"@torch.no_grad()\n{FUNCTION.format(more='', by='GAIN')}GAIN = G",
        "act(x)",
    ),
    "what vmap wraps": (
        f"{FUNCTION.format(more='', by='GAIN')}GAIN, each = G, torch.vmap(act)",
        "each(x)",
    ),
    "a number of a class": (CLASS.format(body="g = G"), "x * C.g"),
    "a list of a class": (CLASS.format(body="g = [G]"), "x * C.g[0]"),
    "a tensor of a class": (CLASS.format(body="g = torch.tensor(G)"), "x * C.g"),
    "a list of an object's class": (f"{CLASS.format(body='g = [G]')}c = C()", "x * c.g[0]"),
    "a number of a base": (f"{CLASS.format(body='g = G')}class D(C): pass", "x * D.g"),
    "a class in a class": (CLASS.format(body="class D:\n        g = G"), "x * C.D.g"),
    "a class in a dictionary": (f"{CLASS.format(body='g = [G]')}m = {{0: C}}", "x * m[0].g[0]"),
    "a static method's default": (
        CLASS.format(body="@staticmethod\n    def act(x, g=G): return x * g"),
        "C.act(x)",
    ),
    "a property's closure": (
        f"def make(g): return lambda self: g\n{CLASS.format(body='g = property(make(G))')}",
        "x * C().g",
    ),
    "a method that was replaced": (
        f"{CLASS.format(body='def act(s, x): return x')}C.act = (lambda g: lambda s, x: x * g)(G)",
        "C().act(x)",
    ),
    "a member of an enumeration": ("class C(enum.Enum):\n    A = G", "x * C.A.value"),
    "a field's default": (
        f"@dataclasses.dataclass\n{CLASS.format(body='g: float = G')}",
        "x * C().g",
    ),
    "a field's default with slots": (
        f"@dataclasses.dataclass(slots=True)\n{CLASS.format(body='g: float = G')}",
        "x * C().g",
    ),
    "a step's class attribute": (
        "class C(torch.autograd.Function):\n    g = G\n"
        "    forward = staticmethod(lambda ctx, x: x * C.g)",
        "C.apply(x)",
    ),
    "a default of a dictionary": (
        "d = collections.defaultdict(lambda: GAIN)\nGAIN = G",
        "x * d[0]",
    ),
    "a variable of a context": ("v = contextvars.ContextVar('v', default=G)", "x * v.get()"),
    "a table": ("import pandas\nt = pandas.DataFrame({'a': [G]})", "x * t['a'][0]"),
    "one of two functions": (
        "if G > 1:\n    def act(x): return x * 2\nelse:\n    def act(x): return x",
        "act(x)",
    ),
    "one of two classes": (
        "class A:\n    def act(s, x): return x * 2\nclass B:\n    def act(s, x): return x\n"
        "C = A if G > 1 else B",
        "C().act(x)",
    ),
    "one of two bases": (
        "class A:\n    def act(s, x): return x * 2\nclass B:\n    def act(s, x): return x\n"
        "class C(A if G > 1 else B): pass",
        "C().act(x)",
    ),
    "one of two modules": (
        "if G > 1:\n    from fast_test import act\nelse:\n    from slow_test import act",
        "act(x)",
    ),
    "a module without a package": ("import folder_test.settings", "x * folder_test.settings.G"),
    "a module in a dictionary": ("import settings_test\nm = {0: settings_test}", "x * m[0].G"),
    "a class of a module": ("import settings_test", "x * settings_test.C.g"),
    "an environment variable": ("", "x * float(os.environ['TEST_GAIN'])"),
    "an environment variable by getenv": (
        "from os import getenv",
        "x * float(getenv('TEST_GAIN'))",
    ),
}
PROCESS = {
    "the environment": ("from os import environ", "x * len(environ)"),
    "the command": ("from sys import argv", "x * len(argv)"),
    "the path": ("from sys import path", "x * len(path)"),
    "the global generator": ("g = torch.default_generator", "x * g.initial_seed()"),
    "its folder": ("here = os.path.dirname(os.path.abspath(__file__))", "x * len(here)"),
}


class Files:
    """Writes a model file and what it imports, and fingerprints its model."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, monkeypatch
        settings = "import os\nG = float(os.environ['TEST_GAIN'])\nclass C:\n    g = G\n"
        (folder / "folder_test").mkdir(parents=True)
        for name, text in {
            "fast_test.py": "def act(x): return x * 2\n",
            "slow_test.py": "def act(x): return x\n",
            "settings_test.py": settings,
            "folder_test/settings.py": settings,
        }.items():
            (folder / name).write_text(text, encoding="utf-8")

    def fingerprint(self, before: str, result: str, gain: float) -> str:
        """Import the file in which `result` is the forward's, and fingerprint its model."""
        path = self.folder / "read_test.py"
        source = f"{START}{before}\n{NET.format(result=result)}"
        path.write_text(source, encoding="utf-8")
        known = {*sys.modules}
        with self.patch.context() as patch:
            patch.setenv("TEST_GAIN", str(gain))
            patch.syspath_prepend(str(self.folder))
            module = types.ModuleType("read_test")
            module.__file__ = str(path)
            patch.setitem(sys.modules, "read_test", module)
            exec(compile(source, str(path), "exec"), vars(module))
            try:
                return fingerprint(module.Net())
            finally:
                for name in {*sys.modules} - known:
                    if name.endswith("_test") or name.startswith("folder_test"):
                        sys.modules.pop(name, None)


@pytest.mark.parametrize("case", READ)
def test_a_model_counts_with(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = Files(tmp_path / "a", monkeypatch)
    before, result = READ[case]
    before = f"{before}\ndel G"  # what is read is what remains of it
    one, again, two = (files.fingerprint(before, result, gain) for gain in (1.0, 1.0, 2.0))
    assert one == again != two


@pytest.mark.parametrize("case", PROCESS)
def test_a_model_counts_without(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Files(tmp_path / "a", monkeypatch).fingerprint(*PROCESS[case], 1.0)
    monkeypatch.setenv("TEST_ANOTHER", "1")
    monkeypatch.setattr(sys, "argv", ["another", "command"])
    monkeypatch.syspath_prepend(str(tmp_path))
    assert Files(tmp_path / "b", monkeypatch).fingerprint(*PROCESS[case], 1.0) == one
