"""Certified training: what the loss bounds, how it begins, what it is worth, what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.core import registry, rng
from bench.core.errors import SuiteError
from bench.evaluation.certification import bounds, network
from bench.workflows.training import model_card, page, recipe, trainer
from bench.workflows.training.certified import CertifiedLoss, certify_images
from bench.workflows.training.recipe import Certificate, ComponentSpec, Recipe

CPU = torch.device("cpu")
SMALL = Certificate(eps=0.06, judged=0.04, share=0.5, warmup=1, ramp=3)
PLAIN = Recipe(
    schema=1,
    name="small",
    title="The small CNN on the digits",
    source="a test",
    weights="test",
    seed=5,
    epochs=7,
    batch_size=64,
    validation=200,
    model=ComponentSpec(name="convsmall"),
    data=ComponentSpec(name="digits"),
    optimiser=ComponentSpec(name="Adam", params={"lr": 2e-3}),
)
CERTIFIED = replace(PLAIN, certified=SMALL)


def train(wanted: Recipe, progress_file: Path | None = None, **rest: Any) -> trainer.TrainedModel:
    return trainer.train_model(wanted, Path(), CPU, progress_file=progress_file, **rest)


def state(model: nn.Module) -> Tensor:
    return torch.cat([value.flatten() for value in model.state_dict().values()])


@pytest.fixture(scope="module")
def bounded() -> trainer.TrainedModel:
    return train(CERTIFIED)


def test_a_net_trained_on_bounds_is_certified_where_a_plain_one_is_not(
    bounded: trainer.TrainedModel, digits: tuple[Tensor, Tensor]
) -> None:
    plain = train(replace(PLAIN, epochs=2))
    counts = [int(certify_images(SMALL, each.model, *digits).sum()) for each in (bounded, plain)]
    assert counts[0] > 100
    assert counts[1] < 20
    assert plain.best.validation_certified_correct is None


def test_the_epoch_kept_certifies_most_validation_images(bounded: trainer.TrainedModel) -> None:
    seen = [epoch.validation_certified_correct for epoch in bounded.history]
    assert bounded.best.validation_certified_correct == max(filter(None, seen))


def test_training_begins_on_clean_images_and_ends_on_the_whole_ball() -> None:
    model = registry.find("models", "convsmall").build()
    bound = CertifiedLoss(SMALL, model, (1, 28, 28))
    result = [bound.progress(done) for done in (0.0, 0.9, 1.0, 2.5, 4.0, 9.0)]
    assert result == [
        (0.0, 1.0), (0.0, 1.0), (0.0, 1.0), pytest.approx((0.03, 0.75)), (0.06, 0.5), (0.06, 0.5)
    ]  # fmt: skip
    at_once = CertifiedLoss(replace(SMALL, warmup=0, ramp=0), model, (1, 28, 28))
    assert at_once.progress(0.0) == (0.06, 0.5)


def test_the_worst_logits_are_those_of_the_bounds_and_move_with_the_parameters(
    digits: tuple[Tensor, Tensor],
) -> None:
    x, y = (part[:7] for part in digits)
    with rng.seed_global("worst"):
        model = registry.find("models", "convsmall").build()
    bound = CertifiedLoss(SMALL, model, (1, 28, 28))
    clean, front = bound.worst(x, y, 0.0)
    logits = model(x)
    lead = logits - logits.gather(1, y[:, None])
    assert torch.allclose(clean.sort(1).values, lead.sort(1).values, atol=1e-5)
    assert nn.functional.cross_entropy(clean, front).item() == pytest.approx(
        nn.functional.cross_entropy(logits, y).item(), abs=1e-5
    )
    worst, _ = bound.worst(x, y, 0.1)
    assert (worst >= clean - 1e-6).all()
    nn.functional.cross_entropy(worst, front).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    with torch.no_grad():
        model[0].weight *= 2
        layers = network.read_network(model, (1, 28, 28))
        again = bounds.margin_bounds(layers, bounds.input_region(x, 0.1), y, "ibp")
        assert torch.equal(bound.worst(x, y, 0.1)[0][:, 1:], -again)


def test_interrupted_in_its_ramp_it_ends_with_the_same_weights(
    tmp_path: Path,
) -> None:
    short = replace(CERTIFIED, epochs=3, validation=1000)
    kept = tmp_path / "progress"

    def cut(epoch: trainer.Epoch) -> None:
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(short, kept, on_epoch=cut)
    assert torch.equal(state(train(short, kept).model), state(train(short).model))


def test_card_and_page_report_what_is_certified(
    bounded: trainer.TrainedModel, tmp_path: Path
) -> None:
    weights = model_card.publish_model(
        CERTIFIED, [model_card.SeedRun(5, bounded)], tmp_path, tmp_path / "out"
    )
    test = registry.find("datasets", "digits").load(split="test")
    held = certify_images(SMALL, bounded.model, test.read(0, test.n), test.labels)
    k = int(held.sum())
    text = page.write_page(CERTIFIED, weights).read_text("utf-8")
    assert f"| certified test accuracy | {k}/500 |" in text
    assert "1 epoch of plain training first; eps and its share grow from 0 over 3 epochs" in text
    assert "within L-inf eps 0.04" in text
    assert "attacked" not in text
    header, *rows = weights.with_suffix(".csv").read_text("utf-8").splitlines()
    assert header.endswith("validation_certified_loss,validation_certified_correct")
    assert not rows[0].endswith(",")


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (
            replace(CERTIFIED, model=ComponentSpec(name="maxout")),
            r"has no bounds: no bounds for unflatten",
        ),
        (replace(CERTIFIED, validation=5000), "expected fewer than the 1297 training images"),
    ],
)
def test_what_cannot_be_bounded_is_refused(wanted: Recipe, words: str) -> None:
    with pytest.raises(SuiteError, match=words):
        train(wanted)


def test_batch_norm_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(1352, 10))
    with pytest.raises(SuiteError, match="without batch-norm"):
        CertifiedLoss(SMALL, net, (1, 28, 28))


RECIPE = """
schema = 1
title = "A"
source = "a test"
weights = "test"
seed = 0
epochs = 1
batch_size = 64
validation = 100
model = { name = "convsmall" }
data = { name = "digits" }
optimiser = { name = "Adam" }
certified = { eps = 0.1, judged = 0.1 }
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("eps = 0.1, judged", "eps = 0.0, judged", "expected eps and judged above 0"),
        ("judged = 0.1", "judged = 0.1, ramp = -1", "expected warmup and ramp at least 0"),
        ("judged = 0.1", "judges = 0.1", "certified.judges: unknown key; did you mean 'judged'"),
        ("schema = 1", 'schema = 1\nadversarial = { attack = "fgsm", eps = 0.1 }', "not both"),
    ],
)
def test_a_mistake_in_the_table_is_the_users(
    old: str, new: str, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "small.toml"
    path.write_text(RECIPE, encoding="utf-8")
    assert recipe.read_recipe(str(path)).certified == Certificate(eps=0.1, judged=0.1)
    path.write_text(RECIPE.replace(old, new), encoding="utf-8")
    with pytest.raises(SuiteError, match=words):
        recipe.read_recipe(str(path))
