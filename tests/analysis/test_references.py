"""Published figures: read from a suite, joined with what was measured, shown beside it."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import bench
from bench.analysis import references, results
from bench.core.errors import SuiteError
from bench.evaluation import metrics
from bench.reporting import run_output
from bench.reporting.plots import figures
from bench.reporting.report import reference_view
from bench.suite import reader
from bench.suite.references import ReferenceFigure

SUITE = """
schema = 1
name = "small"

[data]
name = "digits"
limit = 20

[[models]]
name = "lenet"
label = "LeNet"
weights = "digits"

[[attacks]]
name = "fgsm"
label = "FGSM"
norm = "linf"
eps = [0, "8/255", 0.2]

[[published]]
model = "LeNet"
attack = "FGSM"
source = "a paper"
eps = [0, "8/255"]
values = [0.99, 0.5]
note = "clipped to [0, 1] | likewise"
"""


def problem(old: str, new: str) -> str:
    """The one sentence that is wrong once `old` is `new`."""
    assert old in SUITE
    with pytest.raises(SuiteError) as caught:
        reader.parse_suite(SUITE.replace(old, new), "my.toml", Path())
    (only,) = caught.value.problems
    return only


def entry(**keys: Any) -> ReferenceFigure:
    given = {
        "model": "net", "attack": "FGSM", "source": "a paper", "figure": "robust_accuracy",
        "eps": (0.1,), "values": (0.5,), "note": "",
    }  # fmt: skip
    return ReferenceFigure(**{**given, **keys})


def cells() -> pd.DataFrame:
    """FGSM finished at eps 0.1 and failed at 0.2: 100 examples, 90 right before, 40 after."""
    about = {"model": "net", "attack": "FGSM", "norm": "linf", "goal": "untargeted"}
    low, high = metrics.rate(40, 100)[3:]
    done = {
        "eps": 0.1, "eps_text": "0.1", "status": "ok", "reason": "", "n": 100,
        "robust_correct": 40, "robust_accuracy": 0.4, "robust_low": low, "robust_high": high,
        "fooled": 50, "eligible": 90, "clean_correct": 90, "mean_confidence_fooled": 0.75,
        "implementation": "bench",
    }  # fmt: skip
    failed = {"eps": 0.2, "eps_text": "0.2", "status": "failed", "reason": "out of memory"}
    table = pd.DataFrame([{**about, **done}, {**about, **failed, "implementation": "bench"}])
    return table.astype({"n": "Int64", "robust_correct": "Int64", "fooled": "Int64"})


def joined(**keys: Any) -> pd.DataFrame:
    return references.compare_with_references(cells(), [entry(**keys)])


# --------------------------------------------------------------------------------------- the suite


def test_published_figures_are_read_with_eps_as_numbers_and_the_usual_figure() -> None:
    (read,) = reader.parse_suite(SUITE, "my.toml", Path()).published
    assert (read.eps, read.values) == ((0.0, 8 / 255), (0.99, 0.5))
    assert (read.model, read.attack, read.figure) == ("LeNet", "FGSM", "robust_accuracy")


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ('model = "LeNet"', 'model = "LeNett"', ".model: no model has the label 'LeNett'; did you"),
        ('attack = "FGSM"', 'attack = "FGMS"', ".attack: no attack has the label 'FGMS'; did you"),
        ("[0.99, 0.5]", "[0.99]", ".values: expected a value for each eps, got 2 eps and 1 values"),
        ("[0.99, 0.5]", "[99.0, 0.5]", ".values[0]: expected a share in [0, 1], got 99"),
        ("[0.99, 0.5]", "[nan, 0.5]", ".values[0]: expected a share in [0, 1], got nan"),
        ("[0.99, 0.5]", '["99 %", 0.5]', ".values: expected a valid number"),
        ('[0, "8/255"]\nv', "[0, 0.1]\nv", "that attack 'FGSM' runs (0, 8/255, 0.2), got 0.1"),
        ('[0, "8/255"]\nv', "[0, 0]\nv", ".eps[1]: expected each eps once, got 0 again"),
        ('[0, "8/255"]\nv', '[0, "8/"]\nv', "a fraction such as '8/255', got '8/'"),
        ("[0.99, 0.5]", '[0.9, 0.5]\nfigure = "accuracy"', ".figure: expected"),
        ('source = "a paper"', "", ".source: expected a value, got nothing"),
        ('source = "a', 'sauce = 3\nsource = "a', ".sauce: unknown key; did you mean 'source'"),
    ],
)
def test_a_mistake_in_a_published_figure_is_one_sentence(old: str, new: str, part: str) -> None:
    sentence = problem(old, new)
    assert sentence.startswith("my.toml: published[0]")
    assert part in sentence


def test_the_same_figure_of_the_same_source_twice_is_a_mistake() -> None:
    twice = "[[published]]" + SUITE.partition("[[published]]")[2]
    sentence = problem("[[published]]", f"{twice}\n[[published]]")
    assert "one entry for robust_accuracy of LeNet under FGSM from 'a paper', got 2" in sentence


def test_an_attack_or_a_model_with_a_mistake_of_its_own_is_one_problem() -> None:
    assert "attacks[0].name" in problem('name = "fgsm"', 'name = "fgsmm"')
    assert "models[0].name" in problem('name = "lenet"', 'name = "lenett"')


# --------------------------------------------------------------------------------------- the frame


@pytest.mark.parametrize(
    ("figure", "k", "n"),
    [
        ("robust_accuracy", 40, 100),
        ("clean_accuracy", 90, 100),
        ("error_rate", 60, 100),
        ("attack_success_rate", 50, 90),
    ],
)
def test_a_rate_is_counted_as_everywhere_and_has_its_wilson_interval(
    figure: str, k: int, n: int
) -> None:
    row = joined(figure=figure, values=(k / n + 0.2,)).iloc[0]
    assert metrics.Rate(*row[["k", "n", "measured", "low", "high"]]) == metrics.rate(k, n)
    assert row["difference_points"] == pytest.approx(-20)


def test_a_published_value_lies_inside_the_measured_interval_or_does_not() -> None:
    low, high = metrics.rate(40, 100)[3:]
    inside = [joined(values=(v,))["inside"].item() for v in (low - 0.01, low, high, high + 0.01)]
    assert inside == [False, True, True, False]


def test_a_mean_confidence_has_no_counts_and_no_interval() -> None:
    row = joined(figure="mean_confidence_fooled", values=(0.8,)).iloc[0]
    assert (row["measured"], row["difference_points"]) == (0.75, pytest.approx(-5))
    assert row[["k", "n", "low", "high", "inside"]].isna().all()


def test_a_success_rate_of_nothing_is_missing_not_zero() -> None:
    table = cells().assign(eligible=0, fooled=0)
    row = references.compare_with_references(table, [entry(figure="attack_success_rate")]).iloc[0]
    assert row[["k", "n", "measured", "inside"]].isna().all()


# ---------------------------------------------------------------------------------------- the view


def test_a_line_shows_measured_published_and_the_difference() -> None:
    (view,) = reference_view.tabulate_references(joined(values=(0.4375,), note="their net"), {})
    assert view.caption == "a paper: net, FGSM, L-inf, robust accuracy; their net"
    (line,) = view.rows
    assert line == ["0.1", "40.0 % [30.9, 49.8]", "40/100", "43.75 %", "-3.75 pp", "yes"]
    assert view.numeric == [True, True, True, True, True, False]


def test_a_failed_cell_is_a_dash_with_its_reason() -> None:
    (view,) = reference_view.tabulate_references(joined(eps=(0.1, 0.2), values=(0.5, 0.3)), {})
    assert view.rows[1] == ["0.2", "— [1]", "—", "30.0 %", "—", "—"]
    assert view.notes == ["failed: out of memory"]


def test_what_differs_within_a_source_has_a_column_of_its_own() -> None:
    both = [entry(), entry(figure="mean_confidence_fooled", values=(0.793,))]
    (view,) = reference_view.tabulate_references(
        references.compare_with_references(cells(), both), {}
    )
    assert view.caption == "a paper: net, FGSM, L-inf"
    assert view.columns[:2] == ["figure", "eps"]
    assert view.rows[1][:4] == ["mean confidence fooled", "0.1", "75.0 %", "—"]


# ---------------------------------------------------------------------------------------- the plot


def test_published_accuracies_are_drawn_in_grey_and_named_in_the_legend() -> None:
    published = joined(eps=(0.1, 0.2), values=(0.5, 0.3))
    figure = figures.plot_accuracy_curves(cells(), "net", "linf", published)
    line = figure.axes[0].get_lines()[-1]
    assert np.asarray(line.get_ydata()).tolist() == [50.0, 30.0]
    assert (line.get_linestyle(), line.get_color()) == (":", "0.35")
    assert figure.legends[0].get_texts()[-1].get_text() == "published: a paper"


def test_at_a_single_eps_the_published_accuracy_lies_in_the_row_of_its_attack() -> None:
    table = cells().iloc[:1]
    other = table.assign(attack="BIM", robust_correct=30)
    figure = figures.plot_accuracy_curves(pd.concat([other, table]), "net", "linf", joined())
    line = figure.axes[0].get_lines()[-1]
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert rows[int(np.asarray(line.get_ydata())[0])] == "FGSM"
    assert np.asarray(line.get_xdata()).tolist() == [50.0]


def test_figures_that_are_no_robust_accuracy_of_this_model_are_not_drawn() -> None:
    bare = figures.plot_accuracy_curves(cells(), "net", "linf")
    for published in (joined(figure="error_rate"), joined().assign(model="other")):
        figure = figures.plot_accuracy_curves(cells(), "net", "linf", published)
        assert len(figure.axes[0].get_lines()) == len(bare.axes[0].get_lines())


# ------------------------------------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beside")
    (folder / "small.toml").write_text(SUITE, encoding="utf-8")
    found = bench.run(str(folder / "small.toml"), out=folder / "out", device="cpu", batch_size=20)
    run_output.write_run_output(found, folder / "out")
    return folder / "out"


def test_a_run_keeps_the_figures_and_shows_them_beside_its_own(out: Path) -> None:
    frame = pd.read_csv(out / "published.csv")
    assert list(frame.columns) == list(references.COLUMNS)
    assert frame["published"].tolist() == [0.99, 0.5]
    html = (out / "report.html").read_text(encoding="utf-8")
    markdown = (out / "report.md").read_text(encoding="utf-8")
    for page in (html, markdown):
        before, _, after = re.split(r"(>|## )Reference figures(?=</h2>|\n)", page)
        assert "Attack by attack" in before
        assert "50.0 %" in re.split(r"(?:>|## )Figures(?=</h2>|\n)", after)[0]
    caption = "a paper: LeNet, FGSM, L-inf, robust accuracy; clipped to [0, 1]"
    assert f"{caption} | likewise" in html
    assert f"{caption} \\| likewise" in markdown


def test_a_folder_is_enough_to_read_the_figures_again(out: Path) -> None:
    written = pd.read_csv(out / "published.csv")
    read = results.read_results(out).published
    assert read["difference_points"].tolist() == pytest.approx(written["difference_points"])


def test_a_folder_from_before_there_were_published_figures_still_reads(
    out: Path, tmp_path: Path
) -> None:
    document = json.loads((out / "provenance.json").read_text(encoding="utf-8"))
    del document["published"]
    (tmp_path / "provenance.json").write_text(json.dumps(document), encoding="utf-8")
    shutil.copytree(out / "records", tmp_path / "records")
    found = results.read_results(tmp_path)
    page = run_output.write_run_output(found, tmp_path)
    assert (found.table["status"] == "ok").all()
    assert "Reference figures" not in page.read_text(encoding="utf-8")
    assert not (tmp_path / "published.csv").exists()


def test_a_suite_that_drops_its_figures_keeps_its_records_and_drops_the_file(
    out: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(out, tmp_path / "out")
    records = {path.name: path.stat().st_mtime_ns for path in (folder / "records").iterdir()}
    (tmp_path / "small.toml").write_text(SUITE.partition("[[published]]")[0], encoding="utf-8")
    found = bench.run(str(tmp_path / "small.toml"), out=folder, device="cpu", batch_size=20)
    run_output.write_run_output(found, folder)
    assert records == {
        path.name: path.stat().st_mtime_ns for path in (folder / "records").iterdir()
    }
    assert not (folder / "published.csv").exists()
