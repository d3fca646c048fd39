"""Pairs of attacks and of models on the same examples, and several seeds of one attack."""

from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.analysis import pairwise, results
from bench.core.errors import SuiteError
from bench.evaluation import metrics
from bench.execution import options, runner
from bench.reporting import run_output
from bench.reporting.plots import figures, transfer_matrix
from bench.reporting.report import pairwise_view
from bench.suite import plan, reader

HEAD = """
schema = 1
name = "c"
[data]
name = "digits"
limit = 80
[[models]]
name = "lenet"
label = "LeNet"
weights = "digits"
[[models]]
name = "softmax"
label = "linear"
weights = "random"
"""
FGSM = """
[[attacks]]
name = "fgsm"
label = "FGSM"
norm = "linf"
eps = [0, 0.05, "0.1"]
"""
PGD = """
[[attacks]]
name = "pgd"
label = "PGD"
norm = "linf"
eps = [0.05, 0.1]
params = { steps = 3, alpha = "eps/2" }
"""
SEEDS = PGD + "seeds = 3\n"


def entries(text: str) -> list[Any]:
    return list(reader.parse_suite(HEAD + text, "c.toml", Path()).attacks)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    read = reader.parse_suite(HEAD + SEEDS + FGSM, "c.toml", Path())
    runner.run_suite(read, out, options.RunOptions(device="cpu"))
    return out


@pytest.fixture(scope="module")
def found(folder: Path) -> results.RunResults:
    return results.read_results(folder)


def series(text: str) -> "pd.Series[bool]":
    """ "x.x" is yes, no, yes."""
    return pd.Series([mark == "x" for mark in text])


def pair(first: str, second: str, compared: str = "attacks") -> pairwise.OutcomePair:
    return pairwise.OutcomePair(compared, {"eps": 0.1}, "A", "B", (series(first), series(second)))


# ------------------------------------------------------------------------------------------- pairs


def test_every_two_attacks_on_a_model_and_every_two_models_under_an_attack_are_compared(
    found: results.RunResults,
) -> None:
    frame = found.comparisons
    attacks = frame[frame["compared"] == "attacks"]
    labels = ["PGD, seed 0", "PGD, seed 1", "PGD, seed 2", "FGSM"]
    for _, group in attacks.groupby(["model", "eps"]):
        assert [*zip(group["first"], group["second"], strict=True)] == [*combinations(labels, 2)]
    models = frame[frame["compared"] == "models"]
    assert set(zip(models["first"], models["second"], strict=True)) == {("LeNet", "linear")}
    assert set(models["attack"]) == {*labels, pairwise.WORST_CASE}
    # 2 models x 2 eps x 6 pairs of attacks; 2 eps x (4 attacks and their worst case)
    assert (len(attacks), len(models)) == (24, 10)


def test_an_eps_is_one_however_it_is_written_and_nothing_is_compared_at_0(
    found: results.RunResults,
) -> None:
    assert set(found.comparisons["eps"]) == {0.05, 0.1}
    fgsm = found.comparisons.query("second == 'FGSM' and eps == 0.1")
    assert len(fgsm) == 6  # written 0.1 by one attack and "0.1" by the other


def test_attacks_are_compared_by_what_each_breaks_and_models_by_where_each_is_robust(
    found: results.RunResults,
) -> None:
    records = found.stored.frame
    cells = found.table.set_index(["model", "attack", "eps"])["cell"]

    def stands(model: str, attack: str) -> Any:
        rows = records[records["cell"] == cells[model, attack, 0.1]]
        return (rows["clean_correct"] & (rows["adv_pred"] == rows["label"])).to_numpy()

    fgsm, pgd = stands("LeNet", "FGSM"), stands("LeNet", "PGD, seed 0")
    row = found.comparisons.query(
        "model == 'LeNet' and first == 'PGD, seed 0' and second == 'FGSM' and eps == 0.1"
    ).iloc[0]
    assert (row["only_first"], row["only_second"]) == ((fgsm & ~pgd).sum(), (pgd & ~fgsm).sum())
    assert row["only_first"] > 0
    linear = stands("linear", "FGSM")
    row = found.comparisons.query("compared == 'models' and attack == 'FGSM' and eps == 0.1")
    assert row["only_first"].item() == (fgsm & ~linear).sum() > 3


def test_models_are_compared_by_the_worst_case_over_attacks_that_both_met(
    found: results.RunResults,
) -> None:
    worst = found.comparisons.query(f"attack == '{pairwise.WORST_CASE}' and eps == 0.05").iloc[0]
    kept = found.worst.query("eps == 0.05").set_index("model")["robust_correct"]
    assert worst["only_first"] - worst["only_second"] == kept["LeNet"] - kept["linear"]


def test_a_cell_without_a_number_is_compared_with_nothing(found: results.RunResults) -> None:
    table = found.table.copy()
    table.loc[table["attack"] != "FGSM", "status"] = "failed"
    outcomes = {cell: series("x.") for cell in table["cell"]}
    frame = pairwise.compare_pairs(table, outcomes, outcomes)
    assert frame["compared"].tolist() == ["models"] * 2
    assert pairwise.compare_pairs(table[:0], {}, {}).empty


def test_the_p_values_of_a_run_are_corrected_as_one_family(found: results.RunResults) -> None:
    frame = found.comparisons
    assert frame["p_corrected"].tolist() == metrics.holm_correction(frame["p_value"].tolist())
    assert (frame["p_corrected"] >= frame["p_value"]).all()
    assert frame["p_corrected"].min() == pytest.approx(len(frame) * frame["p_value"].min())


def test_a_targeted_attack_breaks_an_example_by_reaching_its_target() -> None:
    records = pd.DataFrame({"fooled": [True, False], "label": 0, "adv_pred": [7, 3]})
    assert metrics.fooled_examples(records).tolist() == [
        True,
        False,
    ]  # 3 is wrong, but not the target


# --------------------------------------------------------------------------------------- sentences


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            pair("x" * 31 + "." * 4, "." * 31 + "x" * 4),
            "A breaks 31 examples that B does not, B 4 that A does not (p < 0.0001, corrected)",
        ),
        (
            pair("......", "xxxxxx"),  # the side with more stands first
            "B breaks 6 examples that A does not, A 0 that B does not (p = 0.031, corrected)",
        ),
        (
            pair("x..", "...", "models"),
            "A is robust on 1 example where B is not, B on 0 where A is not (p = 1, corrected)",
        ),
    ],
)
def test_a_pair_is_one_sentence(given: pairwise.OutcomePair, sentence: str) -> None:
    assert pairwise.tabulate_pairs([given])["sentence"].item() == sentence


def test_a_report_shows_the_differences_beyond_chance_and_counts_the_rest() -> None:
    place = {"model": "net", "attack": None, "norm": "linf", "goal": "untargeted", "target": ""}
    names = {0.1: "0.1", 0.2: "0.2"}
    given = [
        pairwise.OutcomePair("attacks", {**place, "eps": eps}, first, "C", (series(a), series(b)))
        for eps in names
        for first, a, b in (("A", "x" * 9, "." * 9), ("B", "xx.", "..x"))
        if (first, eps) != ("A", 0.2)
    ]
    given.append(given[0]._replace(place={**place, "eps": 0.2}, outcomes=(series("x"),) * 2))
    frame = pairwise.tabulate_pairs(given)
    sentence = (
        "4 comparisons: 1 with a significant difference (5 %, corrected for all 4), 3 without."
    )
    assert pairwise_view.summarize_comparisons(frame) == sentence
    (view,) = pairwise_view.tabulate_differences(frame, names)
    assert view.columns == ["first", "second", "eps 0.1", "eps 0.2"]
    assert view.rows == [["A", "C", "9 : 0", "n.s."]]  # B against C differs nowhere: no line
    listed = pairwise_view.list_differences(frame, names)
    assert listed is not None
    assert [row[-1] for row in listed.rows] == [frame["sentence"].iloc[0]]


def test_where_nothing_could_be_compared_the_report_says_what_it_takes() -> None:
    frame = pairwise.tabulate_pairs([])
    assert pairwise_view.summarize_comparisons(frame).startswith(
        "Nothing was compared: it takes two attacks"
    )
    assert (
        pairwise_view.tabulate_differences(frame, {}),
        pairwise_view.list_differences(frame, {}),
    ) == ([], None)


# ------------------------------------------------------------------------------------------- seeds


def test_a_table_with_seeds_stands_for_one_entry_each() -> None:
    found = entries(PGD + "seeds = [7, 2]\n")
    assert [(e.label, e.family, e.seed) for e in found] == [
        ("PGD, seed 7", "PGD", 7), ("PGD, seed 2", "PGD", 2),
    ]  # fmt: skip
    assert [e.seed for e in entries(SEEDS)] == [0, 1, 2]
    assert [(e.label, e.seed) for e in entries(PGD)] == [("PGD", None)]


def test_seeds_multiply_with_sources_and_values() -> None:
    text = SEEDS.replace("seeds = 3", "seeds = [0, 4]\nvary = { restarts = [1, 2] }")
    found = entries(text + 'source = ["LeNet"]\n')
    assert [e.label for e in found] == [
        f"PGD from LeNet, restarts {value}, seed {seed}" for value in (1, 2) for seed in (0, 4)
    ]


def test_a_seed_of_the_attack_takes_the_place_of_the_suites() -> None:
    read = reader.parse_suite("seed = 5\n" + HEAD + SEEDS + FGSM, "c.toml", Path())
    tasks = plan.plan_tasks(read, plan.collect_declared_facts(read))[:4]
    assert [task.spec.seed for task in tasks] == [0, 1, 2, 5]
    assert [task.cells[0].seed for task in tasks] == [0, 1, 2, None]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (FGSM + "seeds = 2\n", "'fgsm' draws nothing at random, so seeds make no difference"),
        (PGD + "seeds = [1, 1]\n", "a list with each seed once, got"),
        (PGD + "seeds = []\n", "expected how many seeds, or a list"),
        (PGD + "seeds = 0\n", r"attacks\[0\].seeds: expected at least 1, got 0"),
    ],
)
def test_seeds_that_make_no_sense_are_the_users_mistake(text: str, sentence: str) -> None:
    with pytest.raises(SuiteError, match=sentence):
        entries(text)


def test_the_spread_over_seeds_is_stated_with_what_all_of_them_leave(
    found: results.RunResults,
) -> None:
    cells = found.table.query("model == 'LeNet' and eps == 0.1 and attack != 'FGSM'")
    counts = sorted(int(k) for k in cells["robust_correct"])
    row = found.seeds.query("model == 'LeNet' and eps == 0.1").iloc[0]
    assert [row["least"], row["median"], row["most"]] == counts
    assert (row["attack"], row["seeds"], row["n"]) == ("PGD", "0 1 2", 80)
    records = found.stored.frame
    rows = records[records["cell"].isin(cells["cell"])]
    unbroken = (rows["adv_pred"] == rows["label"]) & rows["clean_correct"]
    union = int(unbroken.groupby(rows["example"]).all().sum())
    assert row["union"] == union <= counts[0]
    assert (row["union_low"], row["union_high"]) == metrics.rate(union, 80)[3:]
    assert (row["most_low"], row["most_high"]) == metrics.rate(counts[2], 80)[3:]


def test_seeds_draw_differently_and_an_attack_without_them_has_no_spread(
    found: results.RunResults,
) -> None:
    records = found.stored.frame.set_index("example")
    cells = found.table.query("model == 'LeNet' and eps == 0.05 and attack != 'FGSM'")["cell"]
    sizes = [tuple(records.loc[records["cell"] == cell, "l2"]) for cell in cells]
    assert len(set(sizes)) == 3
    assert set(found.seeds["attack"]) == {"PGD"}


def test_each_seed_is_a_matrix_of_its_own_where_examples_are_crafted_elsewhere() -> None:
    read = reader.parse_suite(HEAD + SEEDS + 'source = "each"\n', "c.toml", Path())
    rows = [
        {"model": task.model, "attack": task.entry.label, "source": task.entry.source,
         "family": "PGD", "varied": "", "value": None, "seed": task.entry.seed, "norm": "linf",
         "goal": "untargeted", "eps": 0.1, "eps_text": "0.1"}
        for task in plan.plan_tasks(read, plan.collect_declared_facts(read))
    ]  # fmt: skip
    matrices = transfer_matrix.build_matrices(pd.DataFrame(rows))
    assert [matrix.attack for matrix in matrices] == [f"PGD, seed {seed}" for seed in range(3)]
    assert [len(matrix.cells) for matrix in matrices] == [4, 4, 4]


def test_a_runs_folder_has_both_tables_and_its_page_both_sections(
    found: results.RunResults, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        figures, "draw_figures", lambda *_, **__: []
    )  # seconds of figures, tested elsewhere
    page = run_output.write_run_output(found, folder).read_text(encoding="utf-8")
    assert ">Over seeds</h2>" in page
    assert "LeNet is robust on " in page
    assert len(pd.read_csv(folder / "comparisons.csv")) == len(found.comparisons)
    assert len(pd.read_csv(folder / "seeds.csv")) == len(found.seeds) == 4
    run_output.write_run_output(found.replace(seeds=found.seeds[:0]), folder)
    assert not (folder / "seeds.csv").exists()
