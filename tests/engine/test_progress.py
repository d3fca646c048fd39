"""Passes are counted where the loop looks at its rows anyway, and forecast by their survival."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bench.engine import progress, stream
from bench.engine.progress import Progress, count_unit, find_counter
from bench.engine.survival import SurvivalForecast

Attacked = Callable[..., stream.StreamResult]


@pytest.fixture
def every_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports are due always."""
    monkeypatch.setattr(progress, "PERIOD", 0.0)


def follow(lives: Tensor, made: int, most: int) -> float:
    """Ratio of the steps that are forecast to those that items make, all at the same age."""
    forecast = SurvivalForecast([0.1], most, nested=False, stops=True)
    over = lives <= made
    none = torch.zeros_like(lives)
    forecast.add_finished(none[over], lives[over], torch.ones_like(over)[over])
    left = forecast.count_left(none[~over], torch.full_like(lives[~over], made))
    return left / float((lives[~over] - made).sum())


def test_of_a_robust_net_the_survivors_need_all_their_steps() -> None:
    lives = torch.tensor([3, 4, 5, 6, 8] * 10 + [500] * 50)
    assert 1 / 1.5 < follow(lives, 100, 500) < 1.5


def test_what_waits_is_expected_to_need_what_those_before_it_did() -> None:
    numbers = (torch.arange(200) + 0.5) / 200
    lives = (-40 * torch.log(numbers)).ceil().long().clamp(1, 500)  # a mean life of 40 steps
    forecast = SurvivalForecast([0.1], 500, nested=False, stops=True)
    none = torch.zeros_like(lives)
    forecast.add_finished(none, lives, lives < 500)
    assert forecast.count_left(none, none) == pytest.approx(float(lives.sum()), rel=0.1)


def test_where_every_step_is_made_the_forecast_is_exact() -> None:
    forecast = SurvivalForecast([0.1, 0.2], 40, nested=False, stops=False)
    eps, age = torch.tensor([0, 0, 1]), torch.tensor([7, 39, 20])
    assert forecast.count_left(eps, age) == pytest.approx(33 + 1 + 20)


def test_a_larger_eps_of_which_nothing_is_known_is_expected_to_break_more() -> None:
    forecast = SurvivalForecast([0.1, 0.2], 40, nested=False, stops=True)
    life = torch.tensor([2] * 10 + [40] * 10)
    forecast.add_finished(torch.zeros(20, dtype=torch.int64), life, life < 40)
    start = torch.zeros(1, dtype=torch.int64)
    same, larger = forecast.count_left(start, start), forecast.count_left(start + 1, start)
    assert same == pytest.approx(21, rel=0.2)
    assert larger == pytest.approx(2 + 38 / 16, rel=0.3)


def test_under_nested_eps_what_survives_goes_on_at_the_next() -> None:
    alone = SurvivalForecast([0.1, 0.2], 10, nested=False, stops=False)
    chained = SurvivalForecast([0.1, 0.2], 10, nested=True, stops=False)
    at = torch.tensor([0]), torch.tensor([4])
    assert alone.count_left(*at) == pytest.approx(6)
    assert chained.count_left(*at) == pytest.approx(16)


@pytest.mark.usefixtures("every_look")
@pytest.mark.parametrize(
    ("attack", "params", "settings"),
    [
        ("pgd", {"steps": 6, "restarts": 2}, {}),
        ("pgd", {"steps": 6}, {"stop": "never"}),
        ("pgd", {"steps": 6}, {"sweep": "nested"}),
        ("square", {"steps": 12}, {}),
        ("fgsm", {}, {}),
    ],
)
def test_a_stream_reports_the_passes_that_it_counts_and_none_left_at_the_end(
    attack: str, params: dict[str, int], settings: dict[str, str], lenet: nn.Module,
    digits: tuple[Tensor, Tensor], attacked: Attacked,
) -> None:  # fmt: skip
    x, y = digits[0][:12], digits[1][:12]
    reports: list[Progress] = []
    given = {"params": params, "rows": 8, **settings}
    alone = attacked(lenet.requires_grad_(False), x, y, attack, (0.05, 0.2), **given)
    with count_unit(reports.append):
        result = attacked(lenet, x, y, attack, (0.05, 0.2), **given)
    made = [report.passes for report in reports]
    assert made == sorted(made)
    if params.get("restarts", 1) == 1 and settings.get("sweep") != "nested":  # no look between
        whole = float((result.forwards + result.backwards).sum()) / 2
        assert made[-1] == pytest.approx(whole)
    assert reports[-1].passes_left == pytest.approx(0.0)
    assert all(torch.equal(one, other) for one, other in zip(alone[:3], result[:3], strict=True))


def test_nothing_is_counted_where_nobody_listens() -> None:
    assert find_counter() is None
    with count_unit(None):
        assert find_counter() is None


def test_reports_come_once_a_period_and_the_pace_begins_with_the_first_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress, "clock", lambda: now[0])
    reports: list[Progress] = []
    with count_unit(reports.append):
        counter = find_counter()
        assert counter is not None
        now[0] = 100.0  # models are loaded and compared
        counter.begin()
        for _ in range(100):
            now[0] += 0.1
            counter.add(5)
            if counter.is_due():
                counter.report(500 - counter.passes)
    assert 15 <= len(reports) <= 20
    assert reports[-1].seconds_left == pytest.approx((500 - reports[-1].passes) / 50)
