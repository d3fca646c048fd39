"""Training against attacks: what is attacked, what learns from it, what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.core import registry, rng
from bench.core.contracts.dataset import Data
from bench.core.errors import SuiteError
from bench.workflows.training import trainer
from bench.workflows.training.adversarial import AdversarialBatches
from bench.workflows.training.recipe import Adversary, ComponentSpec, Recipe

CPU = torch.device("cpu")
FGSM = Adversary(attack="fgsm", eps=0.15)
PLAIN = Recipe(
    schema=1,
    name="small",
    title="LeNet on the digits",
    source="a test",
    weights="test",
    seed=5,
    epochs=3,
    batch_size=64,
    validation=200,
    model=ComponentSpec(name="lenet"),
    data=ComponentSpec(name="digits"),
    optimiser=ComponentSpec(name="Adam", params={"lr": 2e-3}),
)


def train(recipe: Recipe) -> trainer.TrainedModel:
    return trainer.train_model(recipe, Path(), CPU)


def state(model: nn.Module) -> Tensor:
    return torch.cat([value.flatten() for value in model.state_dict().values()])


def training_images() -> tuple[Tensor, Tensor]:
    data: Data = registry.find("datasets", "digits").load(split="train")
    assert data.labels is not None
    return data.read(0, data.n), data.labels


def correct(model: nn.Module, x: Tensor, y: Tensor, adversary: Adversary) -> int:
    """How many the model gets right after the attack."""
    x_adv = AdversarialBatches(adversary, 5).validate(model, x, y, torch.arange(len(x)))
    return trainer.evaluate_model(model, x_adv, y).correct


@pytest.fixture(scope="module")
def hardened() -> trainer.TrainedModel:
    return train(replace(PLAIN, adversarial=FGSM))


def test_a_net_trained_against_an_attack_withstands_it_better_than_a_plain_one(
    hardened: trainer.TrainedModel, digits: tuple[Tensor, Tensor]
) -> None:
    plain = train(PLAIN)
    assert correct(hardened.model, *digits, FGSM) > correct(plain.model, *digits, FGSM) + 20
    assert plain.best.validation_adversarial_correct is None


def test_the_epoch_kept_has_the_fewest_errors_on_attacked_validation_images(
    hardened: trainer.TrainedModel,
) -> None:
    counts = [epoch.validation_adversarial_correct for epoch in hardened.history]
    assert hardened.best.validation_adversarial_correct == max(filter(None, counts))
    order = rng.permute(5, "validation split", 1297)[:200]
    x, y = training_images()
    x_adv = AdversarialBatches(FGSM, 5).validate(hardened.model, x[order], y[order], order)
    again = trainer.evaluate_model(hardened.model, x_adv, y[order])
    assert again.correct == hardened.best.validation_adversarial_correct


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_step_is_along_the_gradient_of_the_shared_loss(share: float) -> None:
    adversary = replace(FGSM, share=share)
    recipe = replace(
        PLAIN,
        epochs=1,
        batch_size=2000,  # one step
        optimiser=ComponentSpec(name="SGD", params={"lr": 0.1}),
        adversarial=adversary,
    )
    ids = rng.permute(5, "validation split", 1297)[200:]
    x, y = (part[ids] for part in training_images())
    with rng.seed_global(5, "training", "small"):
        model: nn.Module = registry.find("models", "lenet").build()
    x_adv = AdversarialBatches(adversary, 5).train(model, x, y, ids, 1)
    before, entropy = state(model), nn.functional.cross_entropy
    loss = (1 - share) * entropy(model(x_adv), y)
    if share:
        loss = loss + share * entropy(model(x), y)
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter -= 0.1 * parameter.grad
    step = train(recipe).model
    assert (state(model) - before).abs().max() > 1e-4
    torch.testing.assert_close(state(step), state(model), rtol=0, atol=1e-7)


def test_eps_grows_to_its_full_value_while_warming_up(
    lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    craft, ids = AdversarialBatches(replace(FGSM, eps=0.3, warmup=2), 0), torch.arange(200)
    reached = [
        float((craft.train(lenet, *digits, ids, epoch) - digits[0]).abs().max())
        for epoch in (1, 2, 3, 4)
    ]
    assert reached == pytest.approx([0.1, 0.2, 0.3, 0.3], abs=1e-6)
    validated = craft.validate(lenet, *digits, ids) - digits[0]
    assert float(validated.abs().max()) == pytest.approx(0.3, abs=1e-6)


def test_crafting_leaves_no_gradient_in_the_parameters_nor_a_graph_in_the_images(
    lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    craft = AdversarialBatches(replace(FGSM, attack="pgd", params={"steps": 2}), 0)
    x_adv = craft.train(lenet.train(), *digits, torch.arange(200), 1)
    assert lenet.training
    assert all(parameter.grad is None for parameter in lenet.parameters())
    assert x_adv.grad_fn is None
    assert not x_adv.requires_grad


def test_the_noise_of_an_image_is_its_own_in_every_epoch_and_the_same_in_every_validation(
    lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    craft, (x, y) = AdversarialBatches(replace(FGSM, attack="pgd", params={"steps": 1}), 0), digits
    ids = torch.arange(200)
    one, two = (craft.train(lenet, x, y, ids, epoch) for epoch in (1, 2))
    assert not torch.equal(one, two)
    turned = craft.train(lenet, x.flip(0), y.flip(0), ids.flip(0), 1).flip(0)
    torch.testing.assert_close(one, turned)
    assert torch.equal(craft.validate(lenet, x, y, ids), craft.validate(lenet, x, y, ids))


def test_patience_stops_a_training_that_gets_no_better() -> None:
    still = ComponentSpec(name="SGD", params={"lr": 0.0})
    trained = train(replace(PLAIN, epochs=9, patience=2, batch_size=600, optimiser=still))
    assert (len(trained.history), trained.best.epoch) == (3, 1)


def test_training_in_bfloat16_learns_and_keeps_its_weights_in_float32() -> None:
    low = train(replace(PLAIN, epochs=2, validation=700, precision="bfloat16", adversarial=FGSM))
    assert {value.dtype for value in low.model.state_dict().values()} == {torch.float32}
    assert low.history[1].train_loss < low.history[0].train_loss
    assert low.best.validation_correct > 150  # of 700: twice as many as by chance


def test_a_training_in_the_callers_own_autocast_learns_as_well() -> None:
    recipe = replace(PLAIN, epochs=2, precision="bfloat16")
    with torch.autocast("cpu", torch.bfloat16):
        inside = train(recipe)
    assert inside.history[1].train_loss < 0.8 * inside.history[0].train_loss


TARGETED = """
from dataclasses import replace
from bench.attacks.fgsm import ATTACK
ONLY = replace(ATTACK, goals=("targeted",))
"""


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"attack": "fgms"}, "attack 'fgms' is unknown; did you mean 'fgsm'"),
        ({"attack": "noise"}, "expected a rule such as bench's own attacks"),
        ({"attack": "regularised_noise", "norm": "l2"}, "expected a rule such as bench's own"),
        ({"norm": "l1"}, "within an eps in l1, got 'fgsm'"),
        ({"params": {"stepz": 2}}, "adversarial.params: stepz: unknown key"),
    ],
)
def test_an_adversary_that_cannot_be_trained_against_is_refused(
    change: dict[str, Any], part: str
) -> None:
    with pytest.raises(SuiteError) as caught:
        train(replace(PLAIN, adversarial=replace(FGSM, **change)))
    assert part in str(caught.value)


def test_an_adversary_that_can_only_be_targeted_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "only.py"
    path.write_text(TARGETED, encoding="utf-8")
    with pytest.raises(SuiteError, match="expected a rule such as bench's own attacks"):
        AdversarialBatches(replace(FGSM, attack=f"{path}:ONLY"), 0)


@pytest.mark.parametrize("change", [{"eps": 0.0}, {"share": 1.0}, {"warmup": -1}])
def test_an_adversary_without_sense_is_no_adversary(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected eps above 0, share in"):
        replace(FGSM, **change)
