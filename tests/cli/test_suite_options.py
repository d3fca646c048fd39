"""A suite that the options of one command mean, and the suite that `bench init` writes."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import nn

from bench.cli import cli
from bench.core.errors import SuiteError
from bench.suite.reader import parse_suite

MINE = """
from torch import nn
from bench import Attack, Threat
from dataclasses import dataclass

def make(width: int = 8):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))

@dataclass(frozen=True, kw_only=True)
class Nothing:
    share: float = 1.0

def brighten(model, x, y, threat, params, noise):
    return (x + params.share * threat.eps).clamp(0, 1)

BRIGHTER = Attack(summary="brighter", source="none", params=Nothing, norms=("linf",),
                  goals=("untargeted",), run=brighten)
"""
OPTIONS = ("--model", "mine.py:make", "--weights", "w.pt", "--data", "digits", "--attack", "fgsm",
           "--attack", "mine.py:BRIGHTER", "--eps", "8/255,0.1", "--limit", "4",
           "--param", "width=6", "--param", "share=0.5")  # fmt: skip
LENET = ("--model", "lenet", "--data", "digits", "--attack", "fgsm")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a user's model, attack and weights."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 6), nn.ReLU(), nn.Linear(6, 10))
    torch.save(net.state_dict(), tmp_path / "w.pt")
    return tmp_path


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def refusal(*arguments: str) -> str:
    """The sentence that a wrong command gets."""
    done = bench(*arguments)
    assert done.exit_code == 2, done.output
    return " ".join(done.output.split())


def cells(folder: Path) -> list[str]:
    manifest = json.loads((folder / "provenance.json").read_text())
    return [cell["identity"] for cell in manifest["cells"]]


def test_options_run_the_same_cells_as_their_stored_suite_and_as_a_suite_beside_the_files(
    folder: Path,
) -> None:
    done = bench("run", *OPTIONS)
    assert done.exit_code == 0, done.output
    (run,) = (folder / "results" / "runs").iterdir()
    (folder / "beside.toml").write_text("""
        schema = 1
        name = "beside"
        data = { name = "digits", limit = 4 }
        models = [{ name = "mine.py:make", weights = "w.pt", params = { width = 6 } }]
        attacks = [
            { name = "fgsm", norm = "linf", eps = ["8/255", 0.1] },
            { name = "mine.py:BRIGHTER", norm = "linf", eps = ["8/255", 0.1], params.share = 0.5 },
        ]
    """)
    assert bench("run", str(run / "suite.toml"), "--out", "again").exit_code == 0
    assert bench("run", "beside.toml", "--out", "beside").exit_code == 0
    assert cells(run) == cells(folder / "again") == cells(folder / "beside")
    hashes = [(at / "records.sha256").read_text() for at in (run, folder / "again")]
    assert hashes[0] == hashes[1]


def test_a_run_of_other_options_is_not_merged_into_a_folder(folder: Path) -> None:
    assert bench("run", *LENET, "--limit", "3", "--eps", "0.1", "--out", "a").exit_code == 0
    other = ("run", *LENET, "--limit", "3", "--eps", "0.2", "--out", "a")
    said = refusal(*other)
    assert "eps = [0.1] there, eps = [0.2] here" in said
    assert "--fresh" in said
    assert "suite.toml" in refusal("run", "quickstart", "--limit", "3", "--out", "a")
    assert bench(*other, "--fresh").exit_code == 0
    assert tomllib.loads(Path("a/suite.toml").read_text())["attacks"][0]["eps"] == [0.2]


def test_a_plan_takes_the_same_options_and_writes_nothing(folder: Path) -> None:
    done = bench("plan", *OPTIONS)
    assert done.exit_code == 0, done.output
    assert "4 cells" in done.output
    assert sorted(path.name for path in folder.iterdir()) == ["mine.py", "w.pt"]


def test_a_plan_in_a_log_of_80_columns_cuts_no_name_short(folder: Path) -> None:
    names = ("--attack", "rotation_translation", "--norm", "rotation-translation", "--eps", "1")
    said = bench("plan", *LENET[:-2], *names).output
    assert "\u2026" not in said
    assert "\u2502 lenet \u2502 rotation_translation \u2502" in said
    assert "\nrotation-translation, untargeted, passes per example" in said


def test_weights_are_those_trained_on_the_data_and_pair_with_models_in_order(folder: Path) -> None:
    assert bench("run", *LENET, "--limit", "2", "--eps", "0.1", "--out", "a").exit_code == 0
    assert tomllib.loads(Path("a/suite.toml").read_text())["models"][0]["weights"] == "digits"
    two = ("--model", "mine.py:make", "--weights", "", "--weights", "digits")
    assert bench("run", *two, *LENET, "--limit", "2", "--eps", "0.1", "--out", "b").exit_code == 0
    models = tomllib.loads(Path("b/suite.toml").read_text())["models"]
    assert [model.get("weights") for model in models] == [None, "digits"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "expected SUITE, or --model, --data, --attack and --eps in its place"),
        (("quickstart", *LENET), "expected a suite or options in its place, got both"),
        (LENET, "expected --eps as well"),
        ((*LENET, "--eps", "1/0"), "expected a number or a fraction such as '8/255', got '1/0'"),
        ((*LENET, "--eps", "1", "--norm", "l0"), "attack 'fgsm' has no norm 'l0'"),
        ((*LENET, "--eps", "0.1", "--weights", "a", "--weights", "b"), "--weights: expected one"),
        ((*LENET, "--eps", "0.1", "--param", "los=ce"), "did you mean 'loss'?"),
        ((*LENET, "--eps", "0.1", "--param", "pgd.loss=ce"), "before the dot, got 'pgd'"),
        ((*LENET, "--eps", "0.1", "--param", "loss"), "expected KEY=VALUE"),
        (("--model", "a.py:b", *LENET[2:], "--eps", "1"), "a.py: expected a Python file there"),
    ],
)
def test_a_mistake_gets_a_sentence(folder: Path, arguments: tuple[str, ...], sentence: str) -> None:
    assert sentence in refusal("plan", *arguments)


def test_a_parameter_of_two_kinds_is_asked_about(folder: Path) -> None:
    Path("mine.py").write_text(MINE.replace("width: int", "share: int"))
    said = refusal("plan", *OPTIONS[:-4], "--param", "share=6")
    assert "write model.share or attack.share" in said


def test_the_suite_that_init_writes_runs_and_is_never_overwritten(folder: Path) -> None:
    assert bench("init").exit_code == 0
    written = Path("suite.toml").read_text()
    assert bench("run", "suite.toml", "--limit", "3", "--out", "run").exit_code == 0
    assert "not overwritten" in refusal("init")
    assert Path("suite.toml").read_text() == written


def test_every_block_in_the_comments_of_init_is_valid(folder: Path) -> None:
    bench("init", "mine.toml")
    text = Path("mine.toml").read_text()
    used = re.sub(r"^# (?=\[|\w+ = )", "", text, flags=re.M)
    used = re.sub(r'\[data\]\nname = "digits".*?\n\n', "", used, flags=re.S)
    used = used.replace("mine.py:BRIGHTNESS", "mine.py:BRIGHTER")
    suite = parse_suite(used, "mine.toml", folder) if used.count("[data]") == 1 else None
    assert suite is not None
    assert (suite.data.name, len(suite.models), len(suite.attacks)) == ("cifar10", 2, 4)
    with pytest.raises(SuiteError, match="AutoAttac"):
        parse_suite(used.replace('attack = "PGD-20"', 'attack = "AutoAttac"'), "x", folder)


NO_WEIGHTS = ("run", "--model", "mine.py:make", "--weights", "nope.pt", "--data", "digits",
              "--attack", "fgsm", "--eps", "0.1", "--limit", "2")  # fmt: skip


@pytest.mark.parametrize("place", [(), ("--out", "a/b"), ("--out", "a/b", "--shard", "1/2")])
def test_a_refused_run_leaves_no_folder(folder: Path, place: tuple[str, ...]) -> None:
    assert "nope.pt" in refusal(*NO_WEIGHTS, *place)
    assert sorted(path.name for path in folder.iterdir()) == ["mine.py", "w.pt"]


def test_a_refused_run_leaves_what_was_in_its_folder(folder: Path) -> None:
    (folder / "a").mkdir()
    assert "nope.pt" in refusal(*NO_WEIGHTS, "--out", "a")
    assert [*(folder / "a").iterdir()] == []
    assert bench("run", *LENET, "--limit", "2", "--eps", "0.1", "--out", "a").exit_code == 0
    earlier = {path: path.read_bytes() for path in (folder / "a").rglob("*") if path.is_file()}
    assert "nope.pt" in refusal(*NO_WEIGHTS, "--out", "a", "--fresh")
    assert {p: p.read_bytes() for p in (folder / "a").rglob("*") if p.is_file()} == earlier


def test_a_refused_run_of_a_suite_file_leaves_no_folder(folder: Path) -> None:
    (folder / "nope.toml").write_text("""
        schema = 1
        name = "nope"
        data = { name = "digits", limit = 2 }
        models = [{ name = "mine.py:make", weights = "nope.pt" }]
        attacks = [{ name = "fgsm", norm = "linf", eps = [0.1] }]
    """)
    assert "nope.pt" in refusal("run", "nope.toml", "--out", "a")
    assert not (folder / "a").exists()


@pytest.mark.parametrize("place", [(), ("--out", "a")])
def test_a_mistake_in_the_options_is_named_as_on_the_command_line(
    folder: Path, place: tuple[str, ...]
) -> None:
    said = refusal("run", *LENET, "--eps", "1/0", *place)
    assert said.startswith("bench: command line: attacks[0].eps[0]: ")
    assert sorted(path.name for path in folder.iterdir()) == ["mine.py", "w.pt"]


@pytest.mark.parametrize("weights", ["nope.pt", "./nope.pt", "sub/../nope.pt", "w.pt#nope"])
def test_a_refused_run_names_files_as_they_were_typed(folder: Path, weights: str) -> None:
    said = refusal(*NO_WEIGHTS[:4], weights, *NO_WEIGHTS[5:])
    assert f"weights '{weights}'" in said
    assert "../.." not in said
    assert str(folder / "results") not in said


def test_a_function_of_the_users_in_a_sentence_is_named_as_it_was_typed(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "data.py").write_text("def load(): return 1 / 0")
    said = refusal(
        "run", *LENET[:2], "--data", "sub/data.py:load", "--attack", "fgsm", "--eps", "0.1"
    )
    assert "data sub/data.py:load: " in said


def test_a_part_of_a_file_of_weights_is_found_from_the_working_folder(folder: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 10))
    torch.save({"ema": net.state_dict()}, folder / "parts.pt")
    done = bench(*NO_WEIGHTS[:4], "parts.pt#ema", *NO_WEIGHTS[5:], "--out", "a")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("name", ["pics", "../pics/", "x" * 5000])
def test_the_name_of_a_folder_as_data_gets_the_way_to_read_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (folder / "pics").mkdir()
    (folder / "work" / "pics").mkdir(parents=True)
    monkeypatch.chdir(folder / "work")
    said = refusal("plan", *LENET[:2], "--data", name, "--attack", "fgsm", "--eps", "0.1")
    assert f"dataset '{name}'"[:40] in said
    assert ("'image_folder' with --data-dir" in said) == ("pics" in name)


def test_the_way_to_read_a_folder_of_images_works(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / "pics" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(folder / "pics" / name / "1.png")
    about = ("plan", *LENET[:2], "--attack", "fgsm", "--eps", "0.1")
    assert "'image_folder' with --data-dir pics" in refusal(*about, "--data", "pics")
    done = bench(*about, "--data", "image_folder", "--data-dir", "pics")
    assert done.exit_code == 0, done.output
    assert "folders in the order of their text in pics" in done.output
