"""Ours against a reference: verdicts and causes, and one real pair."""

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import bench
from bench.analysis import crosscheck
from bench.analysis.crosscheck import CrosscheckPair
from bench.suite.plan import Cell

SUITE = """
schema = 1
name = "pair"
stop = "never"
[data]
name = "digits"
limit = 40
[[models]]
name = "lenet"
weights = "digits"
[[attacks]]
name = "fgsm"
label = "ours"
norm = "linf"
eps = [0, 0.1, 0.2]
[[attacks]]
name = "torchattacks:FGSM"
label = "theirs"
norm = "linf"
eps = [0.1, 0.2]
[[crosschecks]]
ours = "ours"
reference = "theirs"
"""


def cell(identity: str, stop: str = "never", **traits: str) -> Cell:
    return Cell(
        model="net", attack=identity, implementation="bench", norm="linf", eps=0.1, eps_text="0.1",
        goal="untargeted", target="", stop=stop, identity=identity, reason="", passes=1.0,
        gradients=1.0, traits=traits, caveats=(),
    )  # fmt: skip


def compared(
    mine: list[bool],
    theirs: list[bool],
    sides: CrosscheckPair | None = None,
    apart: float = 0.0,
    confidence: float = 0.9,
) -> dict[str, Any]:
    sides = sides or CrosscheckPair(cell("a"), cell("b"))
    numbers = {"robust_correct": 1, "robust_accuracy": 0.5, "robust_low": 0.1, "robust_high": 0.9}
    table = pd.DataFrame(
        [{"cell": c, "status": "ok", "seconds": s, **numbers} for c, s in (("a", 1.0), ("b", 4.0))]
    )
    images = {"a": torch.zeros(2, 1, 2, 2), "b": torch.zeros(2, 1, 2, 2)}
    images["b"][0, 0, 0, 0] = apart
    sure = pd.Series([confidence] * len(mine))
    found = crosscheck.compare_implementations(
        [sides],
        table,
        {"a": pd.Series(mine), "b": pd.Series(theirs)},
        {"a": sure, "b": sure},
        images,
    )
    return {str(key): value for key, value in found.iloc[0].to_dict().items()}


def test_equal_outcomes_and_pixels_are_identical_and_need_no_cause() -> None:
    found = compared([True, False, True], [True, False, True])
    assert (found["verdict"], found["cause"], found["differ"]) == ("identical", "", 0)
    assert (found["largest_pixel_difference"], found["pixels_equal"]) == (0.0, 1.0)
    assert found["time_ratio"] == 0.25


def test_other_pixels_are_not_identical_even_with_equal_outcomes() -> None:
    found = compared([True, False], [True, False], apart=0.5)
    assert (found["verdict"], found["largest_pixel_difference"]) == ("equal within noise", 0.5)
    assert found["pixels_equal"] == pytest.approx(7 / 8)


def test_a_few_differences_are_noise_and_many_one_sided_ones_are_not() -> None:
    few = compared([True] * 20, [False] * 5 + [True] * 15)  # p = 2 / 2^5
    many = compared([True] * 20, [False] * 6 + [True] * 14)  # p = 2 / 2^6
    assert (few["verdict"], few["p_value"]) == ("equal within noise", pytest.approx(0.0625))
    assert (many["verdict"], many["p_value"]) == ("different", pytest.approx(0.03125))
    assert (many["only_reference_broke"], many["only_ours_broke"]) == (6, 0)
    assert many["differ_ids"] == "0 1 2 3 4 5"


def test_many_pairs_are_corrected_as_all_other_comparisons_are() -> None:
    # p of 2/2^6 and 2/2^7 over two pairs: times two, the first is above 5 %; by Holm both are below
    sides = [CrosscheckPair(cell("a"), cell("b")), CrosscheckPair(cell("c"), cell("d"))]
    numbers = {"robust_correct": 1, "robust_accuracy": 0.5, "robust_low": 0.1, "robust_high": 0.9}
    table = pd.DataFrame([{"cell": c, "status": "ok", "seconds": 1.0, **numbers} for c in "abcd"])
    robust = {c: pd.Series([True] * 20) for c in "ac"}
    for name, lost in (("b", 6), ("d", 7)):
        robust[name] = pd.Series([False] * lost + [True] * (20 - lost))
    sure = dict.fromkeys("abcd", pd.Series([0.9] * 20))
    found = crosscheck.compare_implementations(sides, table, robust, sure, {})
    assert found["verdict"].tolist() == ["different", "different"]


def test_balanced_differences_are_noise() -> None:
    found = compared([True, False] * 10, [False, True] * 10)
    assert (found["differ"], found["verdict"]) == (20, "equal within noise")


@pytest.mark.parametrize(
    ("mine", "theirs", "cause"),
    [
        (
            {"start": "clean"},
            {"start": "uniform in the ball"},
            "other start: clean against uniform",
        ),
        ({"alpha": "0.01"}, {"alpha": "0.02"}, "other step size: 0.01 against 0.02"),
        ({"steps": "1"}, {"steps": "2"}, "other number of steps: 1 against 2"),
        ({"momentum": "sum"}, {"momentum": "mean"}, "other definition of momentum: sum"),
        ({"stop": "never"}, {"stop": "first-success"}, "other stop rule: never against first"),
        ({"start": "uniform"}, {"start": "uniform"}, "other random draws for the same start"),
        ({"start": "clean"}, {"start": "clean"}, "rounding: the same definition"),
    ],
)
def test_the_cause_is_what_the_two_declare_differently(
    mine: dict[str, str], theirs: dict[str, str], cause: str
) -> None:
    reference = dataclasses.replace(cell("b", stop="the library's own"), traits=theirs)
    found = compared([True] * 9, [False] * 9, CrosscheckPair(cell("a", **mine), reference))
    assert found["cause"].startswith(cause)


def test_saturated_examples_are_named_as_a_cause() -> None:
    found = compared([True] * 9, [False] * 9, confidence=1.0)
    assert "saturation: 9 of the differing examples" in found["cause"]
    assert "saturation" not in compared([True] * 9, [False] * 9)["cause"]


def test_a_long_list_of_ids_is_cut() -> None:
    shown = compared([True] * 30, [False] * 30)["differ_ids"]
    assert shown.endswith(" 19 ...")


def test_only_eps_that_both_sides_have_are_paired() -> None:
    plan = [cell("a"), cell("b")]
    assert crosscheck.pair_cells(plan, [("a", "b")]) == [CrosscheckPair(plan[0], plan[1])]
    assert crosscheck.pair_cells(plan[:1], [("a", "b")]) == []


def test_our_fgsm_and_the_librarys_are_identical_on_real_digits(tmp_path: Path) -> None:
    (tmp_path / "pair.toml").write_text(SUITE, encoding="utf-8")
    path = str(tmp_path / "pair.toml")
    found = bench.run(path, out=tmp_path / "out", batch_size=16, device="cpu").crosschecks
    assert found["eps"].tolist() == [0.1, 0.2]
    assert found["verdict"].tolist() == ["identical", "identical"]
    assert found["largest_pixel_difference"].max() <= crosscheck.SAME_PIXEL
    assert found["pixels_compared"].tolist() == [40, 40]
    assert (found["ours_robust_correct"] < 39).all()
