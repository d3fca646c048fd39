"""A library that is not there, and what the adapters have in common."""

import contextlib
import sys
import warnings
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import bench
from bench.cli import cli
from bench.core import optional, registry
from bench.core.errors import SuiteError
from bench.suite import plan, reader

LIBRARIES = ("foolbox", "art", "pyautoattack", "torchattacks")
NAMED = {"torchattacks": ("FGSM", "PGD")}
"""Attacks whose names bench knows without the library; of the others any name will do."""
TEXT = """
schema = 1
name = "s"
[data]
name = "digits"
[[models]]
name = "lenet"
weights = "digits"
"""
ATTACK = '[[attacks]]\nname = "{}"\nnorm = "linf"\neps = [0.1]\nparams = {{ anything = 3 }}\n'


@pytest.fixture(params=LIBRARIES)
def gone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a library that cannot be imported."""
    library: str = request.param
    monkeypatch.setitem(sys.modules, library, None)
    return library


def missing(library: str) -> str:
    extra = library if library == "torchattacks" else "peers"
    return f"library '{library}' is not installed: pip install \"robustness-bench[{extra}]\""


def attacks(library: str) -> list[str]:
    return [ATTACK.format(f"{library}:{name}") for name in NAMED.get(library, ("A", "B"))]


def test_a_suite_that_mixes_skips_the_cells_of_a_library_that_is_gone(gone: str) -> None:
    own = ATTACK.format("pgd").replace("params = { anything = 3 }\n", "")
    text = TEXT + attacks(gone)[0] + own
    read = reader.parse_suite(text, "s.toml", Path())
    theirs, ours = plan.plan_tasks(read, plan.collect_declared_facts(read))
    assert [cell.reason for cell in theirs.cells] == [missing(gone)]
    assert theirs.cells[0].implementation == gone
    assert [cell.reason for cell in ours.cells] == [""]


def test_a_suite_of_nothing_else_is_refused_in_one_sentence(gone: str) -> None:
    text = TEXT + "".join(attacks(gone))
    with pytest.raises(SuiteError) as refusal:
        reader.parse_suite(text, "s.toml", Path())
    assert refusal.value.problems == (f"s.toml: attacks: {missing(gone)}",)


def test_one_attack_alone_is_refused_in_one_sentence(gone: str) -> None:
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.full((1, 1, 2, 2), 0.5)
    name = NAMED.get(gone, ("whatever",))[0]
    with pytest.raises(SuiteError) as refusal:
        bench.evaluate(net, x, net(x).argmax(1), attack=f"{gone}:{name}")
    assert str(refusal.value) == missing(gone)


def test_a_run_without_the_reference_exits_with_0_and_says_why_nothing_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    reference = '[[attacks]]\nname = "torchattacks:PGD"\nnorm = "linf"\neps = [0.1]\n'
    targeted = reference.replace("PGD", "BIM") + 'goal = "targeted"\ntarget = "next"\n'
    own = ATTACK.format("fgsm").replace("params = { anything = 3 }\n", "")
    pair = '[[crosschecks]]\nours = "fgsm"\nreference = "torchattacks:PGD"\n'
    suite = TEXT.replace('name = "digits"', 'name = "digits"\nlimit = 4')
    (tmp_path / "s.toml").write_text(suite + own + reference + targeted + pair, encoding="utf-8")
    words = ["run", str(tmp_path / "s.toml"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    done = CliRunner().invoke(cli, words, standalone_mode=False)
    assert done.return_value == 0
    assert f"skipped: lenet · torchattacks:BIM: {missing('torchattacks')}" in done.stderr
    said = f"fgsm and torchattacks:PGD: the reference is skipped ({missing('torchattacks')})."
    assert f"cross-checks: Not compared on lenet: {said}" in done.stdout
    page = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "No cross-check was asked for" not in page
    assert "Not compared on lenet: fgsm and torchattacks:PGD: the reference is skipped" in page


def test_a_library_that_breaks_on_import_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_library.py").write_text("import no_such_thing\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    said = optional.missing_reason("broken_library")
    assert said.startswith("library 'broken_library' could not be imported (No module named")


def test_a_library_that_breaks_with_a_page_of_text_says_its_first_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = r"raise ImportError('numpy is too new\x1b[2J\n\nReinstall it.\n')"
    (tmp_path / "wordy_library.py").write_text(page, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    said = optional.missing_reason("wordy_library")
    assert r"could not be imported (numpy is too new\x1b[2J): pip install" in said


def test_the_adapters_alone_do_not_import_their_libraries() -> None:
    assert {f"{library}:" for library in LIBRARIES} <= set(registry.names("attacks"))
    assert registry.built_in("attacks", "foolbox:LinfPGD")


def test_a_name_is_known_refused_or_unknown() -> None:
    optional.check_name("lib", "A", ["A"], {"B": "it is no attack"})
    with pytest.raises(SuiteError, match="attack 'lib:B' cannot be used here: it is no attack"):
        optional.check_name("lib", "B", ["A"], {"B": "it is no attack"})
    with pytest.raises(SuiteError, match="attack 'lib:Aa' is unknown; did you mean 'Aaa'"):
        optional.check_name("lib", "Aa", ["Aaa"], {})


def test_what_a_library_prints_and_warns_of_is_silenced_and_the_warnings_of_users_are_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with torch.no_grad(), optional.silence("loud"):
        assert torch.is_grad_enabled()
        print("noise")
        warnings.warn_explicit("theirs", UserWarning, "loud/x.py", 1, module="loud.x")
        with contextlib.suppress(UserWarning), pytest.warns(UserWarning, match="mine"):
            warnings.warn_explicit("mine", UserWarning, "louder.py", 1, module="louder")
    assert capsys.readouterr().out == ""


def test_a_setting_without_a_default_must_be_said_and_a_whole_number_may_be_a_quantity() -> None:
    settings = [optional.Setting("steps", int), optional.Setting("c", float, 1)]
    kind = optional.make_params("Some", __name__, settings)
    assert kind(steps=3).c == 1.0
    with pytest.raises(TypeError, match="steps"):
        kind()
