"""The contract of attacks, for every attack that the registry knows.

A new file in bench/attacks is tested here before its author writes a test. What packages run on
their attacks comes from `attack_contract`; the rest concerns bench's own.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import bench
from bench.contract_tests.attack_contract import *  # noqa: F403
from bench.contract_tests.attack_contract import (
    CLASSES,
    EPS,
    Batch,
    Case,
    ParamsChooser,
    build_small_net,
    collect_state,
    evaluate_case,
    label_images,
)
from bench.core import registry, rng
from bench.core.contracts.learner import TrainingBatch
from bench.core.contracts.types import Threat
from bench.evaluation.evaluator import Evaluator

BUILT_IN = [name for name in registry.names("attacks") if not name.endswith(":")]
ATTACKS = {name: registry.find("attacks", name) for name in BUILT_IN}
NAMES = BUILT_IN + [f"torchattacks:{name}" for name in ("FGSM", "PGD", "PGDL2", "APGD", "CW")]
LEARNED = [name for name, attack in ATTACKS.items() if attack.learn]
FIXED = {"steps": 5, "queries": 20, "lr": 50.0}
"""Quick params of an attack with a budget; by so long a step a raw gradient crosses its ball."""
MINIMUM = {"steps": 10, "c": 5.0, "lr": 0.1}
"""Quick params with which a search for the least distance finds some."""


@pytest.fixture(scope="module")
def quick_params(tmp_path_factory: pytest.TempPathFactory) -> ParamsChooser:
    """Few steps, and the weights of the attacks that must be trained first.

    These are trained for a moment against the small net, on the seven images.
    """
    target = build_small_net().requires_grad_(False)
    threat = Threat(norm="linf", eps=EPS["linf"])
    lesson = TrainingBatch(target, *label_images(target), threat)
    weights = {}
    for name in LEARNED:
        learn, shape = ATTACKS[name].learn, (1, 8, 8)
        settings = learn.params()
        with rng.seed_global("learned", name):
            networks = learn.build(shape, settings)
        optimisers = {k: torch.optim.Adam(v.parameters(), 3e-3) for k, v in networks.items()}
        for _ in range(60):
            learn.step(networks, optimisers, lesson, settings)
        path = tmp_path_factory.mktemp("learned") / f"{name}.safetensors"
        metadata = dict(learn.metadata(shape, threat))
        save_file(networks[learn.published].state_dict(), path, metadata=metadata)
        weights[name] = {"weights": str(path)}

    def choose(name: str) -> dict[str, Any]:
        attack = registry.find("attacks", name)
        fields = {field.name for field in dataclasses.fields(attack.params)}
        wanted = FIXED if attack.budget == "fixed" else MINIMUM
        short = {key: value for key, value in wanted.items() if key in fields}
        return short | weights.get(name, {})

    return choose


@pytest.mark.parametrize("learned", LEARNED)
def test_a_trained_attack_fools_the_net_that_it_was_trained_against(
    learned: str, evaluator: Evaluator, quick_params: ParamsChooser
) -> None:
    records = evaluate_case(evaluator, (learned, "linf", "untargeted"), quick_params(learned)).frame
    assert records["fooled"].any()


def test_no_attack_of_bench_depends_on_its_batch() -> None:
    """The contract skips what is asked of the rows of one that says so."""
    assert not any(attack.batch_dependent for attack in ATTACKS.values())


@pytest.mark.parametrize("attack", ["pgd", "torchattacks:PGD"])
def test_bench_evaluate_leaves_a_model_in_training_mode_as_it_was(
    attack: str, net: Any, batch: Batch
) -> None:
    settings: dict[str, Any] = {"attack": attack, "eps": 0.2, "batch_size": 3, "device": "cpu"}
    records = bench.evaluate(net, *batch, **settings).records
    net.train()
    net[3].eval()
    state, x = collect_state(net), batch[0].clone()
    assert bench.evaluate(net, *batch, **settings).records.equals(records)
    assert collect_state(net) == state
    assert torch.equal(batch[0], x)


def test_permuted_examples_get_permuted_images(
    rule_case: Case,
    net: nn.Module,
    batch: Batch,
    attacked: Callable[..., Any],
    quick_params: ParamsChooser,
) -> None:
    attack, norm, goal = rule_case
    x, y = batch[0].double(), batch[1] if goal == "untargeted" else (batch[1] + 1) % CLASSES
    settings = {"norm": norm, "goal": goal, "rows": 3, "params": quick_params(attack)}
    straight = attacked(net.double(), x, y, attack, EPS[norm], **settings)
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    permuted = attacked(net, x[order], y[order], attack, EPS[norm], examples=order, **settings)
    assert torch.allclose(permuted.x_adv[0], straight.x_adv[0][order], rtol=0, atol=1e-9)
    assert torch.equal(permuted.forwards[0], straight.forwards[0][order])
    assert torch.equal(permuted.first_success[0], straight.first_success[0][order])
