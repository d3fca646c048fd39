"""Searches scored: distances per example, medians, security curves, optimality by hand."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from cheap_runs import draw_only
from torch import Tensor, nn

import bench
from bench.analysis import min_norm
from bench.analysis.min_norm import (
    Search,
    area_under_curve,
    largest_distance,
    local_optimality,
    median_distance,
    security_curve,
)
from bench.core import registry
from bench.core.contracts.attack import AttackSpec
from bench.engine import timing
from bench.evaluation import chunk, metrics
from bench.evaluation.crafting import Examples
from bench.reporting import run_output
from bench.storage import reader, schema

INF = np.inf
SUITE = """
schema = 1
name = "near"
[data]
name = "digits"
limit = 24
[[models]]
name = "lenet"
weights = "digits"
[[attacks]]
name = "fmn"
label = "FMN"
norm = "l2"
eps = [0.5, 1, 1.5, 2, 4]
params = { steps = 25 }
[[attacks]]
name = "ddn"
label = "DDN"
norm = "l2"
eps = [1, 3]
params = { steps = 25 }
[[attacks]]
name = "torchattacks:DeepFool"
label = "DeepFool"
norm = "l2"
eps = [0, 2]
params = { steps = 5 }
[[attacks]]
name = "crash.py:ATTACK"
label = "crash"
norm = "l2"
eps = [1]
[[attacks]]
name = "pgd"
norm = "l2"
eps = [1]
params = { steps = 2 }
"""
CRASH = """
import dataclasses
from bench import Attack
@dataclasses.dataclass(frozen=True)
class Params:
    steps: int = 1
def run(model, x, y, threat, params, noise):
    raise RuntimeError("out of ideas")
ATTACK = Attack(summary="it crashes", source="here", params=Params, norms=("l2",),
                budget="minimum", run=run)
"""


def search(attack: str, far: list[float], status: str = "ok", model: str = "net") -> Search:
    reason = "" if status == "ok" else "it crashed"
    values = np.array(far if status == "ok" else [], dtype=float)
    return Search(model, attack, "bench", "l2", "untargeted", "", status, reason, values, 3)


# ---------------------------------------------------------------------------------------- by hand


def test_a_security_curve_falls_by_a_step_at_each_distance() -> None:
    eps, rho = security_curve(np.array([0.0, 2.0, 1.0, 2.0, INF]))
    assert eps.tolist() == [0.0, 1.0, 2.0]
    assert rho.tolist() == [0.8, 0.6, 0.2]


def test_the_area_is_that_under_the_steps() -> None:
    """0.8 up to 1, 0.6 up to 2 and 0.2 up to 3: 0.8 + 0.6 + 0.2."""
    values = np.array([0.0, 2.0, 1.0, 2.0, INF])
    assert area_under_curve(values, 3.0) == pytest.approx(1.6, rel=1e-15)
    eps, rho = security_curve(values)
    assert float((np.diff([*eps, 3.0]) * rho).sum()) == pytest.approx(
        area_under_curve(values, 3.0), rel=1e-15
    )


def test_optimality_is_the_share_of_what_could_be_gained() -> None:
    """Best: 0, 1, 2, 4, so eps_max 4, A* 7/4, rho(0) eps_max 3; worse: (0 + 2 + 2 + 4) / 4 = 2."""
    best, worse = np.array([0.0, 1.0, 2.0, 4.0]), np.array([0.0, 2.0, 2.0, INF])
    assert largest_distance(best) == 4.0
    assert local_optimality(best, best) == 1.0
    assert local_optimality(worse, best) == pytest.approx(1 - (2 - 1.75) / (3 - 1.75), rel=1e-15)
    assert local_optimality(np.array([0.0, INF, INF, INF]), best) == 0.0


def test_there_is_no_optimality_without_a_scale() -> None:
    nothing, same = np.array([0.0, INF, INF]), np.array([0.0, 2.0, 2.0])
    assert local_optimality(nothing, nothing) is None
    assert local_optimality(same, same) is None


def test_the_best_search_everywhere_has_optimality_1_and_a_mixed_one_less() -> None:
    found = [search("near", [0, 1, 2]), search("far", [0, 1.5, 3]), search("mixed", [0, 3, 2])]
    table = min_norm.search_table(found).set_index("attack")
    assert table.loc["near", "local_optimality"] == 1.0
    assert 0 < table.loc["far", "local_optimality"] < 1
    assert table["n"].tolist() == [3, 3, 3]
    assert table["largest_eps"].tolist() == [2.0, 2.0, 2.0]
    complement = [search("first", [0, 1, 4]), search("second", [0, 4, 2])]
    scores = min_norm.search_table(complement)["local_optimality"]  # best: 0, 1, 2; A* 1, whole 4/3
    assert scores.tolist() == pytest.approx([1.0, 0.0], abs=1e-12)


def test_a_failed_search_has_its_reason_and_no_number_and_sets_no_yardstick() -> None:
    alone = min_norm.search_table([search("near", [0, 1, 2])])
    both = min_norm.search_table([search("near", [0, 1, 2]), search("crash", [], "failed")])
    pd.testing.assert_frame_equal(both[:1], alone, check_dtype=False)
    row = both.iloc[1]
    assert (row["status"], row["reason"]) == ("failed", "it crashed")
    assert row[["n", "found", "median_distance", "local_optimality"]].isna().all()


def test_models_are_not_mixed() -> None:
    found = [search("a", [0, 1, 2]), search("a", [0, 5, 9], model="other")]
    assert min_norm.search_table(found)["local_optimality"].tolist() == [1.0, 1.0]


# ------------------------------------------------------------------------------------------ median


def test_a_median_lies_between_the_order_statistics_of_the_tables() -> None:
    """n = 20: the 6th and the 15th, with 95.86 % (David and Nagaraja 2003, section 7.1)."""
    values = np.arange(1.0, 21.0)
    np.random.default_rng(0).shuffle(values)
    assert median_distance(values) == (10.5, 6.0, 15.0)


def test_few_values_leave_the_median_open() -> None:
    assert median_distance(np.arange(5.0)) == (2.0, 0.0, INF)
    assert median_distance(np.arange(6.0)) == (2.5, 0.0, 5.0)
    with pytest.raises(ValueError, match="at least one"):
        median_distance(np.empty(0))


def test_what_was_not_found_counts_as_infinitely_far() -> None:
    values = np.array([1.0] * 4 + [INF] * 6)
    assert median_distance(values).value == INF
    assert median_distance(np.array([1.0] * 10 + [INF] * 6)).value == 1.0


@pytest.mark.parametrize("n", [15, 40, 101])
def test_the_interval_holds_the_true_median_at_least_as_often_as_it_says(n: int) -> None:
    draws = np.random.default_rng(n).exponential(size=(4000, n))
    held = [each.low <= np.log(2) <= each.high for each in map(median_distance, draws)]
    assert 0.945 < np.mean(held) < 0.99


# -------------------------------------------------------------------------------------- from a run


@pytest.fixture(scope="module", autouse=True)
def no_figures() -> Iterator[None]:
    """Of all figures, the security curves alone are drawn."""
    with draw_only("searches"):
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("near")
    (folder / "crash.py").write_text(CRASH, encoding="utf-8")
    (folder / "near.toml").write_text(SUITE, encoding="utf-8")
    found = bench.run(str(folder / "near.toml"), folder / "out", device="cpu")
    run_output.write_run_output(found, folder / "out")
    return found, folder / "out"


def test_the_security_curve_is_the_robust_accuracy_counted_at_every_eps(run: Any) -> None:
    found, _ = run
    compared = 0
    for one in found.searches:
        rows = found.table[(found.table["attack"] == one.attack) & (found.table["eps"] > 0)]
        for row in rows[rows["status"] == "ok"].to_dict("records"):
            eps, rho = security_curve(one.distances)
            at = rho[np.searchsorted(eps, row["eps"], side="right") - 1]
            assert at == row["robust_correct"] / row["n"]
            compared += 1
    assert compared == 5 + 2 + 1


def test_distances_are_those_of_the_images_and_0_where_the_net_is_wrong_anyway(run: Any) -> None:
    found, _ = run
    frame = found.stored.frame
    one = frame[(frame["attack"] == "FMN") & (frame["eps"] == 4)].sort_values("example")
    ddn = frame[(frame["attack"] == "DDN") & (frame["eps"] == 1)].sort_values("example")
    near = one["fooled"].to_numpy()
    assert np.allclose(one["distance"][near], one["l2"][near])
    assert one["distance"][~one["clean_correct"].astype(bool)].isna().all()
    far = ~ddn["fooled"].to_numpy() & ddn["attacked"].to_numpy()
    assert (ddn["distance"][far] > 1).all()  # the image itself was read there, not its distance
    assert frame[frame["attack"] == "pgd"]["distance"].isna().all()
    values = {one.attack: one.distances for one in found.searches}
    assert (values["FMN"] == 0).sum() == (~one["clean_correct"].astype(bool)).sum()


def test_the_table_ranks_what_ran_and_names_what_crashed(run: Any) -> None:
    _, folder = run
    table = pd.read_csv(folder / "distances.csv").set_index("attack")
    assert list(table.index) == ["FMN", "DDN", "DeepFool", "crash"]
    assert table["status"].tolist() == ["ok", "ok", "ok", "failed"]
    assert "out of ideas" in table.loc["crash", "reason"]
    assert np.isnan(table.loc["crash", "local_optimality"])
    assert (table["local_optimality"].dropna() <= 1).all()
    assert table.loc["FMN", "forwards_per_example"] == pytest.approx(25)
    assert table.loc["DDN", "backwards_per_example"] == pytest.approx(25)
    assert table.loc["FMN", "n"] == 24


def test_the_report_ranks_the_searches_and_draws_their_curves(run: Any) -> None:
    _, folder = run
    for page in ("report.md", "report.html"):
        text = (folder / page).read_text(encoding="utf-8")
        assert "Minimum-norm attacks" in text
        assert "out of ideas" in text
        assert "Security curves of lenet" in text
    assert (folder / "plots" / "security-lenet-l2-untargeted.svg").exists()


def test_records_made_before_distances_were_kept_are_not_scored(run: Any) -> None:
    found, _ = run
    old = found.stored._replace(frame=found.stored.frame.assign(distance=np.nan))
    searches = min_norm.collect_searches(found.plan, found.table, old)
    assert [one.status for one in searches] == ["missing", "missing", "missing", "failed"]
    assert "--fresh" in searches[0].reason


def test_a_run_that_is_not_finished_is_not_scored(run: Any) -> None:
    found, _ = run
    partial = found.table.assign(status="missing", reason="3 of 24 examples are done")
    searches = min_norm.collect_searches(found.plan, partial, found.stored)
    assert {(one.status, one.reason) for one in searches} == {("missing", partial["reason"][0])}
    assert not any(len(one.distances) for one in searches)


def test_a_find_that_the_model_does_not_confirm_is_none(digits: Any, lenet: nn.Module) -> None:
    """An attack that returns images which fool nobody, or are none, has found nothing."""
    x, y = digits[0][:6], digits[1][:6]
    found = bench.evaluate(lenet, x, y, attack="torchattacks:VANILA", norm="l2", eps=[1.0])
    assert (found.records["distance"] == INF).all()
    assert metrics.robust_examples(found.records).all()


def test_what_a_copy_alone_takes_for_fooled_is_searched_again_on_the_model_at_any_distance(
    linear: Callable[[Tensor, Tensor], nn.Module],
) -> None:
    """The copy's boundary lies nearer, and both lie beyond every eps that is asked for."""
    w, x = torch.ones(16), torch.full((3, 1, 4, 4), 0.5)
    net, copy = (
        linear(torch.stack([-w, w]), torch.tensor([8 + lead, -8 - lead])).requires_grad_(False)
        for lead in (3.2, 1.6)
    )
    ids, y, floor = torch.arange(3), torch.zeros(3, dtype=torch.int64), timing.Floor(0.0, 0.0)
    ones, attack = torch.ones(3), registry.find("attacks", "fmn")
    examples = Examples(ids, x, y, y - 1, y, ones, ones)
    spec = AttackSpec(
        name="fmn", attack=attack, params=attack.params(), norm="linf", eps=(0.01,), stop="never"
    )
    (led,) = chunk.evaluate_chunk(net, spec, examples, 3, floor, accelerated=copy).records
    (own,) = chunk.evaluate_chunk(net, spec, examples, 3, floor).records
    assert led["distance"].to_numpy() == pytest.approx(0.2, rel=0.01)  # 3.2 over 16 pixels
    assert led["distance"].equals(own["distance"])
    assert led["forwards"].to_list() == [200.0] * 3


def test_a_targeted_search_counts_those_that_could_be_attacked() -> None:
    frame = pd.DataFrame(
        {
            "goal": "targeted",
            "label": [1, 2, 3, 4],
            "target": [2, 2, 2, 2],
            "clean_correct": [True, True, False, True],
            "distance": [0.5, np.nan, np.nan, INF],
        }
    )
    assert min_norm.compute_distances(frame).tolist() == [0.5, INF]
    away = frame.assign(goal="untargeted", target=-1, distance=[0.5, 0.1, np.nan, INF])
    assert min_norm.compute_distances(away).tolist() == [0.5, 0.1, 0.0, INF]


def test_old_files_of_records_are_read_with_unknown_distances(run: Any, tmp_path: Path) -> None:
    _, folder = run
    source = next((folder / "records").glob("*fmn*.parquet"))
    table = pq.read_table(source)
    (tmp_path / "records").mkdir()
    pq.write_table(table.drop_columns(["distance"]), tmp_path / "records" / "old.parquet")
    old = reader.read_records(tmp_path).frame
    assert list(old.columns) == list(schema.COLUMNS)
    assert old["distance"].isna().all()
