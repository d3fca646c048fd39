"""How a newcomer enters a leaderboard: two commands, and a sentence for what is missing."""

import json
import shutil
import tomllib
from pathlib import Path
from typing import NamedTuple

import click
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from bench.cli import cli
from bench.core.errors import SuiteError
from bench.suite import identity
from bench.workflows.leaderboard import card_writing

N = 12
BOARD = f"""
schema = 1
name = "small"
title = "Digits within L-inf"
crosschecks = [{{ ours = "FGSM", reference = "PGD" }}]
[data]
name = "digits"
limit = {N}
[[models]]
name = "lenet"
label = "LeNet"
weights = "digits"
[[attacks]]
name = "fgsm"
label = "FGSM"
norm = "linf"
eps = [0.05, 0.1]
[[attacks]]
name = "pgd"
label = "PGD"
norm = "linf"
eps = [0.1]
params = {{ steps = 3, loss = "losses.py:margin" }}
[[published]]
model = "LeNet"
attack = "FGSM"
source = "somebody"
eps = [0.1]
values = [0.4]
"""
LOSSES = """
def margin(logits, labels, images):
    return logits.amax(1) - logits.gather(1, labels[:, None])[:, 0]
"""
MINE = """
from torch import nn

def net(width: int = 8):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))
"""
TEXTS = ("--source", "my thesis", "--training", "SGD", "--trained-on", "1,297 digits",
         "--licence", "MIT", "--contact", "me")  # fmt: skip
RUN = ("run", "boards/small.toml", "--model", "net/mine.py:net", "--weights", "net/w.pt",
       "--param", "width=6", "--device", "cpu")  # fmt: skip
ADD = ("leaderboard", "board", "--suite", "boards/small.toml", "--device", "cpu", "--add")


def make_folder(folder: Path) -> None:
    """Make a board's suite in one folder, and a model with weights in another."""
    (folder / "boards").mkdir()
    (folder / "boards" / "small.toml").write_text(BOARD)
    (folder / "boards" / "losses.py").write_text(LOSSES)
    (folder / "net").mkdir()
    (folder / "net" / "mine.py").write_text(MINE)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(784, 6), nn.ReLU(), nn.Linear(6, 10))
    torch.save(net.state_dict(), folder / "net" / "w.pt")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after both commands."""
    folder = tmp_path_factory.mktemp("newcomer")
    make_folder(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ran = bench(*RUN, "--out", "mine")
        assert ran.exit_code == 0, ran.output
        added = bench(*ADD, "mine", "--name", "my net", *TEXTS)
        assert added.exit_code == 0, added.output
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as the working folder."""
    place = tmp_path / "copy"
    shutil.copytree(made, place)
    monkeypatch.chdir(place)
    return place


class Done(NamedTuple):
    """A finished command."""

    exit_code: int
    output: str


def bench(*words: str) -> Done:
    result = CliRunner().invoke(cli, words, standalone_mode=False)
    if isinstance(result.exception, click.UsageError):
        return Done(result.exception.exit_code, result.exception.message)
    assert result.exception is None, result.exception
    return Done(result.return_value or 0, result.output)


def said(done: Done) -> str:
    return " ".join(done.output.split())


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_two_commands_put_a_model_of_ones_own_on_a_board(made: Path) -> None:
    page = (made / "board" / "leaderboard.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| 1 | my net |"))
    assert f"{N} of {N}" in row
    assert "source: my thesis" in page
    assert "trained on: 1,297 digits" in page
    assert "weights: w.pt" in page
    recheck = json.loads((made / "board" / "entries" / "my-net" / "recheck.json").read_text())
    assert (recheck["examples"], recheck["differ"]) == (N, 0)


def test_a_suites_data_and_attacks_stay_when_a_model_takes_the_place_of_its_own(
    made: Path,
) -> None:
    stored = tomllib.loads((made / "mine" / "suite.toml").read_text())
    asked = tomllib.loads(BOARD)
    assert stored["models"] == [
        {"name": "../net/mine.py:net", "label": "net/mine.py:net", "weights": "../net/w.pt",
         "params": {"width": 6}}
    ]  # fmt: skip
    asked["attacks"][1]["params"]["loss"] = "../boards/losses.py:margin"
    for key in ("name", "title", "data", "attacks", "crosschecks"):
        assert stored[key] == asked[key]
    assert "published" not in stored  # figures of other models


def test_without_a_folder_the_run_is_not_where_the_suites_own_is(folder: Path) -> None:
    shutil.rmtree(folder / "mine")
    result = bench(*RUN, "--limit", "1")
    assert result.exit_code == 0, result.output
    (run,) = (folder / "results" / "runs").iterdir()
    assert run.name.startswith("net-small-toml-") or run.name.startswith("net-small-")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--attack", "fgsm"), "boards/small.toml and --attack: expected a suite or options"),
        (("--norm", "l2"), "only --model, --weights, --trust, --param may be given"),
        (("--param", "steps=3"), "--param steps: expected a parameter of the model"),
        (("--param", "attack.steps=3"), "expected the name of what it is for before the dot"),
        (("--weights", "w.pt"), "--weights: expected one for each of the 1 --model"),
    ],
)
def test_what_would_change_the_threat_model_is_refused(
    folder: Path, words: tuple[str, ...], part: str
) -> None:
    result = bench(*RUN, *words, "--out", "other")
    assert result.exit_code == 2
    assert part in said(result)
    assert not (folder / "other").exists()


def test_a_suite_with_weights_and_no_model_asks_for_the_model(folder: Path) -> None:
    result = bench("run", "boards/small.toml", "--weights", "net/w.pt")
    assert result.exit_code == 2
    assert "boards/small.toml and --weights: expected --model as well" in said(result)


def test_a_plan_takes_a_suite_with_a_model(folder: Path) -> None:
    result = bench("plan", "boards/small.toml", "--model", "lenet")
    assert result.exit_code == 0, result.output
    assert "LeNet" not in result.output
    assert "lenet" in result.output


def test_a_card_that_lacks_texts_is_written_and_says_what_to_fill_in(folder: Path) -> None:
    (folder / "mine" / "card.toml").unlink()
    shutil.rmtree(folder / "board" / "entries")
    first = bench(*ADD, "mine", "--licence", "MIT")
    assert first.exit_code == 2
    assert (
        "mine/card.toml: expected a text for source, training, data, contact, got none; fill it in "
        "there or give --source, --training, --trained-on, --contact"
    ) in said(first)
    card = folder / "mine" / "card.toml"
    assert 'training = ""  # how it was trained, and against what' in card.read_text()
    for key in ("source", "training"):
        edit(card, f'{key} = ""', f'{key} = "written by hand"')
    rest = ("--trained-on", "digits", "--contact", "me", "--name", "another name", "--limit", "2")
    done = bench(*ADD, "mine", *rest)
    assert done.exit_code == 0, done.output
    assert "run again on 2 of 12 examples" in said(done)
    table = tomllib.loads(card.read_text())
    assert (table["source"], table["licence"], table["data"]) == (
        "written by hand",
        "MIT",
        "digits",
    )


def test_the_card_of_a_run_by_a_suite_file_starts_from_the_runs_folder(folder: Path) -> None:
    text = BOARD.replace('"lenet"\n', '"../net/mine.py:net"\n').replace(
        '"digits"\n[[att', '"../net/w.pt"\nparams = { width = 6 }\n[[att'
    )
    (folder / "boards" / "own.toml").write_text(text)
    assert bench("run", "boards/own.toml", "--out", "deep/own", "--device", "cpu").exit_code == 0
    with pytest.raises(SuiteError, match="expected a text for source"):
        card_writing.write_card(Path("deep/own"), None, {})
    table = tomllib.loads(Path("deep/own/card.toml").read_text())
    assert table["name"] == "LeNet"
    assert table["model"]["name"] == "../../net/mine.py:net"
    assert table["model"]["weights"] == "../../net/w.pt"


def test_a_run_of_several_models_asks_which(folder: Path) -> None:
    two = ("--model", "net/mine.py:net", "--weights", "", "--weights", "digits", "--model", "lenet")
    result = bench("run", "boards/small.toml", *two, "--out", "two", "--limit", "1")
    assert result.exit_code == 0, result.output
    assert "expected the run of one model, got 2 (net/mine.py:net, lenet)" in said(
        bench(*ADD, "two")
    )
    assert "no model 'lenett' in this run; did you mean 'lenet'" in said(
        bench(*ADD, "two", "--model", "lenett")
    )


def test_a_name_that_another_model_has_is_refused(folder: Path) -> None:
    other = ("run", "boards/small.toml", "--model", "lenet", "--out", "other", "--device", "cpu")
    assert bench(*other).exit_code == 0
    result = bench(*ADD, "other", "--name", "My Net", *TEXTS)
    assert result.exit_code == 2
    assert "expected no other model of the name 'My Net'" in said(result)
    assert bench(*ADD, "other", "--name", "LeNet", *TEXTS).exit_code == 0
    assert len(list((folder / "board" / "entries").iterdir())) == 2


def test_a_model_that_is_on_the_board_under_another_name_is_refused(folder: Path) -> None:
    result = bench(*ADD, "mine", "--name", "again", *TEXTS)
    assert result.exit_code == 2
    assert "my-net: is the entry of this very model" in said(result)
    assert len(list((folder / "board" / "entries").iterdir())) == 1
    assert bench(*ADD, "mine", "--name", "my net", *TEXTS).exit_code == 0  # replaces its entry


@pytest.mark.parametrize("words", [("--source", "x"), ("--card", "card.toml")])
def test_what_describes_a_model_goes_with_a_run(folder: Path, words: tuple[str, ...]) -> None:
    result = bench(*ADD[:-1], *words)
    assert result.exit_code == 2
    assert "go with --add" in result.output


def test_a_card_and_options_that_say_the_same_are_not_given_together(folder: Path) -> None:
    result = bench(*ADD, "mine", "--card", "mine/card.toml", "--licence", "MIT")
    assert result.exit_code == 2
    assert "leave one of them out" in result.output


def test_a_board_remembers_its_shipped_suite(folder: Path) -> None:
    entry = folder / "board" / "entries" / "my-net" / "baseline.json"
    edit(entry, '"suite": "small"', '"suite": "quickstart"')
    result = bench("leaderboard", "board")
    assert result.exit_code == 2
    assert "FGSM: stop: expected 'never', got 'first-success'" in said(result)


# --------------------------------------------------------------------------------------- refusals


def refusals(*words: str) -> str:
    """What a submission that is refused is told."""
    result = bench(*ADD, *words)
    assert result.exit_code == 1, result.output
    return said(result)


def test_fewer_examples_and_another_suite_are_refused(folder: Path) -> None:
    assert bench(*RUN, "--out", "few", "--limit", "5").exit_code == 0
    told = refusals("few", "--name", "my net", *TEXTS)
    assert "not entered: my net: expected 12 examples, got 5" in told
    text = BOARD.replace('"small"', '"other"').replace("steps = 3", "steps = 4")
    text = text.replace("[0.05, 0.1]", "[0.05]").replace("[0.1]", "[0.05]")
    (folder / "boards" / "other.toml").write_text(text)
    words = [word if word != "boards/small.toml" else "boards/other.toml" for word in RUN]
    result = bench(*words, "--out", "weaker")
    assert result.exit_code == 0, result.output
    told = refusals("weaker", "--name", "my net", *TEXTS)
    assert "expected a run of the suite small, got one of other" in told
    assert "PGD: params.steps: expected 3, got 4" in told
    assert "FGSM, eps 0.1: expected a finished cell, got none" in told


def test_another_norm_is_refused(folder: Path) -> None:
    edit(folder / "boards" / "small.toml", 'norm = "linf"', 'norm = "l2"')
    assert "FGSM: norm: expected 'l2', got 'linf'" in refusals("mine")


def test_another_version_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "NUMERICS_VERSION", identity.NUMERICS_VERSION + 1)
    told = refusals("mine")
    assert "FGSM: expected the code of this bench (version 1, numerics" in told
    assert "run the suite again" in told


def test_edited_records_are_refused(folder: Path) -> None:
    record = max((folder / "mine" / "records").rglob("*.parquet"), key=lambda path: path.name)
    record.write_bytes(record.read_bytes()[:-4] + b"junk")
    done = bench(*ADD, "mine")
    assert done.exit_code == 2
    assert "damaged records (its hash is not the one in its name)" in said(done)


def test_a_model_that_was_edited_after_its_run_is_refused(folder: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 6), nn.ReLU(), nn.Linear(6, 10))
    torch.save(net.state_dict(), folder / "net" / "w.pt")
    assert "the card builds one of fingerprint" in refusals("mine")
