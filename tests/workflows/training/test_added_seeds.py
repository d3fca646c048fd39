"""Seeds that are trained later join the card and the page of the training in the folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bench import cli
from bench.core import lock
from bench.storage import environment
from bench.workflows.training import model_card, recipe, trainer

RECIPE = """
schema = 1
title = "Softmax"
source = "a test"
weights = "plain"
seed = 3
seeds = 3
epochs = 1
batch_size = 64
validation = 100
model = { name = "softmax" }
data = { name = "digits" }
optimiser = { name = "Adam" }
"""
STEM = "softmax-plain"
SEEDS = [3, 4, 5]


def train(folder: Path, *words: str, text: str = RECIPE) -> Result:
    path = folder / "small.toml"
    path.write_text(text, encoding="utf-8")
    command = ["train", str(path), "--out", str(folder / "out"), "--device", "cpu", *words]
    return CliRunner().invoke(cli.cli, command)


def add(folder: Path, *seeds: int, text: str = RECIPE) -> Result:
    words = [word for seed in seeds for word in ("--seed", str(seed))]
    result = train(folder, *words, text=text)
    assert result.exit_code == 0, result.output
    return result


def read_card(folder: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((folder / "out" / f"{STEM}.json").read_text("utf-8"))
    return card


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "out").iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which all seeds were trained by one call."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(folder).exit_code == 0
    return folder


@pytest.fixture(scope="module")
def ranked(whole: Path) -> list[int]:
    """The seeds, the best first; the other two, of which only the counts are stored, by those."""
    card = read_card(whole)
    counts = {entry["seed"]: entry["validation_correct"] for entry in card["seeds"]}
    return sorted(SEEDS, key=lambda seed: (seed != card["seed"], -counts[seed]))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, ranked: list[int]) -> Path:
    folder = tmp_path_factory.mktemp("best")
    add(folder, ranked[0])
    return folder


@pytest.fixture
def best_alone(tmp_path: Path, published: Path) -> Path:
    """A folder with the training of the best seed alone, which the test may change."""
    shutil.copytree(published / "out", tmp_path / "out")
    return tmp_path


def timeless(card: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in card.items() if key != "median_seconds_per_epoch"}


@pytest.mark.parametrize("order", [[3, 4, 5], [5, 4, 3]])
def test_seeds_trained_one_by_one_give_the_card_of_one_call(
    whole: Path, tmp_path: Path, order: list[int]
) -> None:
    for seed in order:
        add(tmp_path, seed)
    assert timeless(read_card(tmp_path)) == timeless(read_card(whole))
    names = {path.name for path in (whole / "out").iterdir()}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    weights = f"{STEM}.safetensors"
    assert content(tmp_path)[weights] == content(whole)[weights]
    assert "bench train small.toml\n" in content(tmp_path)[f"{STEM}.md"].decode()


def test_a_seed_that_ranks_lower_changes_the_card_and_the_page_alone(
    best_alone: Path, ranked: list[int]
) -> None:
    before = content(best_alone)
    result = add(best_alone, *ranked[1:])
    assert f"kept: seed {ranked[0]} of 3, 4, 5" in result.output
    after = content(best_alone)
    changed = {name for name, data in after.items() if data != before.get(name)}
    assert changed == {f"{STEM}.json", f"{STEM}.md"}


def test_a_seed_that_ranks_higher_replaces_weights_history_and_figures(
    tmp_path: Path, ranked: list[int]
) -> None:
    add(tmp_path, ranked[1])
    before = content(tmp_path)
    assert f"kept: seed {ranked[0]} of" in add(tmp_path, ranked[0]).output
    after = content(tmp_path)
    assert {Path(name).suffix for name in after if after[name] != before[name]} == {
        ".safetensors", ".json", ".csv", ".md", ".png", ".svg",
    }  # fmt: skip
    assert read_card(tmp_path)["seed"] == ranked[0]


def test_of_equal_counts_the_smaller_validation_loss_of_the_history_decides(
    best_alone: Path, ranked: list[int]
) -> None:
    card, history = read_card(best_alone), best_alone / "out" / f"{STEM}.csv"
    elsewhere = best_alone / "other"
    elsewhere.mkdir()
    add(elsewhere, ranked[1])
    other = read_card(elsewhere)
    card["validation_correct"] = other["validation_correct"]
    (best_alone / "out" / f"{STEM}.json").write_text(json.dumps(card), encoding="utf-8")
    head, row = history.read_text("utf-8").splitlines()
    cells = dict(zip(head.split(","), row.split(","), strict=True))
    cells["validation_correct"] = str(other["validation_correct"])
    for loss, kept in (("1e-9", ranked[0]), ("99.5", ranked[1])):
        cells["validation_loss"] = loss
        history.write_text(f"{head}\n{','.join(cells.values())}\n", encoding="utf-8")
        place = best_alone / loss
        shutil.copytree(best_alone / "out", place / "out")
        add(place, ranked[1])
        assert read_card(place)["seed"] == kept


def test_a_seed_of_the_card_is_refused_before_it_is_trained(best_alone: Path) -> None:
    (seed,) = (entry["seed"] for entry in read_card(best_alone)["seeds"])
    before = content(best_alone)
    result = train(best_alone, "--seed", str(seed))
    assert result.exit_code == 2
    assert f"{STEM}.json: has seed {seed} already; train another seed" in result.output
    assert "epoch" not in result.output
    assert content(best_alone) == before


def test_a_seed_is_replaced_when_that_is_asked_for(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "out", tmp_path / "out")
    card = read_card(tmp_path)
    (other, *_) = (entry for entry in card["seeds"] if entry["seed"] != card["seed"])
    right = other["test_correct"]
    other["test_correct"] = 0
    (tmp_path / "out" / f"{STEM}.json").write_text(json.dumps(card), encoding="utf-8")
    assert train(tmp_path, "--fresh", "--seed", str(other["seed"])).exit_code == 0
    entries = {entry["seed"]: entry for entry in read_card(tmp_path)["seeds"]}
    assert sorted(entries) == SEEDS
    assert entries[other["seed"]]["test_correct"] == right


def test_the_kept_seed_is_not_replaced_while_the_others_have_no_weights(
    whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole / "out", tmp_path / "out")
    kept = str(read_card(tmp_path)["seed"])
    result = train(tmp_path, "--fresh", "--seed", kept)
    assert result.exit_code == 2
    assert f"seed {kept} is the published one" in result.output
    words = [word for seed in SEEDS for word in ("--seed", str(seed))]
    assert train(tmp_path, "--fresh", *words).exit_code == 0


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("epochs = 1", "epochs = 2", "epochs is 1 there and 2 in the recipe"),
        ("seeds = 3", 'seeds = 3\nstore = "float16"', "store is float32 there"),
        ('name = "Adam"', 'name = "Adam", params = { lr = 0.1 }', "optimiser is"),
    ],
)
def test_the_card_of_another_recipe_is_refused(
    best_alone: Path, old: str, new: str, part: str
) -> None:
    result = train(best_alone, "--seed", "9", text=RECIPE.replace(old, new))
    assert result.exit_code == 2
    assert "is the card of another recipe" in result.output
    assert part in result.output


def test_a_recipe_of_another_name_says_first_what_else_differs(best_alone: Path) -> None:
    other = best_alone / "other.toml"
    other.write_text(RECIPE.replace("epochs = 1", "epochs = 2"), encoding="utf-8")
    words = ["train", str(other), "--out", str(best_alone / "out"), "--device", "cpu"]
    result = CliRunner().invoke(cli.cli, [*words, "--seed", "9"])
    assert result.exit_code == 2
    assert "epochs is 1 there and 2 in the recipe" in result.output


def test_another_title_and_number_of_seeds_are_the_same_recipe(best_alone: Path) -> None:
    text = RECIPE.replace("seeds = 3", "seeds = 7").replace('"Softmax"', '"Linear"')
    add(best_alone, 9, text=text)
    assert read_card(best_alone)["recipe"]["seeds"] == 7
    assert len(read_card(best_alone)["seeds"]) == 2


@pytest.mark.parametrize(
    ("suffix", "data", "part"),
    [
        (".json", b"{", "expected the card of a training"),
        (".json", b'{"recipe": {}, "seeds": [{}]}', "expected the card of a training"),
        (".safetensors", b"", "expected the weights of the card beside it"),
        (".csv", b"", "expected the history with the kept epoch"),
        (".csv", b"epoch\n1\n", "expected the history with the kept epoch"),
    ],
)
def test_files_that_are_not_those_of_the_card_are_refused_before_training(
    best_alone: Path, suffix: str, data: bytes, part: str
) -> None:
    (best_alone / "out" / f"{STEM}{suffix}").write_bytes(data)
    result = train(best_alone, "--seed", "9")
    assert result.exit_code == 2
    assert part in result.output
    assert "epoch 1/1" not in result.output


def test_a_card_of_other_test_images_is_refused_and_the_training_is_kept(best_alone: Path) -> None:
    card = read_card(best_alone)
    card["test_fingerprint"] = "0" * 64
    (best_alone / "out" / f"{STEM}.json").write_text(json.dumps(card), encoding="utf-8")
    result = train(best_alone, "--seed", "9")
    assert result.exit_code == 2
    assert "got 0000000000000000; train into another folder" in result.output
    assert (best_alone / "out" / "small.9.progress").exists()


def test_a_seed_that_was_added_meanwhile_by_another_process_is_not_lost(
    best_alone: Path, ranked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    train_model = trainer.train_model

    def train_both(checked: recipe.Recipe, *rest: Any) -> trainer.TrainedModel:
        monkeypatch.setattr(trainer, "train_model", train_model)
        add(best_alone, ranked[2])
        return train_model(checked, *rest)

    monkeypatch.setattr(trainer, "train_model", train_both)
    add(best_alone, ranked[1])
    assert [entry["seed"] for entry in read_card(best_alone)["seeds"]] == SEEDS


def test_a_training_whose_folder_stays_locked_is_kept(
    best_alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_card, "PUBLISHING_SECONDS", 0.0)
    with lock.hold_lock(best_alone / "out", print):
        result = train(best_alone, "--seed", "9")
    assert result.exit_code == 2
    assert "another run works in this folder" in result.output
    assert (best_alone / "out" / "small.9.progress").exists()
    assert "epoch 1/1" not in add(best_alone, 9).output


def test_a_page_says_where_each_seed_was_trained_if_that_differs(
    best_alone: Path, ranked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    card = read_card(best_alone)
    card["environment"] |= {"processor": "A *fine* one", "threads": 2}
    card["environment"]["git"] = {"commit": "a" * 40, "changed": True}
    del card["seeds"][0]["origin"]  # a card from before origins were recorded
    (best_alone / "out" / f"{STEM}.json").write_text(json.dumps(card), encoding="utf-8")
    known = environment.describe_environment

    def elsewhere(*words: Any) -> dict[str, Any]:
        return {**known(*words), "processor": "Another", "threads": 1, "git": None}

    monkeypatch.setattr(environment, "describe_environment", elsewhere)
    add(best_alone, *ranked[1:])
    text = (best_alone / "out" / f"{STEM}.md").read_text("utf-8")
    version = card["environment"]["packages"]["torch"]
    assert "Seeds, and where each was trained:\n\n" in text
    assert (
        f"- {ranked[0]}: cpu: A \\*fine\\* one, 2 threads, torch {version}, commit aaaaaaaaaaaa "
        "with changes\n"
    ) in text
    rest = ", ".join(map(str, sorted(ranked[1:])))
    assert f"- {rest}: cpu: Another, 1 thread, torch {version}\n" in text


def test_a_page_of_seeds_trained_at_one_place_says_nothing_of_places(whole: Path) -> None:
    text = (whole / "out" / f"{STEM}.md").read_text("utf-8")
    assert "where each was trained" not in text


def test_the_page_of_some_seeds_names_a_command_for_each(best_alone: Path) -> None:
    add(best_alone, 9)
    seeds = [entry["seed"] for entry in read_card(best_alone)["seeds"]]
    command = "bench train small.toml" + "".join(f" --seed {seed}" for seed in seeds)
    assert f"{command}\n" in (best_alone / "out" / f"{STEM}.md").read_text("utf-8")


def test_an_attack_takes_one_seed() -> None:
    result = CliRunner().invoke(
        cli.cli, ["train", "universal-lenet-digits", "--seed", "1", "--seed", "2"]
    )
    assert result.exit_code == 2
    assert "an attack is trained with one --seed" in result.output
