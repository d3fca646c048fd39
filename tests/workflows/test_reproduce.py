"""A run repeated from its own provenance: the same again, or what is otherwise, by example."""

import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import bench
from bench.analysis import results
from bench.cli import cli
from bench.storage import environment, fingerprint, reader, records
from bench.workflows import reproduce

SUITE = """
schema = 1
name = "again"
[data]
name = "digits"
limit = 50
[[models]]
name = "net.py:net"
label = "net"
[[attacks]]
name = "pgd"
norm = "linf"
eps = [0.05, 0.1]
params = { steps = 4 }
[[attacks]]
name = "fgsm"
norm = "linf"
eps = [0.1]
"""
NET = """
from torch import nn
from safetensors.torch import load_file
from bench.models.published_weights import WEIGHTS
from bench.models import lenet


def net():
    model = lenet.build()
    model.load_state_dict(load_file(WEIGHTS / "lenet-digits.safetensors"))
    return model{change}
"""
HALVED = "if isinstance(m, nn.Conv2d):\n        m.weight.data.mul_(0.5)"
QUICKSTART = Path(__file__).parents[2] / "results" / "quickstart"


def written(folder: Path, change: str = "") -> Path:
    (folder / "net.py").write_text(NET.format(change=change), encoding="utf-8")
    (folder / "again.toml").write_text(SUITE, encoding="utf-8")
    return folder / "again.toml"


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a suite, the code that it names, a run of its first 30 examples, the same run
    again in "second", and what was said of that in "said"."""
    home = tmp_path_factory.mktemp("home")
    path = written(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        bench.run(str(path), "run", device="cpu", limit=30, batch_size=16, deterministic=True)
        done = typed("run", "--out", "second")
        assert done.return_value == 0, done.output
        Path("said").write_text(done.stdout, encoding="utf-8")
    return home


@pytest.fixture
def home(repeated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder for each test, and the working directory."""
    shutil.copytree(repeated, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def typed(*words: str) -> Result:
    return CliRunner().invoke(cli, ["rerun", *words], standalone_mode=False)


def document(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    return result


def changed(folder: Path, name: str, **values: Any) -> None:
    """Change what the last session of a run says of itself."""
    about = document(folder)
    about["sessions"][-1][name] |= values
    (folder / "provenance.json").write_text(json.dumps(about), encoding="utf-8")


def test_a_run_repeats_itself_to_the_last_bit(home: Path) -> None:
    said = (home / "said").read_text(encoding="utf-8")
    assert "differs" not in said
    assert "net · pgd at eps 0.05, 0.1: 30 outcomes identical to the last bit each" in said
    assert said.endswith("rerun: second: the same to the last bit\n")
    hashes = {
        fingerprint.records_hash(reader.read_records(home / out).frame) for out in ("run", "second")
    }
    assert len(hashes) == 1
    asked = [document(home / out)["sessions"][-1]["options"] for out in ("run", "second")]
    assert asked[0] == asked[1]
    assert (asked[0]["limit"], asked[0]["batch_size"]) == (30, 16)


def test_nothing_of_this_machine_is_kept_but_what_the_environment_says(home: Path) -> None:
    about = document(home / "run")
    assert about["suite"]["base"] == "."
    assert list(about["files"]) == ["net.py"]
    about["sessions"][-1].pop("environment")
    assert str(home.parent) not in json.dumps(about)


def test_an_outcome_that_is_otherwise_is_reported_by_its_example(home: Path) -> None:
    first, second = (results.read_results(home / out) for out in ("run", "second"))
    frame = second.stored.frame
    at = frame.index[frame["clean_correct"] & (frame["attack"] == "fgsm")][0]
    frame.loc[at, "fooled"] = not frame.loc[at, "fooled"]
    result = reproduce.compare_repetition(first, second)
    fgsm = next(cell for cell in result.cells if cell.place["attack"] == "fgsm")
    assert fgsm.otherwise == [frame.loc[at, "example"]]
    assert f"1 of 30 outcomes differ: examples {frame.loc[at, 'example']}" in fgsm.phrase
    assert not result.agree(bits=False)


def test_a_distance_that_is_off_is_no_other_outcome_but_other_bits(home: Path) -> None:
    first, second = (results.read_results(home / out) for out in ("run", "second"))
    frame = second.stored.frame
    frame.loc[frame["attack"] == "pgd", "l2"] += 1e-3
    result = reproduce.compare_repetition(first, second)
    assert [cell.columns for cell in result.cells] == [["l2"], ["l2"], []]
    assert result.cells[0].farthest == pytest.approx(1e-3, rel=1e-2)
    assert result.agree(bits=False)
    assert not result.agree(bits=True)


def test_a_file_that_has_changed_is_named_and_so_is_what_came_of_it(home: Path) -> None:
    written(home, change="  # the same")
    done = typed("run", "--out", "third")
    assert "differs: net.py is not the file that it was (sha256 " in done.stdout
    assert done.return_value == 0, done.output
    assert done.stdout.endswith("rerun: third: the same in every outcome\n")


def test_another_model_is_said_to_be_one_and_has_other_outcomes(home: Path) -> None:
    code = NET.format(change="").replace(
        "return model", "model[-1].bias.data[0] += 9; return model"
    )
    (home / "net.py").write_text(code, encoding="utf-8")
    done = typed("run", "--out", "third")
    assert done.return_value == 1, done.output
    assert "differs: net is another model now" in done.stdout
    assert "so other cells: net · pgd, net · fgsm" in done.stdout
    assert "outcomes differ: examples" in done.stdout
    assert done.stdout.endswith("rerun: third: not the same in every outcome\n")


def test_versions_that_differ_are_reported_first(home: Path) -> None:
    evaluator = document(home / "run")["sessions"][-1]
    lines = [line for line in evaluator["requirements"] if not line.startswith("click==")]
    assert len(lines) == len(evaluator["requirements"]) - 1
    changed(home / "run", "environment", python="3.9.1")
    about = document(home / "run")
    about["sessions"][-1]["requirements"] = [*lines, "click==0.1", "gone==2"]
    (home / "run" / "provenance.json").write_text(json.dumps(about), encoding="utf-8")
    result = typed("run", "--out", "third").stdout.splitlines()
    assert result[0].startswith("differs: python: 3.9.1 then, ")
    assert f"differs: click: 0.1 then, {metadata.version('click')} now" in result
    assert "differs: installed then alone: gone" in result


def test_what_is_installed_is_kept_as_lines_that_pip_takes(home: Path) -> None:
    lines = document(home / "run")["sessions"][-1]["requirements"]
    assert f"torch=={metadata.version('torch')}" in lines
    assert not any(line.startswith("robustness-bench") for line in lines)
    assert lines == sorted(lines, key=str.lower)
    assert lines == environment.list_requirements()


def test_a_file_that_is_not_there_is_asked_for(home: Path) -> None:
    (home / "code").mkdir()
    (home / "net.py").rename(home / "code" / "net.py")
    lost = CliRunner().invoke(cli, ["rerun", "run", "--out", "third"], standalone_mode=False)
    assert lost.return_value == 2
    assert "its suite names net.py, not found in .; say with --base" in lost.stderr
    assert typed("run", "--out", "third", "--base", "code").return_value == 0


def test_neither_the_run_itself_nor_a_finished_one_is_written_into(home: Path) -> None:
    assert typed("run", "--out", "run").return_value == 2
    again = typed("run", "--out", "second")
    assert again.return_value == 2
    assert "holds a run that is finished" in again.stderr


def test_an_interrupted_repetition_goes_on(home: Path) -> None:
    about = document(home / "second")
    about["sessions"][-1]["finished"] = None
    (home / "second" / "provenance.json").write_text(json.dumps(about), encoding="utf-8")
    assert typed("run", "--out", "second").return_value == 0


def test_other_data_are_not_compared(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = document(home / "run")
    about["data"] |= {"fingerprint": "other", "name": "others"}
    (home / "run" / "provenance.json").write_text(json.dumps(about), encoding="utf-8")
    done = typed("run", "--out", "third")
    assert done.return_value == 3
    assert "not compared: other data" in done.stdout


def test_a_cell_that_failed_now_is_otherwise(home: Path) -> None:
    cell = results.read_results(home / "second").plan[0].identity
    for path in (home / "second" / "records").glob("*.parquet"):
        if cell in path.name:
            path.unlink()
    records.write_failure(home / "second", cell, "out of ideas")
    result = reproduce.compare_repetition(
        *(results.read_results(home / out) for out in ("run", "second"))
    )
    assert any("ok then, failed (out of ideas) now" in sentence for sentence in result.apart)
    assert not result.agree(bits=False)


def test_a_run_of_an_older_bench_can_be_repeated_as_far_as_it_says(tmp_path: Path) -> None:
    about = document(QUICKSTART)
    for session in about["sessions"]:
        session.pop("options", None)  # which older versions did not record
    (tmp_path / "provenance.json").write_text(json.dumps(about), encoding="utf-8")
    again = reproduce.plan_repetition(tmp_path, None, None, Path(), "bench rerun")
    assert again.options.limit == about["data"]["n"]
    assert again.options.device == about["sessions"][-1]["environment"]["device"]
    assert not again.options.deterministic
    assert "kept no options" in again.notes[0]
    assert again.suite.text == about["suite"]["text"]


def test_one_phrase_is_used_for_all_eps_that_are_alike() -> None:
    place = {"model": "m", "attack": "a"}
    cells = [
        reproduce.CellComparison({**place, "eps_text": eps}, 9, otherwise, [], 0.0)
        for eps, otherwise in (("0.1", []), ("0.2", [4]), ("0.3", []))
    ]
    assert list(reproduce.describe_cells(cells)) == [
        "m · a at eps 0.1, 0.3: 9 outcomes identical to the last bit each",
        "m · a at eps 0.2: 1 of 9 outcomes differ: examples 4",
    ]
