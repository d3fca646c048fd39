"""MALT's targets and the ensemble `rigorous`: order and cost of the targets, what comes first."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

import bench
from bench.attacks import apgd_malt, autoattack, rigorous
from bench.core.contracts.attack import AttackSpec
from bench.core.contracts.types import Norm
from bench.engine import stream
from bench.engine.class_ranking import linearised_distances
from bench.engine.functional import projections
from bench.suite import plan, reader
from bench.suite.cost import count_passes
from bench.suite.identity import ModelFacts

Batch = tuple[Tensor, Tensor]
SHORT = {"steps": 6, "targets": 2, "queries": 20, "restarts": 2}
NORMS: list[Norm] = ["linf", "l2", "l1"]
EPS = [0.05, 0.1]


class Linear(nn.Module):
    """Logits Wx + b with classes of very different slopes, so that logits mislead."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.layer = nn.Linear(16, 6)
        scale = torch.tensor([1.0, 0.1, 5.0, 0.5, 2.0, 0.2])
        with torch.no_grad():
            weight = torch.randn(6, 16, generator=generator) * scale[:, None]
            self.layer.weight.copy_(weight)
            self.layer.bias.copy_(torch.randn(6, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x.flatten(1))
        return logits


def grey_images(n: int) -> Tensor:
    """Images far from the walls of the box, (n, 1, 4, 4)."""
    return 0.5 + 0.02 * torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("norm", NORMS)
def test_on_a_linear_model_the_distance_is_the_one_at_which_the_class_is_reached(
    norm: Norm,
) -> None:
    net, x = Linear(), grey_images(8)
    label = net(x).argmax(1)
    candidates = (label[:, None] + torch.arange(1, 6)) % 6
    distances = linearised_distances(net, x, label, candidates, norm).detach()
    for k in range(5):
        wrong, eps = candidates[:, k], distances[:, k]
        slope = net.layer.weight[wrong] - net.layer.weight[label]
        direction = projections.steepest_direction(slope.view_as(x), norm)
        if norm == "l1":  # all of the step in the steepest pixel
            flat = slope.detach()
            top = flat.abs().argmax(1, keepdim=True)
            direction = torch.zeros_like(flat).scatter(1, top, flat.gather(1, top).sign())
            direction = direction.view_as(x)
        logits = net(x + eps[:, None, None, None] * direction.detach())
        gap = logits.gather(1, label[:, None]) - logits.gather(1, wrong[:, None])
        assert gap.abs().max() < 1e-4


def test_targets_are_the_nearest_classes_and_not_those_of_the_largest_logits() -> None:
    net, x = Linear(), grey_images(32)
    label = net(x).argmax(1)
    params = apgd_malt.Params(steps=1, targets=5)
    spec = AttackSpec(
        name="apgd_malt", attack=apgd_malt.ATTACK, params=params, norm="linf", eps=(0.01,)
    )
    order = stream.AttackStream(net, net, spec, x, label, torch.arange(32), label, 7).order
    distances = linearised_distances(net, x, label, order, "linf")
    assert (distances.diff(dim=1) >= 0).all()
    logits = net(x).gather(1, order)
    assert (logits.diff(dim=1) > 0).any()


def test_a_class_without_a_gradient_is_ranked_last() -> None:
    class Flat(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * torch.tensor([1.0, 0, 0, 1, 1, 1])

    net, x = Flat(), grey_images(4)
    label, candidates = torch.full((4,), 2), torch.tensor([[1, 0, 3]] * 4)
    distances = linearised_distances(net, x, label, candidates, "l2")
    assert distances[:, 0].isinf().all()
    assert distances[:, 1:].isfinite().all()

    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(len(x), 4)

    assert linearised_distances(Constant(), x, label, candidates, "l2").isinf().all()


def test_ranking_costs_one_forward_and_a_gradient_a_candidate(
    lenet: nn.Module, digits: Batch
) -> None:
    x, y = digits[0][:12], digits[1][:12]
    params = {"steps": 3, "targets": 1, "candidates": 4}
    records = bench.evaluate(
        lenet, x, y, attack="apgd_malt", eps=[0.001, 0.002], params=params, stop="never",
        device="cpu",
    ).records  # fmt: skip
    attacked = records[records["attacked"]]
    # 3 steps, one forward for the logits, one for the gradients, shared by two eps.
    assert set(attacked["forwards"]) == {3 + 1 / 2 + 1 / 2}
    assert set(attacked["backwards"]) == {3 + 4 / 2}
    spec = AttackSpec(
        name="apgd_malt", attack=apgd_malt.ATTACK, params=apgd_malt.Params(**params),
        norm="linf", eps=(0.001, 0.002),
    )  # fmt: skip
    assert count_passes(spec) == (3 + 1 / 2, 3 + 4 / 2)


def test_a_plan_counts_no_more_candidates_and_targets_than_wrong_classes(
    lenet: nn.Module, digits: Batch
) -> None:
    x, y = digits[0][:12], digits[1][:12]
    params = {"steps": 2, "targets": 20, "candidates": 100}
    records = bench.evaluate(
        lenet, x, y, attack="apgd_malt", eps=0.001, params=params, stop="never", device="cpu"
    ).records
    attacked = records[records["attacked"]]
    entry = reader.parse_attack(
        {"name": "apgd_malt", "norm": "linf", "eps": [0.001], "params": params}, "an attack"
    )
    facts = ModelFacts(classes=10, shape=(1, 28, 28))
    (cell,) = plan.plan_task("lenet", entry, facts, 0, "nested").cells
    assert cell.gradients == 2 * 9 + 9
    assert set(attacked["backwards"]) == {cell.gradients}
    unknown = plan.plan_task("lenet", entry, facts._replace(classes=None), 0, "nested")
    assert unknown.cells[0].gradients == 2 * 20 + 100


def test_outcomes_do_not_depend_on_the_rows_of_a_pass(lenet: nn.Module, digits: Batch) -> None:
    x, y = digits[0][:20], digits[1][:20]
    fooled = [
        bench.evaluate(
            lenet, x, y, attack="apgd_malt", eps=0.05, params={"steps": 5, "targets": 3},
            batch_size=rows, device="cpu",
        ).records["fooled"].tolist()
        for rows in (3, 64)
    ]  # fmt: skip
    assert fooled[0] == fooled[1]
    assert 0 < sum(fooled[0]) < 20


def test_the_first_parts_are_autoattack_with_its_very_outcomes(
    lenet: nn.Module, digits: Batch
) -> None:
    x, y = digits[0][:24], digits[1][:24]
    short = {key: SHORT[key] for key in ("steps", "targets", "queries")}
    standard = bench.evaluate(
        lenet, x, y, attack="autoattack", eps=EPS, params=short, device="cpu"
    ).records
    further = bench.evaluate(
        lenet, x, y, attack="rigorous", eps=EPS, params=SHORT, device="cpu"
    ).records
    labels = {part.label for part in autoattack.parts(autoattack.Params(), "linf")}
    first = further["part"].where(further["part"].isin(labels), "")
    assert first.tolist() == standard["part"].tolist()
    assert (further["fooled"] >= standard["fooled"]).all()


@pytest.mark.parametrize("norm", NORMS)
def test_two_margins_and_malt_follow_autoattack(norm: Norm) -> None:
    params = rigorous.Params(steps=50, restarts=3)
    parts = rigorous.parts(params, norm)
    standard = autoattack.parts(autoattack.Params(steps=50), norm)
    assert [*parts[:4]] == [*standard]
    assert [part.label for part in parts[4:]] == ["apgd-pma", "apgd-margin", "apgd-malt"]
    assert [part.params.loss for part in parts[4:]] == ["pma", "logit-difference", "dlr"]
    assert {part.params.steps for part in parts[4:]} == {50}
    assert len({dataclasses.astuple(part.params) for part in parts}) == len(parts)
