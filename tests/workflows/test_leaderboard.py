"""The leaderboard: who is ranked before whom, what a model has to show before it enters, and that
nothing enters that was not measured again."""

import dataclasses
import shutil
from pathlib import Path

import browser
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import bench
from bench.analysis.snapshot import (
    AttackSnapshot,
    CellSnapshot,
    DataSnapshot,
    MachineSnapshot,
    ModelSnapshot,
    Snapshot,
    pack_outcomes,
)
from bench.cli import cli
from bench.core.errors import RecordError, SuiteError
from bench.execution.options import RunOptions
from bench.suite import reader
from bench.suite.schema import ModelEntry
from bench.workflows.leaderboard import admission, entries, model_card
from bench.workflows.leaderboard import page as board
from bench.workflows.leaderboard.entries import Entry, Recheck
from bench.workflows.leaderboard.model_card import ModelCard
from bench.workflows.leaderboard.ranking import list_threats, rank_models

ROOT = Path(__file__).parents[2]
N = 40
SUITE = f"""
schema = 1
name = "tiny"
title = "Digits within L-inf"
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
eps = [0, 0.05, 0.1]
[[attacks]]
name = "pgd"
label = "PGD"
norm = "linf"
eps = [0.1]
params = {{ steps = 5 }}
"""
CARD = """
schema = 1
name = "LeNet"
source = "LeCun et al. 1998"
training = "standard"
data = "1,297 digits"
licence = "MIT"
contact = "somebody"
[model]
name = "lenet"
weights = "digits"
"""
MINE = """
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a suite, a run of it, and the card of its model."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "tiny.toml").write_text(SUITE)
    (folder / "card.toml").write_text(CARD)
    bench.run(folder / "tiny.toml", out=folder / "run", device="cpu")
    return folder


@pytest.fixture(scope="module")
def entered(folder: Path) -> Path:
    """A board that the model has entered."""
    done = _add(folder, folder / "board")
    assert done.return_value == 0, done.output
    return folder / "board"


def _add(folder: Path, to: Path, *more: str, card: str = "card.toml"):
    words = ["leaderboard", str(to), "--suite", str(folder / "tiny.toml"), "--device", "cpu"]
    given = ["--add", str(folder / "run"), "--card", str(folder / card), *more]
    return CliRunner().invoke(cli, [*words, *given], standalone_mode=False)


# ------------------------------------------------------------------------------------------ ranks


def _entry(name: str, robust: dict[str, list[bool]]) -> Entry:
    """A model that is right on all of its examples, and robust as given, attack by attack."""
    n = len(next(iter(robust.values())))
    bits = {attack: pack_outcomes(pd.Series(kept)) for attack, kept in robust.items()}
    snapshot = Snapshot(
        schema=1, suite="s", seed=0, data=DataSnapshot(name="d", n=n, fingerprint="f"),
        machine=MachineSnapshot(device="cpu", processor="p", threads=1), provenance={},
        models=[ModelSnapshot(model=name, fingerprint="f", clean_correct=n, signs=[],
                      clean=pack_outcomes(pd.Series([True] * n)))],
        tasks=[AttackSnapshot(model=name, attack=attack, family=attack, settings={},
                    floor_ratio=None, seconds=0.0, clock_seconds=0.0) for attack in robust],
        cells=[CellSnapshot(model=name, attack=attack, eps=0.1, eps_text="0.1", status="ok",
                    reason="", robust_correct=sum(robust[attack]), robust=bits[attack])
               for attack in robust],
    )  # fmt: skip
    about = ModelCard(
        schema=1, name=name, source="s", training="t", data="d", licence="l", contact="c",
        model=ModelEntry(name="m", label=name),
    )  # fmt: skip
    recheck = Recheck(schema=1, examples=n, compared=n, differ=0, packages={})
    return Entry(about, snapshot, recheck)


def _threat(*attacks: str):
    listed = [
        f'[[attacks]]\nname = "fgsm"\nlabel = "{name}"\nnorm = "linf"\neps = [0.1]\n'
        for name in attacks
    ]
    text = SUITE[: SUITE.index("[[attacks]]")] + "".join(listed)
    return list_threats(reader.parse_suite(text, "here", Path()))[0]


def _first(k: int, n: int = 100) -> list[bool]:
    return [example < k for example in range(n)]


def test_models_that_nothing_separates_have_the_same_rank() -> None:
    actual = [_entry("a", {"x": _first(82)}), _entry("b", {"x": _first(80)}),
            _entry("c", {"x": _first(20)})]  # fmt: skip
    result = [(each.entry.card.name, each.rank) for each in rank_models(actual, _threat("x"))]
    assert result == [("a", 1), ("b", 1), ("c", 3)]


def test_the_number_is_the_worst_case_example_by_example() -> None:
    even, odd = ([example % 2 == part for example in range(100)] for part in (0, 1))
    (place,) = rank_models([_entry("a", {"x": even, "y": odd})], _threat("x", "y"))
    assert place.robust.k == 0
    assert place.left == {"x": 50, "y": 50}


def test_a_rank_is_one_more_than_the_models_that_are_better_beyond_chance() -> None:
    generator = np.random.default_rng(0)
    kept = {name: generator.random(100) < share for name, share in
            {"a": 0.9, "b": 0.75, "c": 0.6, "d": 0.1}.items()}  # fmt: skip
    result = [_entry(name, {"x": list(map(bool, bits))}) for name, bits in kept.items()]
    ranks = {each.entry.card.name: each.rank for each in rank_models(result, _threat("x"))}
    assert ranks["a"] == 1
    assert ranks["d"] == 4
    assert ranks["a"] <= ranks["b"] <= ranks["c"] < ranks["d"]


def test_the_largest_eps_of_a_norm_comes_first_and_none_at_0() -> None:
    result = list_threats(reader.parse_suite(SUITE, "here", Path()))
    assert [(each.eps_text, each.attacks) for each in result] == [
        ("0.1", ("FGSM", "PGD")), ("0.05", ("FGSM",)),
    ]  # fmt: skip


# -------------------------------------------------------------------------------------- admission


def test_a_model_enters_after_every_outcome_came_out_the_same(entered: Path) -> None:
    (entry,) = entries.read_entries(entered, reader.read_suite(str(entered.parent / "tiny.toml")))
    assert entry.recheck.examples == N
    assert entry.recheck.compared == 4 * N  # the clean pass, and three cells above eps 0
    assert entry.recheck.differ == 0
    claimed = admission.read_claim(entered.parent / "run", "LeNet")
    assert [cell.robust for cell in entry.snapshot.cells] == [cell.robust for cell in claimed.cells]


def test_a_claim_that_is_too_good_does_not_enter(folder: Path, tmp_path: Path) -> None:
    about, suite = (
        model_card.read_card(folder / "card.toml"),
        reader.read_suite(str(folder / "tiny.toml")),
    )
    claimed = admission.read_claim(folder / "run", "LeNet")
    clean = claimed.models[0]
    better = [dataclasses.replace(cell, robust=clean.clean, robust_correct=clean.clean_correct)
              for cell in claimed.cells]  # fmt: skip
    result = admission.admit_model(
        about, dataclasses.replace(claimed, cells=better), suite, RunOptions(device="cpu")
    )
    assert result.snapshot is None
    assert any("PGD, eps 0.1: the run says" in problem for problem in result.problems)
    assert "outcomes differ: examples " in result.problems[0]


def _forged(folder: Path, limit: int | None) -> tuple[admission.Admission, list[str]]:
    """What comes of a claim whose audit signs are another's, and the signs that were measured."""
    about, suite = (
        model_card.read_card(folder / "card.toml"),
        reader.read_suite(str(folder / "tiny.toml")),
    )
    claimed = admission.read_claim(folder / "run", "LeNet")
    forged = dataclasses.replace(claimed.models[0], signs=["invented"])
    options = RunOptions(device="cpu", limit=limit)
    result = admission.admit_model(
        about, dataclasses.replace(claimed, models=[forged]), suite, options
    )
    return result, claimed.models[0].signs


def test_what_enters_is_what_was_measured_here(folder: Path) -> None:
    result, measured = _forged(folder, limit=None)
    assert result.problems == []
    assert result.snapshot is not None
    assert result.snapshot.models[0].signs == measured


def test_where_a_sample_is_run_again_the_claim_enters_and_keeps_its_signs(folder: Path) -> None:
    result, _ = _forged(folder, limit=10)
    assert result.snapshot is not None
    assert result.recheck is not None
    assert (result.recheck.examples, result.recheck.compared) == (10, 4 * 10)
    assert result.snapshot.data.n == N
    assert "invented" in result.snapshot.models[0].signs


def test_a_card_that_builds_another_model_is_refused_before_anything_runs(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "other.toml").write_text(CARD.replace('weights = "digits"', 'weights = "random"'))
    done = _add(folder, tmp_path, card="other.toml")
    assert done.return_value == 1
    assert "the card builds one of fingerprint" in done.output
    assert not (tmp_path / "entries").exists()


def test_a_run_with_other_parameters_is_no_answer_to_the_suite(folder: Path) -> None:
    harder = reader.parse_suite(SUITE.replace("steps = 5", "steps = 50"), "here", folder)
    problems = entries.list_shortcomings(admission.read_claim(folder / "run", "LeNet"), harder)
    assert problems == ["PGD: params.steps: expected 50, got 5"]


def test_a_violation_or_a_cell_without_a_number_keeps_a_model_out(folder: Path) -> None:
    suite = reader.read_suite(str(folder / "tiny.toml"))
    claimed = admission.read_claim(folder / "run", "LeNet")
    first, second, *rest = claimed.cells
    spoilt = dataclasses.replace(first, violations=2)
    failed = dataclasses.replace(second, status="failed", reason="out of memory", robust="")
    claimed = dataclasses.replace(claimed, cells=[spoilt, failed, *rest])
    assert entries.list_shortcomings(claimed, suite) == [
        "FGSM, eps 0.05: 2 images broke the threat model, where the attack could not succeed",
        "FGSM, eps 0.1: expected a finished cell, got failed: out of memory",
    ]


def test_votes_that_a_claim_does_not_state_keep_a_model_out(tmp_path: Path) -> None:
    """The settings of a claim are text; those of the model that the card builds decide."""
    votes = 'name = "lenet"\npredictions = 3'
    (tmp_path / "tiny.toml").write_text(SUITE.replace('name = "lenet"', votes))
    (tmp_path / "card.toml").write_text(
        CARD.replace('[model]\nname = "lenet"', f"[model]\n{votes}")
    )
    bench.run(tmp_path / "tiny.toml", out=tmp_path / "run", device="cpu")
    claimed = admission.read_claim(tmp_path / "run", "LeNet")
    suite = reader.parse_suite(SUITE, "here", tmp_path)
    wanted = entries.declared_settings(suite)
    silent = [dataclasses.replace(task, settings={**wanted[task.attack]}) for task in claimed.tasks]
    result = admission.admit_model(
        model_card.read_card(tmp_path / "card.toml"),
        dataclasses.replace(claimed, tasks=silent),
        suite,
        RunOptions(device="cpu", limit=10),
    )
    assert result.snapshot is None
    assert "run again: FGSM: predictions: expected 1, got 3" in result.problems


def test_a_card_with_a_detector_is_refused_in_one_sentence(tmp_path: Path) -> None:
    """What it rejects would count as robust, beside models that classify every image."""
    table = '{ output = "score", threshold = 9.0, rejected = "robust" }'
    (tmp_path / "card.toml").write_text(f"{CARD}detector = {table}\n")
    with pytest.raises(SuiteError, match=r"model\.detector: .* classify every image"):
        model_card.read_card(tmp_path / "card.toml")


def test_files_of_ones_own_start_from_the_cards_folder(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "net.py").write_text(MINE)
    text = CARD.replace('"lenet"\nweights = "digits"', '"net.py:make"').replace("LeNet", "mine")
    (mine / "card.toml").write_text(text)
    entry = model_card.read_card(mine / "card.toml").model
    assert entry.name == f"{mine / 'net.py'}:make"
    assert entry.label == "mine"


def test_every_mistake_in_a_card_is_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "card.toml"
    path.write_text('schema = 1\nname = " "\nlicense = "MIT"\n[model]\nweight = "x"\n')
    with pytest.raises(SuiteError) as error:
        model_card.read_card(path)
    text = str(error.value)
    for part in ("licence", "name", "source", "model.name", "model.weight"):
        assert part in text


def test_a_run_without_the_cards_model_says_which_it_has(folder: Path) -> None:
    with pytest.raises(RecordError, match="did you mean 'LeNet'"):
        admission.read_claim(folder / "run", "LeNett")


def test_an_attack_crafted_on_another_model_is_no_threat_to_a_single_one() -> None:
    text = SUITE.replace('label = "PGD"\n', 'label = "PGD"\nsource = "LeNet"\n')
    with pytest.raises(SuiteError, match="crafted on another model"):
        entries.declared_settings(reader.parse_suite(text, "here", Path()))


# ------------------------------------------------------------------------------------------ pages


def test_both_pages_show_rank_rate_interval_and_card(entered: Path) -> None:
    text = (entered / "leaderboard.md").read_text()
    page = (entered / "leaderboard.html").read_text()
    for each in ("LeNet", "LeCun et al. 1998", "40 of 40", "worst case"):
        assert each in text
        assert each in page
    assert text.startswith("<!-- Generated by bench leaderboard")


def test_the_page_has_its_two_commands_on_lines_of_their_own_as_they_are_typed() -> None:
    text = (ROOT / "results" / "leaderboard_imagenet" / "leaderboard.md").read_text()
    lines = text.partition("## Enter a model")[2].splitlines()
    first, second = (line for line in lines if line.startswith("bench "))
    assert first.startswith("bench run leaderboard_imagenet --model mine.py:net")
    assert second.startswith("bench leaderboard DIR --suite leaderboard_imagenet --add mine")


def test_what_the_page_says_of_a_model_is_separated_by_spaces(entered: Path) -> None:
    assert "source: LeCun et al. 1998; " in (entered / "leaderboard.md").read_text()


def test_the_same_entries_give_the_same_bytes(entered: Path, tmp_path: Path) -> None:
    suite = reader.read_suite(str(entered.parent / "tiny.toml"))
    paths = board.write_leaderboard(entries.read_entries(entered, suite), suite, tmp_path)
    assert [path.read_bytes() for path in paths] == [
        (entered / path.name).read_bytes() for path in paths
    ]


def test_a_hostile_card_stays_text(entered: Path, tmp_path: Path) -> None:
    suite = reader.read_suite(str(entered.parent / "tiny.toml"))
    (entry,) = entries.read_entries(entered, suite)
    bad = dataclasses.replace(entry.card, name="</td><script>alert(1)</script> | [x](y)")
    for path in board.write_leaderboard([entry._replace(card=bad)], suite, tmp_path):
        assert "<script>alert" not in path.read_text()
    assert "[x](y)" not in (tmp_path / "leaderboard.md").read_text()


def test_an_empty_board_says_how_it_gets_its_first_model(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="makes the first"):
        entries.read_entries(tmp_path, reader.read_suite(str(folder / "tiny.toml")))


def test_a_damaged_entry_is_reported_in_one_sentence(entered: Path, tmp_path: Path) -> None:
    shutil.copytree(entered / "entries", tmp_path / "entries")
    (tmp_path / "entries" / "lenet" / "recheck.json").write_text("{}")
    with pytest.raises(RecordError, match=r"recheck\.json: damaged"):
        entries.read_entries(tmp_path, reader.read_suite(str(entered.parent / "tiny.toml")))


@pytest.mark.parametrize("name", ["leaderboard", "leaderboard_imagenet"])
def test_the_shipped_board_is_what_its_entries_say(tmp_path: Path, name: str) -> None:
    suite, folder = reader.read_suite(name), ROOT / "results" / name
    result = entries.read_entries(folder, suite)
    assert {entry.card.model.label for entry in result} == {model.label for model in suite.models}
    for path in board.write_leaderboard(result, suite, tmp_path):
        assert path.read_bytes() == (folder / path.name).read_bytes()


@pytest.mark.skipif(browser.executable() is None, reason="there is no Chromium on the path")
def test_a_models_card_opens_in_a_browser(entered: Path, tmp_path: Path) -> None:
    with browser.opened(tmp_path) as page:
        page.open(entered / "leaderboard.html", width=420)
        page.point("table.board .more", click=True)
        assert "LeCun et al. 1998" in page.ask("document.querySelector('.detail').innerText")
        assert page.ask("document.documentElement.scrollWidth") <= 420
        assert page.complaints == []
        assert all(url.startswith("file:") for url in page.requests)
