"""A changed outcome without a raised version fails here.

Raise the version that the failure names, then store the outcomes again, all or those of one attack:

    python tests/golden/outcomes.py [ATTACK ...]
"""

import dataclasses
from typing import Any

import pytest
from golden import outcomes
from torch import Tensor

from bench.attacks import pgd
from bench.core import versions
from bench.engine.functional import projections


def complaint(attack: str, now: dict[str, Any] | None = None) -> str:
    """What is wrong with the outcomes of an attack as they are now; empty if nothing is."""
    file = outcomes.stored()
    known = file["attacks"].get(attack)
    store = f"store its outcomes by: {outcomes.COMMAND} {attack}"
    if known is None:
        return f"{attack} is new: {store}"
    if known["versions"] != outcomes.versions_of(attack):
        return f"{attack} has another version than its stored outcomes: {store}"
    exactly = file["machine"] == outcomes.machine()
    differ = outcomes.changed(known, now or outcomes.of_attack(attack), exactly)
    if not differ:
        return ""
    return (
        f"outcomes of {attack} changed ({'; '.join(differ)}): raise its `version` in "
        f"bench/attacks/{attack}.py, or NUMERICS_VERSION or JUDGE_VERSION in "
        f"bench/core/versions.py where other attacks change, too; then {store}"
    )


@pytest.mark.parametrize("attack", outcomes.attacks())
def test_no_outcome_of_an_attack_changes_under_the_same_version(attack: str) -> None:
    assert complaint(attack) == ""


@pytest.mark.parametrize("weights", outcomes.published())
def test_no_answer_of_a_model_changes_under_the_same_version(weights: str) -> None:
    known, now = outcomes.stored()["models"].get(weights), outcomes.of_model(weights)
    name = weights.partition("-")[0]
    message = (
        f"answers of {weights} changed: raise `version` in bench/models/{name}.py, and store them "
        f"by: {outcomes.COMMAND}"
    )
    assert known is not None, message
    assert (known["version"], known["class"]) == (now["version"], now["class"]), message
    assert known["confidence"] == pytest.approx(now["confidence"], abs=2e-3), message


def test_nothing_is_stored_that_is_not_there() -> None:
    stored = outcomes.stored()
    assert list(stored["attacks"]) == outcomes.attacks()
    assert list(stored["models"]) == outcomes.published()


def test_rounding_decides_few_of_the_stored_outcomes() -> None:
    cases = [c for each in outcomes.stored()["attacks"].values() for c in each["cases"].values()]
    bits = "".join(bits for case in cases for bits in case["fooled"])
    assert bits.count("?") < 0.02 * len(bits)
    assert 0.2 * len(bits) < bits.count("1") < 0.8 * len(bits)  # neither all nor nothing is fooled


def forgotten(way: str, patch: pytest.MonkeyPatch) -> None:
    """Change an outcome of PGD without raising a version."""
    rule, project, make_box = pgd.ATTACK.rule, projections.project, projections.make_box
    if way == "projection":
        patch.setattr(projections, "project_into", lambda x, box, x0, eps, norm: x0.clone())
    elif way == "gradient's sign":
        step = dataclasses.replace(pgd.ATTACK, rule=dataclasses.replace(rule, step=_backwards))
        patch.setattr(pgd, "ATTACK", step)
    else:  # so little that hardly an image is fooled or not by it
        patch.setattr(
            projections, "project", lambda x, x0, eps, norm: project(x, x0, 0.98 * eps, norm)
        )
        patch.setattr(projections, "make_box", lambda x0, eps, norm: make_box(x0, 0.98 * eps, norm))


def _backwards(state: Any, gradient: Tensor, *rest: Any) -> Any:
    return pgd.step(state, -gradient, *rest)


@pytest.mark.parametrize("way", ["projection", "gradient's sign", "2 % of the radius"])
def test_a_forgotten_version_is_noticed_and_a_raised_one_asks_for_new_outcomes(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten(way, monkeypatch)
    wrong = outcomes.of_attack("pgd")
    # On any machine, not on the one alone that the hashes are of.
    monkeypatch.setattr(outcomes, "machine", dict)
    assert complaint("pgd", wrong).startswith("outcomes of pgd changed (linf, untargeted; ")
    monkeypatch.setattr(versions, "NUMERICS_VERSION", versions.NUMERICS_VERSION + 1)
    assert complaint("pgd", wrong).startswith("pgd has another version than its stored outcomes")
