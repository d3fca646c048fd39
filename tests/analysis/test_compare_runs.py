"""Two runs side by side: paired by example, refused where that has no meaning, and never silent
about what was left out."""

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

from bench.analysis import compare_runs, results
from bench.cli import cli
from bench.evaluation import metrics
from bench.execution import options, runner
from bench.reporting.plots import dumbbell
from bench.reporting.report import run_comparison
from bench.suite import reader

SUITE = """
schema = 1
name = "c"
seed = {seed}
[data]
name = "digits"
limit = {limit}
[[models]]
name = "{model}"
label = "net"
weights = "{weights}"
[[attacks]]
name = "pgd"
label = "PGD"
norm = "linf"
eps = [0, 0.05, {eps}]
params = {{ steps = {steps}, alpha = "eps/2" }}
[[attacks]]
name = "fgsm"
label = "FGSM"
norm = "linf"
eps = [0.1]
"""
USUAL = {"seed": 0, "limit": 60, "model": "lenet", "weights": "digits", "eps": 0.1, "steps": 2}


def ran(folder: Path, **settings: Any) -> results.RunResults:
    read = reader.parse_suite(SUITE.format(**USUAL | settings), "c.toml", Path())
    runner.run_suite(read, folder, options.RunOptions(device="cpu"))
    return results.read_results(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    first, second = (tmp_path_factory.mktemp(name) for name in ("first", "second"))
    ran(first)
    ran(second, seed=1, steps=8)
    return first, second


@pytest.fixture(scope="module")
def runs(folders: tuple[Path, Path]) -> tuple[results.RunResults, results.RunResults]:
    return results.read_results(folders[0]), results.read_results(folders[1])


@pytest.fixture(scope="module")
def found(runs: tuple[results.RunResults, results.RunResults]) -> compare_runs.RunComparison:
    return compare_runs.compare_runs(*runs)


def places(table: pd.DataFrame) -> list[tuple[str, float]]:
    return list(zip(table["attack"], table["eps"], strict=True))


def robust(run: results.RunResults, attack: str, eps: float) -> "pd.Series[bool]":
    frame = run.stored.frame.query("attack == @attack and eps == @eps")
    return metrics.robust_examples(frame.set_index("example"))


# ----------------------------------------------------------------------------------------- compared


def test_every_shared_cell_has_a_row_and_the_clean_images_and_the_worst_case_too(
    found: compare_runs.RunComparison,
) -> None:
    assert places(found.table) == [
        ("no attack", 0.0), ("PGD", 0.05), ("PGD", 0.1), ("FGSM", 0.1), ("worst case", 0.1),
    ]  # fmt: skip
    assert (found.table["n"] == 60).all()
    assert (found.refusal, found.apart) == ("", [])


def test_the_counts_are_those_of_the_paired_examples(
    found: compare_runs.RunComparison, runs: tuple[results.RunResults, results.RunResults]
) -> None:
    row = found.table[found.table["attack"] == "PGD"].iloc[1]
    a, b = (robust(run, "PGD", 0.1) for run in runs)
    assert (row["first_robust"], row["second_robust"]) == (a.sum(), b.sum())
    assert (row["only_first"], row["only_second"]) == ((a & ~b).sum(), (b & ~a).sum())
    assert row["p_value"] == metrics.mcnemar_test(a, b).p_value
    assert found.table["p_corrected"].tolist() == metrics.holm_correction(
        list(found.table["p_value"])
    )
    assert row["only_first"] > 5  # more steps break more: the comparison has something to show


def test_the_worst_case_is_over_the_attacks_that_both_runs_have(
    found: compare_runs.RunComparison, runs: tuple[results.RunResults, results.RunResults]
) -> None:
    row = found.table[found.table["attack"] == "worst case"].iloc[0]
    both = [robust(runs[0], attack, 0.1) for attack in ("PGD", "FGSM")]
    assert row["first_robust"] == metrics.worst_case(both).sum()


def test_each_example_that_changed_is_kept_with_what_the_model_said(
    found: compare_runs.RunComparison, runs: tuple[results.RunResults, results.RunResults]
) -> None:
    a, b = (robust(run, "PGD", 0.1) for run in runs)
    changed = found.changed.query("attack == 'PGD' and eps == 0.1")
    assert set(changed.query("change == 'lost'")["example"]) == set(a.index[a & ~b])
    assert set(changed.query("change == 'gained'")["example"]) == set(a.index[b & ~a])
    lost = changed.query("change == 'lost'")
    assert (lost["first_adv_pred"] == lost["label"]).all()
    assert (lost["second_adv_pred"] != lost["label"]).all()


def test_a_run_beside_itself_has_no_change(
    runs: tuple[results.RunResults, results.RunResults],
) -> None:
    found = compare_runs.compare_runs(runs[0], runs[0])
    assert (found.table["p_corrected"] == 1).all()
    assert (len(found.changed), found.notes) == (0, [])
    assert "neither in 5" in run_comparison.summarize_changes(found)


def test_swapped_runs_swap_their_sides(
    found: compare_runs.RunComparison, runs: tuple[results.RunResults, results.RunResults]
) -> None:
    back = compare_runs.compare_runs(*runs[::-1]).table
    assert back["only_first"].tolist() == found.table["only_second"].tolist()
    assert back["p_corrected"].tolist() == found.table["p_corrected"].tolist()


def test_what_else_differs_is_said(found: compare_runs.RunComparison) -> None:
    assert found.notes == [
        "the seed is 0 in A, 1 in B", "PGD is another attack: steps 2 in A, 8 in B",
    ]  # fmt: skip


def test_another_version_of_a_model_and_another_device_are_compared_and_named(
    runs: tuple[results.RunResults, results.RunResults], tmp_path: Path
) -> None:
    other = ran(tmp_path, weights="random")
    other.provenance["sessions"][-1]["environment"]["device"] = "cuda:0"
    found = compare_runs.compare_runs(runs[0], other)
    clean = found.table.iloc[0]
    assert clean["attack"] == "no attack"
    assert clean["only_first"] > 40  # untrained weights know nothing
    assert "net is another model in B: other weights or another architecture" in found.notes
    assert "device: cpu in A, cuda:0 in B" in found.notes


def test_of_a_longer_run_the_examples_that_both_have_are_compared(
    runs: tuple[results.RunResults, results.RunResults], tmp_path: Path
) -> None:
    longer = ran(tmp_path, limit=90)
    found = compare_runs.compare_runs(runs[0], longer)
    assert (found.table["n"] == 60).all()
    assert (found.table["only_first"] + found.table["only_second"] == 0).all()
    assert any("A has 60 examples, B 90" in note for note in found.notes)


# ------------------------------------------------------------------------------------ not compared


def test_a_cell_of_one_run_alone_and_one_that_failed_are_named(
    runs: tuple[results.RunResults, results.RunResults], tmp_path: Path
) -> None:
    other = ran(tmp_path, eps='"40/255"')
    other.table.loc[other.table["attack"] == "FGSM", ["status", "reason"]] = "failed", "no luck"
    found = compare_runs.compare_runs(runs[0], other)
    assert places(found.table) == [("no attack", 0.0), ("PGD", 0.05)]
    assert found.apart == [
        "net · PGD at eps 0.1: only A has it",
        "net · FGSM at eps 0.1: failed in B (no luck)",
        "net · PGD at eps 40/255: only B has it",
    ]


def test_other_data_are_refused(runs: tuple[results.RunResults, results.RunResults]) -> None:
    first, second = runs
    data = second.provenance["data"] | {"fingerprint": "other"}
    named = second.replace(provenance=second.provenance | {"data": data | {"name": "mnist"}})
    content = second.replace(provenance=second.provenance | {"data": data})
    frame = second.stored.frame.assign(label=second.stored.frame["label"] + 1)
    relabelled = content.replace(
        provenance=second.provenance | {"data": data | {"n": 61}},
        stored=second.stored._replace(frame=frame),
    )
    assert "60 of mnist" in compare_runs.compare_runs(first, named).refusal
    assert "of other content" in compare_runs.compare_runs(first, content).refusal
    assert "of other content" in compare_runs.compare_runs(first, relabelled).refusal


def test_runs_with_nothing_in_common_are_refused(
    runs: tuple[results.RunResults, results.RunResults],
) -> None:
    renamed = runs[1].replace(
        plan=[dataclasses.replace(cell, model="another") for cell in runs[1].plan]
    )
    found = compare_runs.compare_runs(runs[0], renamed)
    assert found.refusal.startswith("no finished cell in common; A has 4 ok of net")
    assert found.table.empty


# ----------------------------------------------------------------------------------- what is shown


def test_the_command_prints_the_table_and_writes_it(
    folders: tuple[Path, Path], found: compare_runs.RunComparison, tmp_path: Path
) -> None:
    words = ["compare", *map(str, folders), "-o", str(tmp_path)]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    assert "steps 2 in A, 8 in B" in done.output
    assert {path.name for path in tmp_path.iterdir()} == {
        "compare.csv", "changed.csv", "compare.md", "dumbbell.png", "dumbbell.svg",
    }  # fmt: skip
    kept = pd.read_csv(tmp_path / "compare.csv")
    assert kept["only_first"].tolist() == found.table["only_first"].tolist()
    assert len(pd.read_csv(tmp_path / "changed.csv")) == len(found.changed)


def test_the_command_ends_with_3_where_nothing_can_be_compared(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "provenance.json").write_bytes((folders[0] / "provenance.json").read_bytes())
    words = ["compare", str(folders[0]), str(tmp_path)]
    done = CliRunner().invoke(cli, words, standalone_mode=False)
    assert done.return_value == 3
    assert "B holds no records of examples" in done.stderr
    assert CliRunner().invoke(cli, ["compare", str(folders[0]), "nowhere"]).exit_code == 2


def test_the_dumbbell_has_two_joined_dots_for_each_cell(found: compare_runs.RunComparison) -> None:
    axes = dumbbell.plot_dumbbell(found.table, "A", "B").axes[0]
    dots = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]
    expected = found.table[["first_robust", "second_robust"]].to_numpy().ravel() / 60 * 100
    assert dots == pytest.approx(list(expected))
    thick = [line for line in axes.lines if line.get_linewidth() > 2]
    assert len(thick) == (found.table["p_corrected"] <= 0.05).sum() > 0
    assert [text.get_text() for text in axes.get_yticklabels()][-1] == "worst case, eps 0.1"


def test_of_many_cells_the_dumbbell_shows_those_that_differ_most(
    found: compare_runs.RunComparison,
) -> None:
    many = pd.concat([found.table] * 20, ignore_index=True)
    axes = dumbbell.plot_dumbbell(many, "A", "B").axes[0]
    assert len(axes.get_yticks()) == dumbbell.MAX_ROWS
    assert "60 of 100" in axes.get_title(loc="left")
    shown = [line for line in axes.lines if line.get_linewidth() > 2]
    assert len(shown) == (many["p_corrected"] <= 0.05).sum()


def test_a_comparison_of_nothing_draws_a_sentence() -> None:
    nothing = pd.DataFrame(columns=list(compare_runs.COLUMNS))
    assert dumbbell.plot_dumbbell(nothing, "A", "B").texts[0].get_text() == "No cell was compared"
