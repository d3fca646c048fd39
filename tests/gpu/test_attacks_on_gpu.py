"""Every rule in every norm, on tensors that say they are on a GPU: nothing waits, copies or mixes.

The attacks are whole: items start, make several steps, leave and are replaced by others. The
results are compared with those on a CPU, to the bit.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.core import registry
from bench.core.contracts.adaptation import Adaptation, UserFunction
from bench.core.contracts.attack import AttackSpec, IterativeAttack
from bench.core.contracts.input_transforms import InputTransforms
from bench.core.contracts.types import Norm
from bench.engine import stream
from bench.engine.rejection import RejectingModel
from bench.engine.stream_result import StreamResult
from gpu.known_events import TABLES, find_unknown
from gpu.pretended import Machine, SmallNet, make_spec


def list_rules() -> list[tuple[str, Norm]]:
    """Every attack that is a rule, with each of its norms."""
    records = [(n, registry.find("attacks", n)) for n in registry.names("attacks") if n[-1] != ":"]
    return [
        (name, norm)
        for name, record in records
        if isinstance(record, IterativeAttack)
        for norm in record.norms
    ]


@pytest.fixture(scope="module")
def problem() -> tuple[Tensor, Tensor]:
    """4 images and the classes that the net predicts."""
    x = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    return x, SmallNet()(x).argmax(1)


def attack_on_both(
    spec: AttackSpec, problem: tuple[Tensor, Tensor], net: Any = None, ask: Any = None
) -> tuple[Machine, StreamResult, StreamResult]:
    """The machine, and the results of an attack there and on the CPU."""
    net, (x, y), machine = net or SmallNet(), problem, Machine()
    wanted = stream.run_attack(net, spec, x, y, torch.arange(4), 3, ask_victim=ask)
    machine.gpu.upload_module(net)
    with machine.run() as upload:
        given = [upload(each) for each in (x, y, torch.arange(4))]
        result = stream.run_attack(net, spec, *given, 3, ask_victim=ask)
        assert all(each.is_cuda for each in result if isinstance(each, Tensor))
    return machine, result, wanted


def check(machine: Machine, result: StreamResult, wanted: StreamResult) -> None:
    """Nothing unknown happened, and the outcome is that of the CPU."""
    assert find_unknown(machine.in_steps, tuple(TABLES)) == []
    assert find_unknown(machine.gpu.events) == []
    for name, got, expected in zip(result._fields, result, wanted, strict=True):
        same = got == expected if not isinstance(got, Tensor) else torch.equal(
            got.nan_to_num(-7), expected.nan_to_num(-7)
        )  # fmt: skip
        assert same, name


@pytest.mark.parametrize(("name", "norm"), list_rules())
def test_a_rule_steps_without_the_host(name: str, norm: str, problem: Any) -> None:
    check(*attack_on_both(make_spec(name, norm), problem))


def leave_class(logits: Tensor, y: Tensor, images: Tensor) -> Tensor:
    """A user's loss."""
    return -logits.gather(1, y[:, None])[:, 0]


SETTINGS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "goes on after a success": ("pgd", {}, {"stop": "never"}),
    "takes over smaller eps": ("pgd", {}, {"sweep": "nested"}),
    "aims and takes over smaller eps": ("apgd_t", {}, {"sweep": "nested"}),
    "is targeted": ("pgd", {}, {"goal": "targeted"}),
    "traces losses": ("pgd", {}, {"trace": True}),
    "averages passes": ("pgd", {}, {"samples": 2}),
    "transforms inputs": (
        "mifgsm", {}, {"transforms": InputTransforms(diversity=0.7, translation=3, scales=2)},
    ),
    "logs queries": ("square", {"restarts": 1}, {}),
    "logs radii and budgets": (
        "rays", {}, {"stop": "never", "eps": (torch.inf,), "radii": (0.1, 0.2), "budgets": (3, 9)},
    ),
    "has a loss of its own": (
        "pgd", {}, {"adaptation": Adaptation(
            loss=UserFunction("leave", leave_class))},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SETTINGS)
def test_an_attack_needs_no_host_where_it(case: str, problem: Any) -> None:
    name, params, settings = SETTINGS[case]
    norm = registry.find("attacks", name).norms[0]
    check(*attack_on_both(make_spec(name, norm, params, **settings), problem))


def test_a_rejection_is_no_success_on_a_gpu_either(problem: Any) -> None:
    class Scored(SmallNet):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            return torch.cat([logits, logits.amax(1, keepdim=True)], 1)

    net = RejectingModel(Scored(), 10, threshold=1.0, above=True, spares=True)
    check(*attack_on_both(make_spec("pgd", "linf"), problem, net))


def test_a_victim_is_shown_iterates_on_the_gpu(problem: Any) -> None:
    asked = []

    def ask(eps: Tensor, example: Tensor, images: Tensor) -> Tensor:
        asked.append(len(images))
        return images.flatten(1).sum(1) > 400

    spec = make_spec("pgd", "linf", stop="never", victim_queries=6)
    check(*attack_on_both(spec, problem, ask=ask))
    assert asked


def test_rows_that_wait_after_memory_ran_out_stay_on_the_gpu(problem: Any) -> None:
    class Large(SmallNet):
        """A net without memory for three rows."""

        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 2 and torch.is_grad_enabled():
                raise torch.OutOfMemoryError("planted")
            return super().forward(x)

    machine, result, wanted = attack_on_both(make_spec("pgd", "linf"), problem, Large())
    assert result.rows == 1
    check(machine, result, wanted)
