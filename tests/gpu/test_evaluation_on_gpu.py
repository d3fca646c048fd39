"""Whole chunks on tensors that say they are on a GPU: attack, verification, judge and records.

Every kind of attack that is no rule takes part, and every way in which a rule's images are checked.
The records are those of the CPU.
"""

import inspect
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from bench.core.contracts.attack import AttackSpec
from bench.core.errors import ContractError
from bench.engine import timing
from bench.engine.model_state import frozen
from bench.engine.rejection import RejectingModel
from bench.evaluation import judge as judge_module
from bench.evaluation.chunk import VerifiedChunk, evaluate_chunk
from bench.evaluation.crafting import Examples
from bench.evaluation.judge import judge, vote_for
from gpu.known_events import TABLES, find_unknown
from gpu.pretended import Machine, SmallNet, make_spec

FLOOR = timing.Floor(1e-6, 1e-6)
X = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(1))


class Scored(SmallNet):
    """A net with the score of a detector."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return torch.cat([logits, logits.amax(1, keepdim=True)], 1)


class Inaccurate(SmallNet):
    """A copy whose answers are not the net's."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flip(1)


def evaluate(net: nn.Module, spec: AttackSpec, x: Tensor, **others: Any) -> VerifiedChunk:
    """One chunk whose first label is wrong, so that one example is not attacked."""
    ids = torch.arange(len(x), device=x.device)
    clean = judge(net, x, 3, vote_for(spec, ids))
    label = torch.where(ids == 0, (clean.classified + 1) % 10, clean.classified)
    target = (label + 2) % 10 if spec.goal == "targeted" else torch.full_like(label, -1)
    fields = (ids, x, label, target, clean.pred, clean.confidence, clean.agreement)
    return evaluate_chunk(net, spec, Examples(*fields), 3, FLOOR, **others)


def check(spec: AttackSpec, net: nn.Module | None = None, **others: nn.Module) -> pd.DataFrame:
    """Evaluate on both; nothing unknown happens and the records are equal. Returns them."""
    net, machine = net or SmallNet(), Machine()
    wanted = evaluate(net, spec, X, **others)
    for each in (net, *others.values()):
        machine.gpu.upload_module(each)
    with machine.run() as upload:
        chunk = evaluate(net, spec, upload(X), **others)
    assert find_unknown(machine.in_steps, tuple(TABLES)) == []
    assert find_unknown(machine.gpu.events) == []
    assert not chunk.x_adv.is_cuda
    assert torch.equal(chunk.x_adv, wanted.x_adv)
    assert chunk.dropped == wanted.dropped
    records = pd.concat(chunk.records)
    pd.testing.assert_frame_equal(records, pd.concat(wanted.records))
    return records


KINDS = [
    ("pgd", "linf"), ("fgsm", "l2"), ("fmn", "l0"), ("rays", "linf"), ("surfree", "l2"),
    ("autoattack", "linf"), ("rigorous", "l2"), ("noise", "l1"), ("advgan", "linf"),
    ("universal", "linf"), ("patch_pgd", "patch"), ("rotation_translation", "rotation-translation"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "norm"), KINDS)
def test_a_chunk_is_evaluated_on_a_gpu_as_on_a_cpu(name: str, norm: str) -> None:
    eps = {"advgan": (0.3,), "universal": (0.1,)}.get(name)
    records = check(make_spec(name, norm, **({} if eps is None else {"eps": eps})))
    assert not records["attacked"].all()


def test_one_search_for_all_eps_is_verified_there() -> None:
    check(make_spec("rays", "linf", stop="never", budgets=(3, 9)))
    check(make_spec("ddn", "l2", stop="never"))


def test_targeted_and_nested_attacks_are_verified_there() -> None:
    check(make_spec("pgd", "linf", goal="targeted"))
    check(make_spec("autoattack", "l2", sweep="nested"))


def test_an_accelerated_model_is_checked_there() -> None:
    check(make_spec("pgd", "linf"), accelerated=SmallNet())
    check(make_spec("pgd", "linf", precision="tf32"))


def test_an_accelerated_model_that_disagrees_is_dropped_there() -> None:
    check(make_spec("pgd", "linf", eps=(0.01,)), accelerated=Inaccurate())


@pytest.mark.parametrize(
    ("name", "spares"), [("pgd", False), ("pgd", True), ("noise", True), ("fab_t", True)]
)
def test_rejections_are_judged_there(name: str, spares: bool) -> None:
    detecting = RejectingModel(Scored(), 10, threshold=5.5, above=True, spares=spares)
    check(make_spec(name, "linf"), detecting)


def test_a_victim_is_asked_there() -> None:
    spec = make_spec("pgd", "linf", stop="never", victim_queries=6)
    assert (check(spec, source=SmallNet())["victim_queries"] > 0).any()


def test_a_random_model_votes_there() -> None:
    check(make_spec("pgd", "linf", random=True, predictions=3, samples=2))


def test_whether_a_model_was_changed_is_asked_once_for_all_its_tensors() -> None:
    machine, net = Machine(), SmallNet()
    machine.gpu.upload_module(net)
    with machine.run():
        with frozen(net):
            pass
        assert [event.kind for event in machine.gpu.events] == ["read"]
        with pytest.raises(ContractError, match=r"net\.0\.bias"), frozen(net), torch.no_grad():
            net.net[0].bias.add_(1)


def test_an_offender_in_the_judge_is_named_with_file_and_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def count(logits: Tensor) -> Tensor:
        return logits.argmax(-1) + 0 * int(logits.isfinite().sum())

    machine, net = Machine(), SmallNet()
    machine.gpu.upload_module(net)
    monkeypatch.setattr(judge_module, "predict_class", count)
    with machine.run() as upload:
        judge(net, upload(X), 3)
    (unknown,) = find_unknown(machine.gpu.events)
    line = inspect.getsourcelines(count)[1] + 1
    assert unknown.startswith(f"test_evaluation_on_gpu.py:{line} (")
    assert unknown.endswith(": read by _local_scalar_dense")
