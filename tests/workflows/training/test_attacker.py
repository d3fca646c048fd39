"""Training an attack: reproducible, interruptible, and it leaves the target as it was."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import click.testing
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import bench
from bench import cli
from bench.attacks import advgan, trained_weights
from bench.core import registry
from bench.core.contracts.dataset import Data
from bench.core.contracts.learner import TrainingBatch
from bench.core.contracts.types import Threat
from bench.core.errors import SuiteError
from bench.datasets import digits as handwritten
from bench.models.published_weights import WEIGHTS
from bench.workflows.training import attack_trainer, model_card, recipe
from bench.workflows.training import page as training_page

RECIPE = """
schema = 1
title = "two epochs"
source = "a test"
weights = "test"
seed = 5
epochs = 2
batch_size = 32
validation = 200
limit = 480
attack = { name = "advgan", eps = 0.3 }
model = { name = "lenet", weights = "digits" }
data = { name = "digits" }
optimiser = { name = "Adam", params = { lr = 2e-3 } }
"""
CPU = torch.device("cpu")


def read(folder: Path, *changes: tuple[str, str]) -> recipe.AttackRecipe:
    text = RECIPE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "small.toml"
    path.write_text(text, encoding="utf-8")
    return recipe.read_attack_recipe(str(path))


def equal(one: attack_trainer.TrainedAttack, other: attack_trainer.TrainedAttack) -> bool:
    states = (each.network.state_dict() for each in (one, other))
    return all(torch.equal(*pair) for pair in zip(*(s.values() for s in states), strict=True))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> attack_trainer.TrainedAttack:
    folder = tmp_path_factory.mktemp("trained")
    return attack_trainer.train_attack(read(folder), folder, CPU)


@pytest.fixture(scope="module")
def weights(
    trained: attack_trainer.TrainedAttack, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("published")
    return model_card.publish_attack(read(folder), trained, folder, folder / "out")


def test_two_epochs_fool_far_more_than_noise_of_the_same_eps(
    weights: Path, lenet: Any, digits: Any
) -> None:
    def fooled(attack: str, **params: str) -> int:
        settings = {"norm": "linf", "eps": 0.3, "params": params, "device": "cpu"}
        return int(
            bench.evaluate(lenet, *digits, attack=attack, **settings).records["fooled"].sum()
        )

    assert fooled("advgan", weights=str(weights)) > 150 > 20 > fooled("noise")


def test_every_epoch_reports_each_part_of_both_losses(
    trained: attack_trainer.TrainedAttack,
) -> None:
    assert [epoch.epoch for epoch in trained.history] == [1, 2]
    for epoch in trained.history:
        parts = {name: set(losses) for name, losses in epoch.losses.items()}
        assert parts == {
            "generator": {"adversarial", "GAN", "hinge"},
            "discriminator": {"clean", "adversarial"},
        }
    first, last = trained.history
    assert last.losses["generator"]["adversarial"] < first.losses["generator"]["adversarial"]
    assert trained.best == max(trained.history, key=lambda epoch: epoch.validation_fooled)
    assert (trained.train_n, trained.network.training) == (480, False)


def test_the_target_is_given_back_as_it_was_published(
    trained: attack_trainer.TrainedAttack,
) -> None:
    net = trained.target.model
    published = load_file(WEIGHTS / "lenet-digits.safetensors")
    assert all(torch.equal(value, published[key]) for key, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not net.training


def test_a_step_moves_both_networks_and_nothing_else(lenet: Any, digits: Any) -> None:
    settings = advgan.Training(c=0.0)  # so that no part of the loss is idle
    networks = dict(advgan.build((1, 28, 28), settings))
    before = {name: [p.clone() for p in net.parameters()] for name, net in networks.items()}
    optimisers = {k: torch.optim.SGD(net.parameters(), 0.1) for k, net in networks.items()}
    lesson = TrainingBatch(
        lenet.requires_grad_(False), digits[0][:8], digits[1][:8], Threat(norm="linf", eps=0.3)
    )
    state = {key: value.clone() for key, value in lenet.state_dict().items()}
    losses = advgan.step(networks, optimisers, lesson, settings)
    for name, net in networks.items():
        heads = [p for p in net.parameters() if p.dim() > 1]
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in heads), name
        moved = zip(before[name], net.parameters(), strict=True)
        assert any(not torch.equal(*pair) for pair in moved)
    assert all(not value.requires_grad for part in losses.values() for value in part.values())
    assert all(torch.equal(value, state[key]) for key, value in lenet.state_dict().items())


@pytest.mark.parametrize("epochs_done", [1, 2])
def test_interrupted_training_ends_with_the_same_weights(tmp_path: Path, epochs_done: int) -> None:
    short = read(tmp_path, ("limit = 480", "limit = 64"))
    whole = attack_trainer.train_attack(short, tmp_path, CPU)

    def stop(epoch: attack_trainer.AttackEpoch) -> None:
        if epoch.epoch == epochs_done:
            raise KeyboardInterrupt

    progress, heard = tmp_path / "small.progress", []
    with pytest.raises(KeyboardInterrupt):
        attack_trainer.train_attack(short, tmp_path, CPU, stop, progress)
    again = attack_trainer.train_attack(
        short, tmp_path, CPU, lambda e: heard.append(e.epoch), progress
    )
    assert heard == [2][epochs_done - 1 :]
    assert equal(whole, again)
    assert [e.losses for e in again.history] == [e.losses for e in whole.history]


def test_the_seed_decides_and_the_callers_generator_is_not_moved(
    trained: attack_trainer.TrainedAttack, tmp_path: Path
) -> None:
    before = torch.get_rng_state()
    other = attack_trainer.train_attack(
        read(tmp_path, ("seed = 5", "seed = 6"), ("epochs = 2", "epochs = 1")), tmp_path, CPU
    )
    assert torch.equal(before, torch.get_rng_state())
    assert other.history[0].losses != trained.history[0].losses


def test_progress_of_another_recipe_or_target_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    short = (("epochs = 2", "epochs = 1"), ("limit = 480", "limit = 32"))
    progress = tmp_path / "small.progress"
    attack_trainer.train_attack(read(tmp_path, *short), tmp_path, CPU, progress_file=progress)
    for change in (("seed = 5", "seed = 6"), ('"digits" }\ndata', '"random" }\ndata')):
        with pytest.raises(SuiteError, match=r"another recipe|nothing to fool"):
            attack_trainer.train_attack(
                read(tmp_path, *short, change), tmp_path, CPU, progress_file=progress
            )
    progress.write_bytes(progress.read_bytes()[:1000])
    with pytest.raises(SuiteError, match="damaged"):
        attack_trainer.train_attack(read(tmp_path, *short), tmp_path, CPU, progress_file=progress)


def test_training_never_looks_at_the_test_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load(split: str, **keys: object) -> Data:
        asked.append(split)
        return handwritten.load(split)

    watched = dataclasses.replace(handwritten.DATASET, load=load)
    monkeypatch.setattr(handwritten, "DATASET", watched)
    short = read(tmp_path, ("epochs = 2", "epochs = 1"), ("limit = 480", "limit = 32"))
    done = attack_trainer.train_attack(short, tmp_path, CPU)
    assert asked == ["train"]
    model_card.publish_attack(short, done, tmp_path, tmp_path / "out")
    assert asked == ["train", "test"]


def test_a_card_is_true_of_the_weights_beside_it(weights: Path, lenet: Any) -> None:
    document = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
    assert weights.name == "advgan-test.safetensors"
    assert document["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    data = handwritten.load("test")
    assert data.labels is not None
    evaluation = bench.evaluate(
        lenet, data.read(0, data.n), data.labels, attack="advgan", norm="linf", eps=0.3,
        params={"weights": str(weights)}, device="cpu",
    ).table.iloc[0]  # fmt: skip
    assert (document["test_fooled"], document["test_eligible"]) == (
        evaluation["fooled"],
        evaluation["eligible"],
    )
    history = pd.read_csv(weights.with_suffix(".csv"))
    assert list(history.columns[:2]) == ["epoch", "generator_adversarial"]
    assert history["validation_fooled"].max() == document["validation_fooled"]


def test_the_page_shows_counts_intervals_and_figures_that_are_there(weights: Path) -> None:
    document = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
    page = weights.with_suffix(".md").read_text(encoding="utf-8")
    assert f"| test images fooled | {document['test_fooled']}/{document['test_eligible']} |" in page
    assert "bench train small.toml --seed 5" in page
    for name in training_page.ATTACK_FIGURES:
        assert f"![{name}](advgan-test-{name}.png)" in page
        assert weights.with_name(f"advgan-test-{name}.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("epochs = 2", "epochs = 0", "small.toml: epochs: "),
        ("schema = 1", 'schema = 1\nname = "x"', "leave it out"),
        ("validation = 200", "validation = 1297", "expected fewer than the 1297 training images"),
        ('"advgan"', '"advgann"', "did you mean 'advgan'"),
        ('"advgan"', '"fgsm"', "attack.name: attack 'fgsm' has nothing to learn"),
        ("eps = 0.3", "eps = 0.0", "attack.eps"),
        ("eps = 0.3", 'eps = 0.3, norm = "l2"', "attack.norm: expected one of linf, got 'l2'"),
        ("eps = 0.3", "eps = 0.3, params = { kapa = 1.0 }", "attack.params.kapa: unknown key"),
        ('weights = "digits"', 'weights = "digit"', "did you mean 'digits'"),
        ('"Adam"', '"Adan"', "optimiser 'Adan' is unknown; did you mean 'Adam'"),
    ],
)
def test_a_mistake_in_a_recipe_is_the_users(tmp_path: Path, old: str, new: str, part: str) -> None:
    with pytest.raises(SuiteError) as caught:
        attack_trainer.train_attack(read(tmp_path, (old, new)), tmp_path, CPU)
    assert part in str(caught.value)


def test_bench_train_trains_an_attack_too_and_cleans_up(tmp_path: Path) -> None:
    read(tmp_path, ("epochs = 2", "epochs = 1"), ("limit = 480", "limit = 32"))
    words = ["train", str(tmp_path / "small.toml"), "--out", str(tmp_path / "out"), "--seed", "7"]
    said = click.testing.CliRunner().invoke(cli.cli, words, standalone_mode=False)
    assert said.exception is None
    assert "validation fooled" in said.output
    assert "advgan-test.safetensors" in said.output
    assert json.loads((tmp_path / "out" / "advgan-test.json").read_text())["seed"] == 7
    assert not list((tmp_path / "out").glob("*.progress"))


def attack_recipes() -> list[str]:
    return [name for name in recipe.list_recipes() if recipe.detect_recipe_kind(name) == "attack"]


@pytest.mark.parametrize("name", attack_recipes())
def test_every_shipped_recipe_reads_and_names_what_there_is(name: str) -> None:
    checked = recipe.read_attack_recipe(name)
    assert f"{checked.attack.name}-{checked.weights}" == name
    assert f"{checked.model.name}-{checked.data.name}" == checked.weights
    assert checked.data.name in registry.names("datasets")


@pytest.mark.parametrize(
    "path", sorted(trained_weights.WEIGHTS.glob("*.json")), ids=lambda path: path.stem
)
def test_every_published_card_is_of_the_weights_beside_it_and_of_a_shipped_recipe(
    path: Path,
) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    content = path.with_suffix(".safetensors").read_bytes()
    assert document["weights_sha256"] == hashlib.sha256(content).hexdigest()
    shipped = dataclasses.asdict(recipe.read_attack_recipe(path.stem))
    # What a model's entry can say since the card was written has its default there.
    shipped["model"] = {key: shipped["model"][key] for key in document["recipe"]["model"]}
    assert document["recipe"] == shipped
