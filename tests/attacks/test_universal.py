"""One perturbation for all images: how it is trained, added and verified."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import bench
from bench.attacks import universal
from bench.core.contracts.learner import TrainingBatch
from bench.core.contracts.threat import VerifierInput
from bench.core.contracts.types import Norm, Threat
from bench.core.rng import Noise
from bench.engine.functional.norms import norm_of

Trained = tuple[nn.Module, Tensor, Tensor]
Save = Callable[..., universal.Params]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes a perturbation of +-0.1 into a file of weights."""

    def write(norm: str = "linf", **changed: Any) -> universal.Params:
        signs = torch.where(torch.arange(28 * 28) % 2 == 0, 0.1, -0.1)
        tensors = {"delta": signs.reshape(1, 28, 28)} | changed
        path = tmp_path / "delta.safetensors"
        save_file(tensors, path, metadata={"norm": norm, "eps": "0.1", "shape": "1x28x28"})
        return universal.Params(weights=str(path))

    return write


def evaluate(trained: Trained, params: universal.Params, **settings: Any) -> bench.Evaluation:
    return bench.evaluate(
        *trained, attack="universal", params={"weights": params.weights}, device="cpu",
        keep_adversarial=True, **settings,
    )  # fmt: skip


def train(trained: Trained, norm: Norm, eps: float, steps: int) -> universal.Perturbation:
    model, x, y = trained
    settings, threat = universal.Training(), Threat(norm=norm, eps=eps)
    networks = universal.build((1, 28, 28), settings)
    optimisers = {"perturbation": torch.optim.Adam(networks["perturbation"].parameters(), 0.02)}
    for _ in range(steps):
        universal.step(networks, optimisers, TrainingBatch(model, x, y, threat), settings)
    found = networks["perturbation"]
    assert isinstance(found, universal.Perturbation)
    return found


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.2), ("l2", 4.0)])
def test_training_stays_in_the_ball_and_fools_more_than_a_random_sign(
    trained: Trained, norm: Norm, eps: float
) -> None:
    model, x, y = trained
    delta = train(trained, norm, eps, 40).delta.detach()
    assert norm_of(delta[None], norm)[0] <= eps * (1 + 1e-5)
    signs = torch.randn(delta.shape, generator=torch.Generator().manual_seed(0)).sign()
    random = signs * eps / norm_of(signs[None], norm)[0]
    wrong = [int((model((x + d).clamp(0, 1)).argmax(1) != y).sum()) for d in (random, delta)]
    assert wrong[1] > wrong[0] + 5


def test_every_image_is_the_clean_one_plus_the_same_delta(trained: Trained, save: Save) -> None:
    found = evaluate(trained, save(), eps=0.1)
    signs = torch.where(torch.arange(28 * 28) % 2 == 0, 0.1, -0.1).reshape(1, 28, 28)
    assert found.adversarial is not None
    assert torch.equal(found.adversarial[0], (trained[1] + signs).clamp(0, 1))
    assert (found.records["violation"] == "").all()
    assert (found.records[["forwards", "backwards"]] == 0).all(axis=None)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 2.0)])
def test_at_another_radius_or_in_another_norm_delta_is_scaled_with_a_caveat(
    trained: Trained, save: Save, norm: Norm, eps: float
) -> None:
    found = evaluate(trained, save(), norm=norm, eps=eps)
    assert (found.records["violation"] == "").all()
    assert found.table["caveats"].item().startswith("The perturbation was trained at linf")


def test_an_image_with_another_perturbation_is_a_violation(trained: Trained, save: Save) -> None:
    params, x, ids = save(), trained[1][:2], torch.arange(2)
    noise = Noise(0, "test", ids, torch.zeros_like(ids))
    x_adv = universal.run(trained[0], x, ids, Threat(norm="linf", eps=0.1), params, noise)
    x_adv[1, 0, 3, 3] = x[1, 0, 3, 3] * 0.5 + 0.03
    given = VerifierInput(x_adv, torch.zeros(2, 0), x, "linf", 0.1, params, noise)
    expected = "1 pixel values differ from the universal perturbation's, allowed 0"
    assert universal.verify(given) == ["", expected]


def test_a_lying_universal_attack_has_violations_in_its_records(
    trained: Trained, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = save()

    def run(model: Any, x: Tensor, y: Any, threat: Threat, params: Any, noise: Any) -> Tensor:
        return (x + threat.eps / 2).clamp(0, 1)  # in the ball, and not the trained delta

    attack = bench.Attack(
        summary="lies", source="a test", params=universal.Params, norms=("linf",), run=run,
        needs="nothing", verify=universal.verify,
    )  # fmt: skip
    found = bench.evaluate(
        *trained, attack=attack, params={"weights": params.weights}, eps=0.1, device="cpu"
    )
    assert found.records["violation"].str.contains("universal perturbation").all()
    assert not found.records["fooled"].any()


@pytest.mark.parametrize("changed", [{"delta": torch.full((1, 28, 28), torch.nan)}, {"norm": "l7"}])
def test_a_file_that_is_no_perturbation_is_one_sentence(
    trained: Trained, save: Save, changed: dict[str, Any]
) -> None:
    with pytest.raises(bench.SuiteError, match="expected a finite delta"):
        evaluate(trained, save(**changed), eps=0.1)


def test_unknown_weights_name_the_known_ones(trained: Trained) -> None:
    with pytest.raises(bench.SuiteError, match=r"lenet-digits.*bench train universal-lenet"):
        evaluate(trained, universal.Params(weights="lenet-digit"), eps=0.1)
