"""Which examples and images the grids of a run show."""

from itertools import pairwise

import numpy as np
import pytest

import bench
from bench.reporting.example_images import load_examples
from bench.reporting.plots.example_grids import AttackedExample

SUITE = """
schema = 1
name = "grids"
data = { name = "digits", limit = 24 }
models = [{ name = "lenet", weights = "digits" }]

[[attacks]]
name = "fmn"
norm = "linf"
eps = [0.001, 0.05, 1]
params.steps = 10

[[attacks]]
name = "fgsm"
norm = "linf"
eps = [0.05]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> bench.SuiteResults:
    folder = tmp_path_factory.mktemp("grids")
    (folder / "s.toml").write_text(SUITE, encoding="utf-8")
    return bench.run(str(folder / "s.toml"), folder / "out", device="cpu")


@pytest.fixture(scope="module")
def rows(run: bench.SuiteResults) -> dict[tuple[str, float], list[AttackedExample]]:
    shown: dict[tuple[str, float], list[AttackedExample]] = {}
    for example in load_examples(run, run.folder):
        shown.setdefault((example.attack, example.eps), []).append(example)
    return shown


Rows = dict[tuple[str, float], list[AttackedExample]]


def test_fooled_examples_come_first_in_their_order(rows: Rows) -> None:
    row = rows["fgsm", 0.05]
    kept = [example.fooled for example in row]
    assert kept == sorted(kept, reverse=True)
    assert kept[0]
    assert not kept[-1]
    for one, other in pairwise(row):
        assert one.fooled != other.fooled or one.example < other.example


def test_an_attack_shows_the_same_examples_at_every_eps(rows: Rows) -> None:
    ids = [[each.example for each in rows["fmn", eps]] for eps in (0.001, 0.05, 1.0)]
    assert ids[0] == ids[1] == ids[2]


def test_no_image_is_farther_than_its_eps(rows: Rows) -> None:
    far = 0
    for (_, eps), row in rows.items():
        for example in row:
            change = float(np.abs(example.adversarial - example.clean).max())
            assert change <= eps * 1.001
            if not example.fooled and eps < 0.01:
                far += 1
                assert change == 0
                assert example.after == example.before
    assert far == 5  # the search found each of them beyond this eps


def test_counts_are_those_of_all_records(run: bench.SuiteResults, rows: Rows) -> None:
    for (attack, eps), row in rows.items():
        table = run.table
        cell = table[(table["attack"] == attack) & (table["eps"] == eps)].iloc[0]
        attacked = cell["clean_correct"]
        for example in row:
            assert example.n_attacked == attacked
            assert example.n_fooled == attacked - cell["robust_correct"]
