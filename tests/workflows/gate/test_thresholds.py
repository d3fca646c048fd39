"""Thresholds: how they are written, where a suite sets them, and which of several counts."""

import tomllib
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.core.errors import SuiteError
from bench.core.validation import Validator
from bench.suite import plan, reader, thresholds
from bench.suite.identity import ModelFacts

SUITE = """
schema = 1
name = "small"
[data]
name = "digits"
[[models]]
name = "lenet"
[[models]]
name = "softmax"
[[attacks]]
name = "pgd"
label = "PGD"
norm = "linf"
eps = [0.1, "8/255"]
"""


def read(extra: str) -> thresholds.Thresholds:
    check = Validator("s.toml")
    raw = {"attacks": [{"name": "pgd", "label": "PGD"}, {"name": "fgsm"}]}
    raw |= tomllib.loads(extra)
    radii = {"PGD": {0.1: "0.1", 8 / 255: "8/255"}, "fgsm": {0.2: "0.2"}}
    result = thresholds.read_thresholds(check, raw, ["lenet", "softmax"], radii)
    check.stop_if_wrong()
    return result


def problems(extra: str) -> list[str]:
    with pytest.raises(SuiteError) as caught:
        reader.parse_suite(SUITE + extra, "s.toml", Path())
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("text", "before", "n", "allowed"),
    [
        ("robust_accuracy:-1pp", 900, 1000, 10), ("robust_accuracy:-1.5pp", 900, 1000, 15),
        ("robust_accuracy:-5%", 900, 1000, 45), ("robust_accuracy:-0pp", 900, 1000, 0),
        ("violations:+3", 900, 1000, 3), ("clean_accuracy:-0.1pp", 50, 300, Fraction(3, 10)),
    ],
)  # fmt: skip
def test_a_threshold_allows_so_many_examples(
    text: str, before: int, n: int, allowed: float
) -> None:
    assert thresholds.parse_threshold(text).allowed(before, n) == allowed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("robust_acuracy:-1pp", "did you mean 'robust_accuracy'"),
        ("robust_accuracy:+1pp", "gets worse by falling: expected '-'"),
        ("violations:-1", "gets worse by rising: expected '+'"),
        ("violations:+1pp", "is given in a plain count"),
        ("examples_per_second:-20pp", "is given in %"),
        ("robust_accuracy:-1", "is given in pp or %"),
        ("robust_accuracy", "expected METRIC:CHANGE"),
        ("robust_accuracy:-1e3pp", "expected METRIC:CHANGE"),
        ("robust_accuracy:-\u0661pp", "expected METRIC:CHANGE"),
    ],
)
def test_what_is_no_threshold_is_reported_in_a_sentence(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        thresholds.parse_threshold(text)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text())
def test_any_text_is_a_threshold_or_refused(text: str) -> None:
    try:
        result = thresholds.parse_threshold(text)
    except ValueError:
        return
    assert result.metric in thresholds.METRICS


def test_the_more_special_threshold_counts() -> None:
    limits = read("""
        [gate]
        fail = ["robust_accuracy:-2pp", "clean_accuracy:-3pp"]
        [[gate.cells]]
        attack = "PGD"
        eps = "8/255"
        fail = ["robust_accuracy:-4pp"]
        [[gate.cells]]
        model = "softmax"
        fail = ["clean_accuracy:-6pp"]
    """)
    of = limits.find
    assert of("robust_accuracy", "lenet", ("fgsm",), 0.2).text == "robust_accuracy:-2pp"
    assert of("robust_accuracy", "lenet", ("PGD",), 8 / 255).text == "robust_accuracy:-4pp"
    assert of("robust_accuracy", "lenet", ("PGD",), 0.1).text == "robust_accuracy:-2pp"
    assert of("clean_accuracy", "lenet").text == "clean_accuracy:-3pp"
    assert of("clean_accuracy", "softmax").text == "clean_accuracy:-6pp"
    assert of("violations", "lenet", ("PGD",)).text == "violations:+0"
    typed = thresholds.override_thresholds(["robust_accuracy:-9pp"], limits)
    assert typed.find("robust_accuracy", "lenet", ("PGD",), 8 / 255).text == "robust_accuracy:-9pp"


def test_an_attacks_own_threshold_lies_between_the_suites_and_a_cells() -> None:
    check = Validator("s.toml")
    raw = {
        "gate": {
            "fail": ["robust_accuracy:-2pp"],
            "cells": [{"attack": "PGD, seed 1", "fail": ["robust_accuracy:-4pp"]}],
        },
        "attacks": [{"name": "pgd", "label": "PGD", "fail": ["robust_accuracy:-3pp"]}],
    }
    radii = {"PGD, seed 0": {0.1: "0.1"}, "PGD, seed 1": {0.1: "0.1"}}
    of = thresholds.read_thresholds(check, raw, ["lenet"], radii).find
    assert check.problems == []
    assert of("robust_accuracy", "lenet", ("PGD, seed 0", "PGD"), 0.1).text.endswith("-3pp")
    assert of("robust_accuracy", "lenet", ("PGD, seed 1", "PGD"), 0.1).text.endswith("-4pp")
    assert of("robust_accuracy", "lenet", ("fgsm",), 0.1).text.endswith("-2pp")


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ('[gate]\nfail = ["clean_acuracy:-1pp"]', "gate.fail: unknown metric"),
        ('[gate]\nfale = ["clean_accuracy:-1pp"]', "gate.fale: unknown key; did you mean 'fail'"),
        ("[gate]\nalpha = 0", "gate.alpha: "),
        ("[gate]\nalpha = 1.0", "gate.alpha: "),
        (
            '[gate]\nfail = ["audit:+1", "audit:+2"]',
            "gate.fail: expected one threshold for audit, got audit:+1 and audit:+2",
        ),
        ('fail = ["audit:+1"]', "attacks[0].fail: audit has one verdict for a model"),
        ('[[gate.cells]]\nmodel = "lent"\nfail = []', "did you mean 'lenet'"),
        ('[[gate.cells]]\nattack = "pgdd"\nfail = []', "no attack has the label 'pgdd'"),
        ("[[gate.cells]]\neps = 0.3\nfail = []", "expected an eps that is run (0.1, 8/255)"),
        ('[[gate.cells]]\neps = "1/0"\nfail = []', "gate.cells[0].eps: expected a number"),
        ('[[gate.cells]]\nfail = "audit:+1"', "gate.cells[0].fail: "),
        ('[[gate.cells]]\neps = 0.1\nfail = ["violations:+1"]', "a model and attack, got it for"),
        (
            "[[gate.cells]]\nqueries = 5\nfail = []",
            "the suite's budgets, which has none",
        ),
        ("[[gate.cells]]\nqueries = 0\nfail = []", "gate.cells[0].queries: "),
        ("[[gate.cells]]\n", "gate.cells[0].fail: expected a value, got nothing"),
    ],
)
def test_every_mistake_in_a_suites_gate_is_one_sentence(extra: str, expected: str) -> None:
    (only,) = problems(extra)
    assert only.startswith("s.toml: ")
    assert expected in only


def test_a_threshold_for_a_number_of_queries_is_for_one_of_the_suites_budgets() -> None:
    square = '[[attacks]]\nname = "square"\nnorm = "linf"\neps = [0.1]\nbudgets = [100, 500]\n'
    cells = '[[gate.cells]]\nqueries = {}\nfail = ["{}:-2pp"]\n'
    reader.parse_suite(
        SUITE + square + cells.format(500, "query_robust_accuracy"), "s.toml", Path()
    )
    (only,) = problems(square + cells.format(50, "query_robust_accuracy"))
    assert only.endswith(
        "gate.cells[0].queries: expected one of the suite's budgets (100, 500), got 50"
    )
    (only,) = problems(square + cells.format(100, "robust_accuracy"))
    assert "one verdict for a model and attack and eps, got it for a number of queries" in only


def test_a_gate_changes_no_cells_identity() -> None:
    facts = ModelFacts(classes=10, shape=(1, 28, 28), rows=64, model_fingerprint="m",
                       data_fingerprint="d")  # fmt: skip

    def identities(text: str) -> list[str]:
        checked = reader.parse_suite(text, "s.toml", Path())
        tasks = plan.plan_tasks(checked, {"lenet": facts, "softmax": facts})
        return [cell.identity for task in tasks for cell in task.cells]

    gate = 'fail = ["robust_accuracy:-9pp"]\n[gate]\nfail = ["audit:+9"]\nalpha = 0.05\n'
    assert identities(SUITE) == identities(SUITE + gate)


def test_a_mistake_on_the_command_line_is_reported_with_the_nearest_name() -> None:
    with pytest.raises(SuiteError, match="--fail: unknown metric 'audits'; did you mean 'audit'"):
        thresholds.override_thresholds(["audits:+1"], read(""))
