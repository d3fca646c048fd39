"""Runs published: the same bytes each time, from records or from tables, and bold where it is
earned."""

import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from reported_runs import copy_without_records, run_with_report

from bench.analysis import results, results_from_csv
from bench.cli import cli
from bench.core.errors import RecordError, SuiteError
from bench.evaluation import metrics
from bench.reporting import run_output
from bench.reporting.formats.tables import Bold, PaperTable
from bench.reporting.site import paper_tables, writer
from bench.reporting.site.sources import PublishedRun, gather
from bench.storage import manifest

SUITE = """
schema = 1
name = "p"
title = "Published"
[data]
name = "digits"
limit = 60
[[models]]
name = "lenet"
label = "LeNet"
weights = "digits"
[[models]]
name = "softmax"
label = "=line_ar & <b>"
weights = "random"
[[attacks]]
name = "pgd"
label = "PGD"
norm = "linf"
eps = [0, 0.05, "40/255"]
params = { steps = 5, alpha = "eps/2" }
[[attacks]]
name = "fgsm"
label = "FGSM"
norm = "linf"
eps = [0.05, "40/255"]
[[attacks]]
name = "pgd"
label = "aimed"
norm = "l2"
eps = [2]
goal = "targeted"
target = "next"
params = { steps = 3, alpha = 1 }
[[attacks]]
name = "broken.py:BROKEN"
label = "broken"
norm = "linf"
eps = ["40/255"]
"""
BROKEN = """
from dataclasses import dataclass
from bench import Attack

@dataclass(frozen=True, kw_only=True)
class Params:
    pass

def run(model, x, y, threat, params, noise):
    raise RuntimeError("out of luck")

BROKEN = Attack(summary="raises", source="a test", params=Params, norms=("linf",),
                goals=("untargeted",), needs="scores", run=run)
"""
FILES = {"index.html", "results.csv", "results.parquet", "tables.md", "tables.tex"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    (out / "broken.py").write_text(BROKEN, encoding="utf-8")
    return run_with_report(SUITE, out)


@pytest.fixture(scope="module")
def bare(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run as it is committed: without its records."""
    return copy_without_records(folder, tmp_path_factory.mktemp("bare") / "run", "broken.py")


@pytest.fixture(scope="module")
def run(folder: Path) -> PublishedRun:
    return gather([folder])[0]


@pytest.fixture(scope="module")
def paper(run: PublishedRun) -> dict[str, PaperTable]:
    return {table.name: table for table in paper_tables.build_tables([run])}


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def with_p_values(run: PublishedRun, p_value: float) -> PublishedRun:
    judged = run.found.comparisons.assign(p_corrected=p_value)
    return run._replace(found=run.found.replace(comparisons=judged))


def bold(table: PaperTable) -> set[tuple[str, str]]:
    """(line, column) of all that is bold."""
    lines = table.frame.iloc[:, 0]
    return {
        (str(line), str(column))
        for column in table.frame.columns[1:]
        for line, cell in zip(lines, table.frame[column], strict=True)
        if isinstance(cell, Bold)
    }


# ----------------------------------------------------------------------------------------- gathered


def test_runs_of_one_suite_get_names_of_their_own(folder: Path, bare: Path) -> None:
    assert [each.name for each in gather([folder, bare])] == ["p", "p (2)"]


def test_what_is_no_run_is_refused_in_a_sentence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match="named twice"):
        gather([folder, folder / "."])
    with pytest.raises(SuiteError, match="at least one run"):
        gather([])
    with pytest.raises(SuiteError, match="found no provenance"):
        gather([tmp_path])


def test_a_run_without_records_is_read_from_its_tables_to_the_last_bit(
    run: PublishedRun, bare: Path
) -> None:
    found = results_from_csv.read_results_from_csv(bare)
    pd.testing.assert_frame_equal(found.table, results_from_csv.cast_columns(run.found.table))
    pd.testing.assert_frame_equal(
        found.comparisons[["first", "second", "n", "p_value", "p_corrected"]],
        run.found.comparisons[["first", "second", "n", "p_value", "p_corrected"]],
    )
    assert found.worst["robust_low"].tolist() == run.found.worst["robust_low"].tolist()
    assert [str(each) for each in found.audit.symptoms] == [
        str(s) for s in run.found.audit.symptoms
    ]
    assert found.audit.unchecked == run.found.audit.unchecked


def test_it_still_knows_the_hash_of_its_records(run: PublishedRun, bare: Path) -> None:
    assert re.fullmatch("[0-9a-f]{64}", run.records_hash)
    assert gather([bare])[0].records_hash == run.records_hash


def test_a_damaged_table_is_named(bare: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(bare, out)
    (out / "table.csv").write_bytes(b"")
    with pytest.raises(RecordError, match=r"table\.csv: damaged"):
        results_from_csv.read_results_from_csv(out)


def test_a_run_of_before_there_were_comparisons_has_empty_ones_and_no_audit(
    bare: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(bare, out)
    for name in ("comparisons.csv", "worst.csv", "audit.csv", "unchecked.csv", "records.sha256"):
        (out / name).unlink()
    run = gather([out])[0]
    assert (len(run.found.comparisons), len(run.found.worst), run.records_hash) == (0, 0, "")
    assert run.found.audit.models == []
    table = paper_tables.build_tables([run])[0]
    assert bold(table) == set()
    assert "Nothing is bold: no paired tests of this run are available." in table.details
    assert "hash unknown" in table.source[1]


# ------------------------------------------------------------------------------------------- tables


def test_there_is_a_table_for_each_model_and_for_all_models_at_each_eps(
    paper: dict[str, PaperTable],
) -> None:
    assert list(paper) == [
        "p-lenet-linf", "p-line-ar-b-linf", "p-models-eps-0-05-linf", "p-models-eps-40-255-linf",
        "p-lenet-l2-targeted", "p-line-ar-b-l2-targeted", "p-classes-linf-untargeted",
        "p-classes-l2-targeted",
    ]  # fmt: skip
    assert list(paper["p-lenet-linf"].frame.columns) == ["attack", "eps 0.05", "eps 40/255"]
    assert list(paper["p-lenet-linf"].frame["attack"]) == ["PGD", "FGSM", "broken", "worst case"]
    assert list(paper["p-models-eps-40-255-linf"].frame.columns) == [
        "model", "clean", "PGD", "FGSM", "broken", "worst case",
    ]  # fmt: skip


def test_every_figure_is_that_of_the_records(
    run: PublishedRun, paper: dict[str, PaperTable]
) -> None:
    frame = run.found.stored.frame
    rows = frame[(frame["model"] == "LeNet") & (frame["attack"] == "PGD") & (frame["eps"] == 0.05)]
    rate = metrics.rate(int(metrics.robust_examples(rows).sum()), len(rows))
    expected = f"{100 * rate.value:.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
    assert paper["p-lenet-linf"].frame["eps 0.05"][0] == expected


def test_a_targeted_attack_is_shown_by_its_success(
    run: PublishedRun, paper: dict[str, PaperTable]
) -> None:
    cell = run.found.table.query("model == 'LeNet' and attack == 'aimed'").iloc[0]
    table = paper["p-lenet-l2-targeted"]
    assert table.caption.startswith("Attack success rate of LeNet")
    assert table.frame["eps 2"][0].startswith(f"{100 * cell['fooled'] / cell['eligible']:.1f} [")


def test_a_failed_cell_is_a_dash_with_its_reason(paper: dict[str, PaperTable]) -> None:
    table = paper["p-lenet-linf"]
    assert list(table.frame["eps 40/255"])[2] == "— [1]"
    assert "failed: " in table.notes[0]
    assert "out of luck" in table.notes[0]


def test_a_caption_states_data_n_norm_parameters_and_versions(
    run: PublishedRun, paper: dict[str, PaperTable]
) -> None:
    table = paper["p-lenet-linf"]
    assert "(digits, n = 60, L-inf, clean accuracy" in table.caption
    details = " ".join(table.details)
    assert "PGD: start = uniform in the ball, steps = 5, alpha = 0.5 eps" in details
    packages = run.found.provenance["sessions"][-1]["environment"]["packages"]
    assert f"torch {packages['torch']}" in details
    assert table.source[0] == f"Reproduce with: {run.command}, then bench publish."
    assert run.records_hash in table.source[1]


def test_a_table_too_wide_for_a_page_is_cut_and_says_so(run: PublishedRun) -> None:
    table = run.found.table
    wide = pd.concat(
        [table.assign(attack=table["attack"] + f" {k}") for k in range(4)], ignore_index=True
    )
    found = paper_tables.build_tables([run._replace(found=run.found.replace(table=wide))])
    parts = [paper for paper in found if paper.name.startswith("p-models-eps-0-05-linf")]
    assert [list(part.frame.columns)[:2] for part in parts] == [["model", "clean"]] * 2
    assert [len(part.frame.columns) - 2 for part in parts] == [5, 4]
    assert [part.caption[-12:] for part in parts] == ["Part 1 of 2.", "Part 2 of 2."]


# --------------------------------------------------------------------------------------------- bold


def test_where_every_difference_is_beyond_chance_only_the_best_of_a_column_is_bold(
    run: PublishedRun,
) -> None:
    found = {table.name: table for table in paper_tables.build_tables([with_p_values(run, 0.001)])}
    table = run.found.table.query("model == 'LeNet' and eps == 0.05")
    strongest = table.loc[table["robust_correct"].astype(int).idxmin(), "attack"]
    assert bold(found["p-lenet-linf"]) >= {(strongest, "eps 0.05")}
    assert len([place for place in bold(found["p-lenet-linf"]) if place[1] == "eps 0.05"]) == 1
    most = {model for model, _ in bold(found["p-models-eps-0-05-linf"])}
    assert most == {"LeNet"}


def test_where_nothing_can_be_told_apart_nothing_is_bold(run: PublishedRun) -> None:
    assert all(
        bold(table) == set() for table in paper_tables.build_tables([with_p_values(run, 0.051)])
    )


def test_what_cannot_be_told_from_the_best_is_bold_with_it(run: PublishedRun) -> None:
    third = run.found.table.query("attack == 'FGSM'").assign(attack="weak")
    third["robust_correct"] += 10
    both = run.found.table, third.assign(cell="none")
    judged = run.found.comparisons.query("compared == 'attacks'").assign(p_corrected=0.5)
    apart = judged.replace({"first": {"PGD": "weak"}}).assign(p_corrected=0.01)
    again = judged.replace({"second": {"FGSM": "weak"}}).assign(p_corrected=0.01)
    found = run.found.replace(
        table=pd.concat(both, ignore_index=True), comparisons=pd.concat([judged, apart, again])
    )
    table = paper_tables.build_tables([run._replace(found=found)])[0]
    column = {line for line, column in bold(table) if column == "eps 0.05"}
    assert column == {"PGD", "FGSM"}


def test_the_worst_case_of_models_that_met_other_attacks_is_never_bold(run: PublishedRun) -> None:
    table = run.found.table
    lost = (table["model"] == "LeNet") & (table["attack"] == "FGSM") & (table["eps"] == 0.05)
    found = run.found.replace(table=table[~lost])
    for paper in paper_tables.build_tables([with_p_values(run._replace(found=found), 0.001)]):
        if paper.name == "p-models-eps-0-05-linf":
            assert "worst case" not in {column for _, column in bold(paper)}
            assert "PGD" in {column for _, column in bold(paper)}


# -------------------------------------------------------------------------------------------- files


def test_the_command_writes_every_format_and_the_page(folder: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["publish", str(folder), "-o", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert content(tmp_path).keys() >= FILES
    inputs = re.findall(r"\\input\{(.*?)\}", (tmp_path / "tables.tex").read_text(encoding="utf-8"))
    assert len(inputs) == 8
    assert all((tmp_path / name).is_file() for name in inputs)
    assert "2 of 14 cells have no number" in done.stderr


def test_the_same_runs_give_the_same_bytes_and_no_path(
    folder: Path, tmp_path: Path, run: PublishedRun
) -> None:
    for name in ("a", "b"):
        writer.publish([run], tmp_path / name)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert not any(str(tmp_path).encode() in text for text in content(tmp_path / "a").values())


def test_a_run_that_lost_its_records_is_published_as_it_was(
    folder: Path, bare: Path, tmp_path: Path
) -> None:
    for name, source in (("whole", folder), ("bare", bare)):
        writer.publish(gather([source]), tmp_path / name)
    whole, rest = content(tmp_path / "whole"), content(tmp_path / "bare")
    assert whole.keys() == rest.keys()
    assert [name for name in whole if whole[name] != rest[name]] == []


def test_rows_for_programs_are_those_of_the_table_with_their_types(
    run: PublishedRun, tmp_path: Path
) -> None:
    writer.publish([run], tmp_path)
    parquet = pq.read_table(tmp_path / "results.parquet").to_pandas()
    csv = pd.read_csv(tmp_path / "results.csv", keep_default_na=False)
    assert list(parquet.columns) == list(csv.columns)
    assert (
        parquet["robust_accuracy"].tolist()[:3] == run.found.table["robust_accuracy"].tolist()[:3]
    )
    assert set(parquet["records_sha256"]) == {run.records_hash}
    assert set(csv["model"]) == {"LeNet", "'=line_ar & <b>"}
    assert set(parquet["model"]) == {"LeNet", "=line_ar & <b>"}


def test_labels_are_escaped_in_markdown(run: PublishedRun, tmp_path: Path) -> None:
    writer.publish([run], tmp_path)
    text = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert "<b>" not in text
    assert r"\=line\_ar &amp; &lt;b&gt;" in text


@pytest.mark.skipif(shutil.which("latexmk") is None, reason="latexmk is not installed")
def test_the_tables_of_a_run_compile(run: PublishedRun, tmp_path: Path) -> None:
    writer.publish([run], tmp_path)
    command = ["latexmk", "-pdf", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    log = (tmp_path / "tables.log").read_text(encoding="utf-8", errors="replace")
    assert re.findall("Overfull|LaTeX Warning|Missing character", log) == []


# -------------------------------------------------------------------------------- what is committed

ROOT = Path(__file__).parents[2] / "results"
QUICKSTART, PUBLISHED = ROOT / "quickstart", ROOT / "published"
NUMERIC = ("pandas", "numpy", "scipy", "pyarrow")
"""Libraries on which the last digit of a float, or the form of a file, may depend."""


def same_libraries() -> bool:
    """Whether the committed results were made with the libraries of this environment."""
    packages = manifest.read_manifest(QUICKSTART)[0]["sessions"][-1]["environment"]["packages"]
    return all(metadata.version(name) == packages[name] for name in NUMERIC)


def near(text: bytes, other: bytes) -> bool:
    """Whether two texts are the same but for the last digits of long fractions."""
    long = re.compile(r"\d+\.\d{7,}(?:e-?\d+)?")
    one, two = text.decode(), other.decode()
    pairs = zip(long.findall(one), long.findall(two), strict=True)
    alike = all(float(a) == pytest.approx(float(b), rel=1e-9) for a, b in pairs)
    return alike and long.sub("", one) == long.sub("", two)


def test_the_published_results_are_made_again_byte_for_byte(tmp_path: Path) -> None:
    writer.publish(gather([ROOT / name for name in published_runs()]), tmp_path)
    there, again = content(PUBLISHED), content(tmp_path)
    assert there.keys() == again.keys()
    if not same_libraries():
        parquet = (there.pop("results.parquet"), again.pop("results.parquet"))
        assert all(parquet)
        assert near(there.pop("results.csv"), again.pop("results.csv"))
    assert [name for name in there if there[name] != again[name]] == []


def published_runs() -> list[str]:
    """The runs of results/published, by the names of their folders."""
    frame = pq.read_table(PUBLISHED / "results.parquet", columns=["run"]).to_pandas()
    return list(dict.fromkeys(frame["run"]))


@pytest.mark.skipif(
    not any((QUICKSTART / "records").glob("*.parquet")), reason="the records are not kept here"
)
def test_the_tables_of_the_quickstart_are_made_again_from_its_records(tmp_path: Path) -> None:
    shutil.copytree(QUICKSTART / "records", tmp_path / "records")
    shutil.copy(QUICKSTART / "provenance.json", tmp_path)
    run_output.write_run_output(results.read_results(tmp_path), tmp_path)
    for name in ("table.csv", "worst.csv", "comparisons.csv", "audit.csv", "unchecked.csv",
                 "records.sha256"):  # fmt: skip
        there, again = ((place / name).read_bytes() for place in (QUICKSTART, tmp_path))
        assert there == again if same_libraries() else near(there, again), name
    # Which pixels differ is known from the images, which are not kept: all else is the same.
    checks = [pd.read_csv(place / "crosscheck.csv") for place in (QUICKSTART, tmp_path)]
    pixels = ["largest_pixel_difference", "pixels_equal", "pixels_compared", "verdict", "cause"]
    pd.testing.assert_frame_equal(*(check.drop(columns=pixels) for check in checks))
