"""The time that is left: forecast from what a run has measured, within 1.5 from a fifth on."""

from pathlib import Path

import pytest
from simulated_time import SimulatedClock, count_parameters, trace_run

FACTOR = 1.5
HEAD = """
schema = 1
name = "s"
data = { name = "digits", limit = LIMIT }
models = [MODELS]
"""
LENET = '{ name = "lenet", weights = "digits" }'
SOFTMAX = '{ name = "softmax", weights = "random" }'


def attack(name: str, eps: str = "[0.05, 0.1, 0.2]", norm: str = "linf", **params: object) -> str:
    given = ", ".join(f"{key} = {value}" for key, value in params.items())
    return (
        f'[[attacks]]\nname = "{name}"\nnorm = "{norm}"\neps = {eps}\n'
        f"params = {{ {given} }}\n"
    )  # fmt: skip


TEN = "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]"
KINDS = {
    "as the quickstart: every step is made": (
        'stop = "never"\n', 16, LENET,
        [attack("fgsm"), attack("bim", steps=5), attack("pgd", steps=10),
         attack("torchattacks:BIM", steps=5), attack("torchattacks:PGD", steps=10)],
    ),
    "PGD with restarts at ten eps, of which a net resists all": (
        "", 16, LENET,
        [attack("pgd", str([0.0004 * number for number in range(1, 11)]), steps=10, restarts=3)],
    ),
    "PGD with restarts at ten eps, of which a net resists few": (
        "", 32, LENET,
        [attack("pgd", str([0.03 * number for number in range(1, 11)]), steps=10, restarts=3)],
    ),
    "a net that is broken at once": (
        "", 100, LENET, [attack("pgd", "[0.3, 0.4, 0.5]", steps=40, restarts=2)],
    ),
    "AutoAttack at three eps": (
        "", 20, LENET, [attack("autoattack", steps=5, queries=60)],
    ),
    "a fast and a slow model": (
        "", 24, f"{SOFTMAX}, {LENET}",
        [attack("fgsm"), attack("pgd", steps=10), attack("apgd", steps=20)],
    ),
    "searches and decisions": (
        "", 16, LENET,
        [attack("fmn", norm="l2", steps=25), attack("ddn", norm="l2", steps=25),
         attack("hopskipjump", norm="l2", steps=100), attack("square", steps=60)],
    ),
    "attacks of a library": (
        "", 16, LENET,
        [attack("torchattacks:PGD", steps=10), attack("torchattacks:CW", norm="l2", steps=20)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_from_a_fifth_of_the_time_on_the_forecast_is_within_one_and_a_half(
    kind: str, tmp_path: Path
) -> None:
    top, limit, models, attacks = KINDS[kind]
    head = HEAD.replace("LIMIT", str(limit)).replace("MODELS", models) + top
    (tmp_path / "s.toml").write_text(head + "".join(attacks), encoding="utf-8")
    clock = SimulatedClock()
    clock.cost = lambda model: count_parameters(model) / 1e7
    options = {"batch_size": 16}
    looks, whole = trace_run(tmp_path / "s.toml", tmp_path / "out", clock, options=options)
    late = [look for look in looks if look.time >= whole / 5]
    ratios = [(look.time + look.left) / whole for look in late]
    assert len(late) > 10
    assert 1 / FACTOR <= min(ratios) <= max(ratios) <= FACTOR
