"""The three kinds of attack, however a user's file writes them."""

import dataclasses
import pickle
from typing import Any

import pytest
from torch import Tensor

import bench
from bench.attacks import autoattack, fgsm, noise
from bench.core.errors import ContractError

COMMON: dict[str, Any] = {"summary": "s", "source": "s", "params": fgsm.Params, "norms": ("linf",)}


def run(model: Any, x: Tensor, *rest: Any) -> Tensor:
    return x


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("rule", fgsm.ATTACK.rule, bench.IterativeAttack),
        ("run", run, bench.ExternalAttack),
        ("parts", autoattack.parts, bench.EnsembleAttack),
    ],
)
def test_an_attack_is_of_the_kind_that_its_mechanism_says(
    field: str, value: Any, kind: type
) -> None:
    others = dict.fromkeys({"rule", "run", "parts"} - {field})
    given = {**COMMON, field: value}
    attacks = [bench.Attack(**given), bench.Attack(**given, **others), kind(**given)]
    assert [type(each) for each in attacks] == [kind] * 3
    assert all(isinstance(each, bench.Attack) and each == attacks[0] for each in attacks)


@pytest.mark.parametrize("given", [{}, {"rule": fgsm.ATTACK.rule, "run": run}])
def test_an_attack_has_one_mechanism(given: dict[str, Any]) -> None:
    with pytest.raises(ContractError, match="either a rule, a run function or parts"):
        bench.Attack(**COMMON, **given)


def test_another_mechanism_makes_another_kind_and_keeps_the_rest() -> None:
    changed = dataclasses.replace(fgsm.ATTACK, rule=None, run=run)
    assert isinstance(changed, bench.ExternalAttack)
    assert (changed.summary, changed.params) == (fgsm.ATTACK.summary, fgsm.Params)
    same = dataclasses.replace(fgsm.ATTACK, version=2)
    assert isinstance(same, bench.IterativeAttack)
    assert same.version == 2


@pytest.mark.parametrize("attack", [fgsm.ATTACK, noise.ATTACK, autoattack.ATTACK])
def test_an_attack_survives_pickling(attack: bench.Attack) -> None:
    assert pickle.loads(pickle.dumps(attack)) == attack
