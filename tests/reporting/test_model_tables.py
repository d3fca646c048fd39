"""Several runs published together: their models are told apart, and stand beside each other."""

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from reported_runs import copy_without_records

import bench
from bench.analysis import results
from bench.analysis.relabelled import relabel_models
from bench.cli import cli
from bench.core.errors import SuiteError
from bench.evaluation import metrics
from bench.evaluation.audit import symptoms
from bench.evaluation.audit.findings import Audit
from bench.reporting import run_output
from bench.reporting.formats.tables import Bold, PaperTable
from bench.reporting.site import page, paper_tables, writer
from bench.reporting.site.sources import PublishedRun, gather

SUITE = """
schema = 1
name = "small"
title = "A small run"
[data]
name = "digits"
limit = 60
[[models]]
name = "lenet"
label = "net"
weights = "WEIGHTS"
[[attacks]]
name = "fgsm"
label = "FGSM"
norm = "linf"
eps = [0.05, 0.1]
[[attacks]]
name = "pgd"
label = "PGD"
norm = "linf"
eps = [0.05, 0.1]
params = { steps = STEPS, alpha = "eps/2" }
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One suite with two sets of weights and one label, and with more steps of PGD."""
    found = {}
    for name, weights, steps in (
        ("plain", "digits", 3), ("other", "mnist-adversarial", 3), ("longer", "digits", 5),
    ):  # fmt: skip
        out = found[name] = tmp_path_factory.mktemp(name)
        text = SUITE.replace("WEIGHTS", weights).replace("STEPS", str(steps))
        (out / "small.toml").write_text(text, encoding="utf-8")
        bench.run(out / "small.toml", out=out, device="cpu")
        run_output.write_run_output(results.read_results(out), out)
    found["bare"] = copy_without_records(found["other"], tmp_path_factory.mktemp("bare") / "run")
    return found


@pytest.fixture(scope="module")
def runs(folders: dict[str, Path]) -> list[PublishedRun]:
    named = {folders["plain"]: "plain", folders["other"]: "trained"}
    return gather([*named], named)


@pytest.fixture(scope="module")
def paper(runs: list[PublishedRun]) -> dict[str, PaperTable]:
    return {table.name: table for table in paper_tables.build_tables(runs)}


def bold(table: PaperTable) -> set[tuple[int, str]]:
    """(number of the line, column) of all that is bold."""
    return {
        (k, str(column))
        for column in table.frame.columns[1:]
        for k, cell in enumerate(table.frame[column])
        if isinstance(cell, Bold)
    }


# --------------------------------------------------------------------------------- told apart


def test_models_that_share_a_label_carry_the_name_of_their_run_wherever_they_are_shown(
    runs: list[PublishedRun], paper: dict[str, PaperTable]
) -> None:
    shown = {"net, plain", "net, trained"}
    assert {row.model for run in runs for row in page.build_rows(run)} == shown
    assert set(writer.collect_rows(runs)["model"]) == shown
    assert {model for run in runs for model in run.found.audit.models} == shown
    assert {model for run in runs for model in run.found.classes["model"]} == shown
    captions = [table.caption for table in paper.values()]
    assert len(set(captions)) == len(captions)
    assert sum("of net, plain in percent" in caption for caption in captions) == 1


def test_symptoms_and_comparisons_of_a_relabelled_run_name_its_models(
    runs: list[PublishedRun],
) -> None:
    seen = symptoms.ObservedSymptom(
        name=symptoms.FLAT_LOSS.name, model="net, plain", attack="PGD", norm="linf", eps=0.1,
        count=7, n=60, evidence="seen on 7 of 60", examples=(), threshold="5 of 60",
    )  # fmt: skip
    found = runs[0].found.replace(audit=Audit(["net, plain"], [seen], []))
    pair = found.comparisons.iloc[:1].assign(compared="models", first="net, plain", second="x")
    shown = relabel_models(found.replace(comparisons=pair), {"net, plain": "a"})
    assert [each.model for each in shown.audit.symptoms] == ["a"]
    assert shown.comparisons[["first", "second"]].iloc[0].tolist() == ["a", "x"]
    attacks = relabel_models(found, {"PGD": "a"}).comparisons
    assert "PGD" in set(attacks["second"])


def test_a_label_of_one_run_alone_is_shown_as_the_suite_has_it(folders: dict[str, Path]) -> None:
    (run,) = gather([folders["plain"]])
    assert set(run.found.table["model"]) == {"net"}


def test_the_page_of_two_runs_has_no_row_twice(runs: list[PublishedRun], tmp_path: Path) -> None:
    """Without the column of the run, as a narrow screen shows it."""
    writer.publish(runs, tmp_path)
    rows = [(row.model, row.attack, row.eps.text) for run in runs for row in page.build_rows(run)]
    assert len(set(rows)) == len(rows)


def test_figures_of_a_relabelled_model_keep_their_captions(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    run = gather([folders["plain"], folders["other"]])[0]
    shutil.copytree(folders["plain"], tmp_path / "run")
    (tmp_path / "run" / "plots").mkdir(exist_ok=True)
    (tmp_path / "run" / "plots" / "examples-net-pgd.png").write_bytes(b"a picture")
    text = page.write_site([run._replace(folder=tmp_path / "run")], tmp_path / "out").read_text()
    assert "net, small under PGD" in text


def test_a_run_is_named_on_the_command_line(folders: dict[str, Path], tmp_path: Path) -> None:
    arguments = [f"{folders['plain']}=plain weights", str(folders["other"])]
    done = CliRunner().invoke(cli, ["publish", *arguments, "-o", str(tmp_path)])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert "net, plain weights" in text
    assert "net, small" in text


def test_a_name_that_is_empty_or_given_twice_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    plain, other = folders["plain"], folders["other"]
    with pytest.raises(SuiteError, match="names two runs"):
        gather([plain, other], {plain: "a", other: "a"})
    done = CliRunner().invoke(cli, ["publish", f"{plain}=", "-o", str(tmp_path)])
    assert done.exit_code == 2
    assert "expected DIR=NAME" in done.stderr


def test_a_folder_with_an_equals_sign_needs_no_name(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "eps=0.1"
    shutil.copytree(folders["plain"], folder)
    done = CliRunner().invoke(cli, ["publish", str(folder), "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output


# --------------------------------------------------------------------------- beside each other


def test_models_of_several_runs_have_a_table_of_worst_cases_and_one_of_attacks_at_each_eps(
    runs: list[PublishedRun], paper: dict[str, PaperTable]
) -> None:
    over = [table for name, table in paper.items() if name.startswith("models-")]
    assert [table.name for table in over] == [
        "models-digits-worst-case-linf", "models-digits-eps-0-05-linf", "models-digits-eps-0-1-linf"
    ]  # fmt: skip
    assert list(over[0].frame.columns) == ["model", "clean", "eps 0.05", "eps 0.1"]
    assert list(over[1].frame.columns) == ["model", "clean", "FGSM", "PGD", "worst case"]
    assert list(over[1].frame["model"]) == ["net, plain", "net, trained"]
    row = runs[1].found.worst.query("eps == 0.05").iloc[0]
    shown = f"{100 * row['robust_correct'] / 60:.1f} ["
    assert over[0].frame["eps 0.05"][1].startswith(shown)
    assert over[1].frame["worst case"][1].startswith(shown)


def test_bold_is_by_the_paired_test_corrected_over_the_table(
    runs: list[PublishedRun], paper: dict[str, PaperTable]
) -> None:
    frames = [run.found.stored.frame.query("eps == 0.05") for run in runs]
    outcomes = {
        attack: [
            metrics.robust_examples(rows).set_axis(rows["example"]).sort_index()
            for rows in (frame[frame["attack"] == attack] for frame in frames)
        ]
        for attack in ("FGSM", "PGD")
    }
    both = [metrics.worst_case([sides[k] for sides in outcomes.values()]) for k in (0, 1)]
    families = [*outcomes.values(), both]
    p_values = metrics.holm_correction([metrics.mcnemar_test(*each).p_value for each in families])
    expected = {
        (int(sides[1].sum() > sides[0].sum()), column)
        for column, sides, p in zip((*outcomes, "worst case"), families, p_values, strict=True)
        if p <= metrics.SIGNIFICANCE_LEVEL
    }
    table = paper["models-digits-eps-0-05-linf"]
    assert bold(table) == expected != set()
    assert "Holm-corrected for the 3 comparisons of this table" in " ".join(table.details)


def test_a_run_without_records_is_not_tested_and_the_note_says_so(
    folders: dict[str, Path],
) -> None:
    two = [table for table in paper_tables.build_tables(gather([folders["plain"], folders["bare"]]))
           if table.name.startswith("models-")]  # fmt: skip
    assert all(bold(table) == set() for table in two)
    assert "Nothing is bold: of small (2) only the tables are available" in " ".join(two[1].details)
    three = gather([folders["plain"], folders["other"], folders["bare"]])
    for table in paper_tables.build_tables(three):
        if table.name.startswith("models-"):
            assert bold(table) == set()
            assert "A column with a model of small (3) is not tested" in " ".join(table.details)


def test_an_attack_of_one_label_and_other_parameters_has_a_column_for_each_run(
    folders: dict[str, Path],
) -> None:
    names = {folders["plain"]: "short", folders["longer"]: "long"}
    tables = {table.name: table for table in paper_tables.build_tables(gather([*names], names))}
    table = tables["models-digits-eps-0-05-linf"]
    assert list(table.frame.columns)[2:] == ["FGSM", "PGD, short", "PGD, long", "worst case"]
    assert table.frame["PGD, long"][0] == ""
    assert [cell[-3:] for cell in table.frame["worst case"]] == ["[1]", "[2]"]
    assert "over FGSM, PGD, long; another line is over other attacks" in table.notes
    assert "PGD, long: start = uniform in the ball, steps = 5" in " ".join(table.details)
    assert {column for _, column in bold(table)} <= {"FGSM"}


def test_runs_of_other_examples_share_no_table(
    folders: dict[str, Path], runs: list[PublishedRun]
) -> None:
    data = {**runs[1].found.provenance["data"], "fingerprint": "another"}
    other = runs[1].found.replace(provenance={**runs[1].found.provenance, "data": data})
    tables = paper_tables.build_tables([runs[0], runs[1]._replace(found=other)])
    assert not any(table.name.startswith("models-") for table in tables)
