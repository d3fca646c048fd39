"""What bench.evaluate finds out before its attack is bounded by passes, kept, and forgotten."""

import threading
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import bench
from bench.engine import process_cache, timing
from bench.engine.acceleration import accelerate
from bench.evaluation import crafting, model_pool, setup_budget
from bench.evaluation.audit import gradient_check
from bench.models.preflight import checks

Digits = tuple[Tensor, Tensor]
HIDDEN = threading.local()
"""What no fingerprint sees, as Python does not show what is in it."""
HIDDEN.rows = []
"""Rows of each forward and of each backward pass of a counted model or a copy of it."""
HIDDEN.scale = {"logits": 1.0, "gradient": 1.0}
"""What every counted model multiplies logits and gradients by."""
TIMES = ["seconds", "verify_seconds", "examples_per_second", "floor_ratio"]


class _Counting(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        HIDDEN.rows.append(len(gradient))
        return HIDDEN.scale["gradient"] * gradient


class Counted(nn.Module):
    """A net whose passes are counted, its copies' with them; no attribute of it changes."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        HIDDEN.rows.append(len(x))
        logits: Tensor = self.net(_Counting.apply(x))
        return HIDDEN.scale["logits"] * logits


class Pair(Counted):
    """Returns more than its logits."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x), x


@pytest.fixture
def counted(lenet: nn.Module) -> nn.Module:
    return Counted(lenet).eval()


@pytest.fixture
def setup_passes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[float, bench.Evaluation]]:
    """(model, images and labels, settings) -> passes before the attack, and the evaluation.

    A forward pass of one image counts as half of one; the clean evaluation, which every record
    needs, does not count.
    """
    before: list[int] = []
    attack = crafting.stream.run_attack

    def started(*given: Any, **named: Any) -> Any:
        before.append(sum(HIDDEN.rows))
        return attack(*given, **named)

    monkeypatch.setattr(crafting.stream, "run_attack", started)

    def measure(model: nn.Module, data: Digits, **settings: Any) -> tuple[float, bench.Evaluation]:
        HIDDEN.rows.clear()
        before.clear()
        chosen = {
            "attack": "pgd", "eps": 0.1, "params": {"steps": 10}, "stop": "never", "device": "cpu",
        } | settings  # fmt: skip
        result = bench.evaluate(model, *data, **chosen)
        return (before[0] - len(data[0])) / 2, result

    return measure


def first(digits: Digits, n: int) -> Digits:
    return digits[0][:n], digits[1][:n]


def outcomes(result: bench.Evaluation) -> pd.DataFrame:
    return result.records.drop(columns=[each for each in TIMES if each in result.records])


def count_calls(monkeypatch: pytest.MonkeyPatch, place: Any, name: str) -> list[str]:
    """Return a list that grows by each call of a function."""
    calls: list[str] = []
    work = getattr(place, name)
    monkeypatch.setattr(place, name, lambda *a, **k: (calls.append(name), work(*a, **k))[1])
    return calls


# ------------------------------------------------------------------------------------- bounded


@pytest.mark.parametrize("rows", [None, 8])
@pytest.mark.parametrize(
    ("n", "steps"), [(1, 1), (1, 100), (16, 1), (16, 10), (16, 100), (40, 10), (100, 1)]
)
def test_set_up_takes_three_passes_of_each_image_or_a_twentieth_of_the_attack(
    rows: int | None, n: int, steps: int, counted: nn.Module, digits: Digits, setup_passes: Any
) -> None:
    spent, _ = setup_passes(counted, first(digits, n), params={"steps": steps}, batch_size=rows)
    assert spent <= max(3 * n, 0.05 * n * steps)


@pytest.mark.parametrize("n", [3, 16, 20, 128])
def test_the_passes_of_a_check_are_as_many_as_are_planned_for(
    n: int, counted: nn.Module, digits: Digits, setup_passes: Any
) -> None:
    spent, _ = setup_passes(counted, first(digits, n), attack="fgsm", params={}, batch_size=256)
    no_bytes = 0.5  # the rows a pass are given, so that no pass counts the bytes of one
    assert spent + no_bytes == setup_budget.count_check_passes(n)


def test_what_is_left_goes_to_an_accelerated_model_and_then_to_the_floor() -> None:
    passes = setup_budget.count_check_passes(100) + accelerate.count_probe_passes(16, 8)
    assert passes + timing.count_floor_passes(8, 2) < 300
    assert setup_budget.plan_setup(100, 1000.0, 8, True) == (True, False, 13)
    assert setup_budget.plan_setup(1000, 1e4, 8, True) == (True, True, timing.MAX_CALLS)
    assert setup_budget.plan_setup(100, 1000.0, 8, False).accelerates is False
    assert setup_budget.plan_setup(100, 50.0, 8, True).accelerates is False  # as long as comparing
    assert setup_budget.plan_setup(100, 1000.0, 64, True) == (True, False, 0)
    assert setup_budget.plan_setup(100, 20_000.0, 64, True).floor_calls >= timing.MIN_CALLS
    assert setup_budget.plan_setup(16, 160.0, 8, True) == (False, False, 0)
    assert setup_budget.plan_setup(100, 1000.0, 8, True, models=4).floor_calls == 0


def test_a_floor_that_is_not_timed_is_missing_and_another_one_is_there(
    counted: nn.Module, digits: Digits, setup_passes: Any
) -> None:
    _, short = setup_passes(counted, first(digits, 16))
    _, long = setup_passes(counted, first(digits, 40), batch_size=2, params={"steps": 3})
    assert short.table["floor_ratio"].isna().all()
    assert (long.table["floor_ratio"] > 0).all()


# ---------------------------------------------------------------------------------------- kept


@pytest.mark.parametrize("kind", [Counted, Pair])
def test_the_second_call_asks_once_whether_the_model_answers_as_before(
    kind: type[Counted], lenet: nn.Module, digits: Digits, setup_passes: Any
) -> None:
    """Of another object with the same weights, too, as each test of a session may build one."""
    data = first(digits, 16)
    spent, result = setup_passes(kind(lenet).eval(), data)
    assert spent > 2 * 16
    for _ in range(2):
        again, repeated = setup_passes(kind(lenet).eval(), data)
        assert again <= 16 + 16 / 2 + 0.5  # preflight, two layouts, the bytes of a row
        assert repeated.findings == result.findings
        pd.testing.assert_frame_equal(outcomes(repeated), outcomes(result))


def test_gradients_are_compared_with_differences_once(
    counted: nn.Module, digits: Digits, setup_passes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_calls(monkeypatch, gradient_check, "find_wrong_gradients")
    for images, expected in ((16, 1), (16, 1), (15, 2)):
        setup_passes(counted, first(digits, images))
        assert len(calls) == expected


def test_an_accelerated_model_is_built_again_without_comparing_and_attacks_alike(
    counted: nn.Module, digits: Digits, setup_passes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = count_calls(monkeypatch, accelerate, "make_probes")
    data = first(digits, 50)
    chosen = {"batch_size": 4, "keep_adversarial": True}
    _, result = setup_passes(counted, data, **chosen)
    again, repeated = setup_passes(counted, data, **chosen)
    assert len(compared) == 1
    assert again < 25
    assert torch.equal(repeated.adversarial, result.adversarial)
    with torch.no_grad():
        for parameter in counted.parameters():
            parameter.mul_(1.1)
    _, changed = setup_passes(counted, data, **chosen)
    assert len(compared) == 2
    process_cache.clear()
    _, anew = setup_passes(counted, data, **chosen)
    assert torch.equal(changed.adversarial, anew.adversarial)
    assert not torch.equal(changed.adversarial, result.adversarial)


def test_a_short_call_after_a_long_one_has_the_images_that_it_has_alone(
    counted: nn.Module, digits: Digits, setup_passes: Any
) -> None:
    chosen = {"batch_size": 4, "keep_adversarial": True}
    _, alone = setup_passes(counted, first(digits, 16), **chosen)
    process_cache.clear()
    setup_passes(counted, first(digits, 50), **chosen)
    _, after = setup_passes(counted, first(digits, 16), **chosen)
    assert torch.equal(after.adversarial, alone.adversarial)


# ----------------------------------------------------------------------------------- forgotten


def test_a_model_whose_weights_were_changed_is_checked_anew(
    counted: nn.Module, digits: Digits, setup_passes: Any
) -> None:
    data = first(digits, 16)
    before, sound = setup_passes(counted, data)
    state = {key: value.clone() for key, value in counted.state_dict().items()}
    with torch.no_grad():
        for parameter in counted.parameters():
            parameter.zero_()
    with pytest.warns(bench.RobustnessWarning):
        _, flat = setup_passes(counted, data)
    assert sound.findings == ()
    assert any("(ties)" in each for each in flat.findings)
    counted.load_state_dict(state)
    again, restored = setup_passes(counted, data)
    assert restored.findings == ()
    assert again < before


def test_a_change_that_no_fingerprint_sees_is_seen_in_the_answers(
    counted: nn.Module, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_calls(monkeypatch, checks, "find_errors")

    def findings() -> tuple[str, ...]:
        return bench.evaluate(counted, *first(digits, 16), attack="fgsm", device="cpu").findings

    assert findings() == findings() == ()
    assert len(calls) == 1
    monkeypatch.setitem(HIDDEN.scale, "logits", 1e-6)
    with pytest.warns(bench.RobustnessWarning):
        assert any("(flat)" in each for each in findings())
    assert len(calls) == 2


@pytest.mark.parametrize(("scale", "finding"), [(0.0, "(zero-gradient)"), (-1.0, "gradient")])
def test_a_change_of_the_gradient_alone_is_found_in_the_second_call(
    scale: float, finding: str, counted: nn.Module, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is a symptom of the audit, which compares gradients with differences."""

    def findings() -> tuple[str, ...]:
        return bench.evaluate(counted, *first(digits, 16), attack="fgsm", device="cpu").findings

    assert findings() == ()
    monkeypatch.setitem(HIDDEN.scale, "gradient", scale)
    with pytest.warns(bench.RobustnessWarning):
        masked = findings()
    assert any(finding in each for each in masked)
    process_cache.clear()
    with pytest.warns(bench.RobustnessWarning):
        assert findings() == masked
    monkeypatch.setitem(HIDDEN.scale, "gradient", 1.0)
    assert findings() == ()


def test_other_images_labels_and_settings_are_checked_anew(
    counted: nn.Module, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_calls(monkeypatch, checks, "find_errors")
    x, y = first(digits, 16)
    for expected, images, labels, settings in (
        (1, x, y, {}), (2, x.flip(0), y.flip(0), {}), (3, x, y.roll(1), {}),
        (4, x, y, {"allow": ["ties"]}), (4, x, y, {}),
    ):  # fmt: skip
        bench.evaluate(
            counted, images, labels, attack="fgsm", device="cpu", audit=False, **settings
        )
        assert len(calls) == expected


@pytest.mark.filterwarnings("ignore::bench.RobustnessWarning")
def test_a_model_that_answers_at_random_is_checked_each_time(
    lenet: nn.Module, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_calls(monkeypatch, checks, "find_errors")

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = lenet

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.net(x)
            return logits + 3 * torch.rand_like(logits)

    net = Noisy().eval()
    for expected in (1, 2):
        found = bench.evaluate(net, *first(digits, 16), attack="fgsm", device="cpu").findings
        assert any("(random)" in each for each in found)
        assert len(calls) == expected


def test_a_floor_is_recalled_while_it_is_recent_and_timed_again_later(
    counted: nn.Module, digits: Digits, setup_passes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = count_calls(monkeypatch, model_pool.timing, "measure_floor")
    data = first(digits, 40)
    monkeypatch.setattr(model_pool, "FLOOR_AGE", 1e9)
    for _ in range(2):
        setup_passes(counted, data, batch_size=2, params={"steps": 3})
        assert len(timed) == 1
    monkeypatch.setattr(model_pool, "FLOOR_AGE", 0)
    setup_passes(counted, data, batch_size=2, params={"steps": 3})
    assert len(timed) == 2


def test_few_facts_are_kept_and_the_longest_unused_is_dropped_first() -> None:
    for k in range(process_cache.MOST_FACTS + 1):
        process_cache.store(k, "model", k)
        assert process_cache.recall("model", 0) == 0
    assert process_cache.recall("model", 1) is None
    assert process_cache.recall("other", 2) is None
    process_cache.store(1, "", "key")
    assert process_cache.recall("", "key") is None
