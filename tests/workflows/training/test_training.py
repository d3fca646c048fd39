"""Training: reproducible, blind to the test set, and published with a card that is true."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import bench
from bench.core import registry
from bench.core.contracts.dataset import Data
from bench.core.errors import SuiteError
from bench.datasets import digits as handwritten
from bench.models.published_weights import WEIGHTS
from bench.workflows.training import model_card, recipe, trainer

RECIPE = """
schema = 1
title = "two epochs"
source = "a test"
weights = "test"
seed = 5
epochs = 2
batch_size = 64
validation = 100
model = { name = "lenet" }
data = { name = "digits" }
optimiser = { name = "Adam", params = { lr = 3e-3 } }
schedule = { name = "CosineAnnealingLR", params = { T_max = 2 } }
"""
CPU = torch.device("cpu")


def read(folder: Path, old: str = "", new: str = "") -> recipe.Recipe:
    assert old in RECIPE
    path = folder / "small.toml"
    path.write_text(RECIPE.replace(old, new) if old else RECIPE, encoding="utf-8")
    return recipe.read_recipe(str(path))


def train(folder: Path, old: str = "", new: str = "") -> trainer.TrainedModel:
    return trainer.train_model(read(folder, old, new), folder, CPU)


def state(trained: trainer.TrainedModel) -> dict[str, Tensor]:
    return dict(trained.model.state_dict())


def equal(one: trainer.TrainedModel, other: trainer.TrainedModel) -> bool:
    return all(torch.equal(value, state(other)[key]) for key, value in state(one).items())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> trainer.TrainedModel:
    return train(tmp_path_factory.mktemp("trained"))


def test_two_epochs_learn_something_and_report_it(trained: trainer.TrainedModel) -> None:
    first, last = trained.history
    assert (first.epoch, last.epoch) == (1, 2)
    assert (first.train_n, first.validation_n) == (1197, 100)
    assert last.train_loss < first.train_loss
    assert last.validation_correct > 50
    assert trained.best == max(trained.history, key=lambda e: e.validation_correct)
    assert not trained.model.training


def test_training_is_the_same_bit_for_bit_from_the_same_seed(
    trained: trainer.TrainedModel, tmp_path: Path
) -> None:
    before = torch.get_rng_state()
    assert equal(trained, train(tmp_path))
    assert not equal(trained, train(tmp_path, "seed = 5", "seed = 6"))
    assert torch.equal(before, torch.get_rng_state())


def test_training_never_looks_at_the_test_set(
    trained: trainer.TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load(split: str, **keys: object) -> Data:
        asked.append(split)
        return handwritten.load(split)

    watched = dataclasses.replace(handwritten.DATASET, load=load)
    monkeypatch.setattr(handwritten, "DATASET", watched)
    assert equal(trained, train(tmp_path))
    assert asked == ["train"]


@pytest.mark.parametrize("store", ["float32", "float16"])
def test_a_card_is_true_of_the_weights_beside_it(tmp_path: Path, store: str) -> None:
    checked = read(tmp_path, "validation = 100", f'validation = 100\nstore = "{store}"')
    done = trainer.train_model(checked, tmp_path, CPU)
    path = model_card.publish_model(
        checked, [model_card.SeedRun(5, done)], tmp_path, tmp_path / "out"
    )
    document = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert path.name == "lenet-test.safetensors"
    assert document["weights_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert {str(value.dtype) for value in load_file(path).values()} == {f"torch.{store}"}
    assert recomputed(path, "lenet", "digits") == (document["test_correct"], document["test_n"])
    assert document["validation_correct"] == done.best.validation_correct
    assert len(path.with_suffix(".csv").read_text(encoding="utf-8").splitlines()) == 3


def recomputed(weights: Path, model: str, data: str) -> tuple[int, int]:
    """Test images that the weights get right, and how many there are."""
    net: nn.Module = registry.find("models", model).build()
    net.load_state_dict(load_file(weights))
    test: Data = registry.find("datasets", data).load(split="test", data_dir=Path())
    assert test.labels is not None
    with torch.no_grad():
        right = net.eval()(test.read(0, test.n)).argmax(1) == test.labels
    return int(right.sum()), test.n


def course(expected: dict[str, Any]) -> dict[str, Any]:
    """What the course of a training depends on; a card older than a key has the key's default."""
    known = [field for field in dataclasses.fields(recipe.Recipe) if field.repr]
    absent = {field.name: field.default for field in known if field.name not in expected}
    return {field.name: expected.get(field.name, absent.get(field.name)) for field in known}


def cards() -> list[Path]:
    return sorted(WEIGHTS.glob("*.json"))


@pytest.mark.parametrize("path", cards(), ids=lambda path: path.stem)
def test_every_published_card_is_of_the_weights_beside_it_and_of_a_shipped_recipe(
    path: Path,
) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    content = path.with_suffix(".safetensors").read_bytes()
    assert document["weights_sha256"] == hashlib.sha256(content).hexdigest()
    assert course(document["recipe"]) == course(dataclasses.asdict(recipe.read_recipe(path.stem)))
    assert len(path.with_suffix(".csv").read_text(encoding="utf-8").splitlines()) > 1


@pytest.mark.parametrize(
    "path", [path for path in cards() if path.stem.endswith("-digits")], ids=lambda path: path.stem
)
def test_the_published_accuracy_on_the_digits_is_what_the_weights_give(path: Path) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    model = document["recipe"]["model"]["name"]
    weights = path.with_suffix(".safetensors")
    assert recomputed(weights, model, "digits") == (document["test_correct"], document["test_n"])


def test_every_shipped_recipe_reads_and_names_what_there_is() -> None:
    for name in (
        name for name in recipe.list_recipes() if recipe.detect_recipe_kind(name) == "model"
    ):
        read_ = recipe.read_recipe(name)
        assert f"{read_.model.name}-{read_.weights}" == name
        assert read_.model.name in registry.names("models")
        assert read_.data.name in registry.names("datasets")


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("epochs = 2", "epochs = 0", "small.toml: epochs: "),
        ("epochs = 2", "epoch = 2", "small.toml: epoch"),
        ("schema = 1", 'schema = 1\nname = "x"', "leave it out"),
        ("schema = 1", "schema = = 1", "not valid TOML"),
        ("validation = 100", "validation = 1297", "expected fewer than the 1297 training images"),
        ('"Adam"', '"Adan"', "optimiser 'Adan' is unknown; did you mean 'Adam'"),
        ("lr = 3e-3", "rate = 3e-3", "optimiser 'Adam': "),
        ('"CosineAnnealingLR"', '"CosineLR"', "schedule 'CosineLR' is unknown"),
        ('"lenet"', '"lenett"', "did you mean 'lenet'"),
        ('"digits"', '"digit"', "did you mean 'digits'"),
    ],
)
def test_a_mistake_in_a_recipe_is_the_users(tmp_path: Path, old: str, new: str, part: str) -> None:
    with pytest.raises(SuiteError) as caught:
        train(tmp_path, old, new)
    assert part in str(caught.value)


def test_a_recipe_that_is_no_text_is_reported(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SuiteError, match="could not be read as a recipe"):
        recipe.read_recipe(str(tmp_path / "bad.toml"))


def test_interrupted_training_ends_with_the_same_weights(
    trained: trainer.TrainedModel, tmp_path: Path
) -> None:
    def stop(epoch: trainer.Epoch) -> None:
        raise KeyboardInterrupt

    progress = tmp_path / "small.progress"
    with pytest.raises(KeyboardInterrupt):
        trainer.train_model(read(tmp_path), tmp_path, CPU, stop, progress)
    heard: list[int] = []
    again = trainer.train_model(
        read(tmp_path), tmp_path, CPU, lambda e: heard.append(e.epoch), progress
    )
    assert heard == [2]
    assert equal(trained, again)
    assert [e.train_loss for e in again.history] == [e.train_loss for e in trained.history]


def test_the_progress_of_another_recipe_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    progress = tmp_path / "small.progress"
    trainer.train_model(read(tmp_path), tmp_path, CPU, progress_file=progress)
    with pytest.raises(SuiteError, match="another recipe"):
        trainer.train_model(
            read(tmp_path, "seed = 5", "seed = 6"), tmp_path, CPU, progress_file=progress
        )
    progress.write_bytes(progress.read_bytes()[:1000])
    with pytest.raises(SuiteError, match="damaged"):
        trainer.train_model(read(tmp_path), tmp_path, CPU, progress_file=progress)


def test_dropout_goes_on_with_the_same_draws_after_an_interruption(tmp_path: Path) -> None:
    small = read(tmp_path, 'name = "lenet"', 'name = "maxout", params = { units = 8 }')
    whole = trainer.train_model(small, tmp_path, CPU)
    progress = tmp_path / "small.progress"
    states: list[bytes] = []
    trainer.train_model(
        small, tmp_path, CPU, lambda e: states.append(progress.read_bytes()), progress
    )
    progress.write_bytes(states[0])  # as if cut after the first epoch
    assert equal(whole, trainer.train_model(small, tmp_path, CPU, progress_file=progress))


def test_a_card_reports_the_accuracy_of_each_class_and_figures_lie_beside_it(
    trained: trainer.TrainedModel, tmp_path: Path
) -> None:
    weights = model_card.publish_model(
        read(tmp_path), [model_card.SeedRun(5, trained)], tmp_path, tmp_path / "out"
    )
    document = json.loads(weights.with_suffix(".json").read_text())
    counts = document["test_per_class"].values()
    assert sum(k for k, _ in counts) == document["test_correct"]
    assert sum(n for _, n in counts) == document["test_n"] == 500
    for name in ("curves", "per-class", "predictions"):
        assert weights.with_name(f"{weights.stem}-{name}.png").stat().st_size > 5000
        assert weights.with_name(f"{weights.stem}-{name}.svg").stat().st_size > 5000


def test_the_weights_that_ship_stay_under_12_megabytes_together() -> None:
    package = Path(bench.__file__).parent
    sizes = {path.name: path.stat().st_size for path in package.rglob("*.safetensors")}
    assert sizes
    assert sum(sizes.values()) < 12e6, sizes


@pytest.mark.parametrize(
    "content",
    [b"", b"junk", b"some text, no progress\n" * 9, b"\x89PNG\r\n\x1a\n" * 30, b"\xff" * 300],
)
def test_progress_that_is_none_is_the_users_mistake_with_any_bytes(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "small.progress"
    path.write_bytes(content)
    with pytest.raises(SuiteError, match="damaged; delete it and train again"):
        trainer.train_model(read(tmp_path), tmp_path, CPU, progress_file=path)
    assert path.read_bytes() == content
