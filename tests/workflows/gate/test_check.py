"""`bench baseline` and `bench check` on real runs: what turns red, what does not, exit codes."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from bench import cli
from bench.analysis import snapshot
from bench.evaluation import metrics
from bench.execution import options, runner
from bench.models.published_weights import WEIGHTS
from bench.storage import records
from bench.storage.reader import read_records
from bench.suite import reader

SUITE = """
schema = 1
name = "gated"
[data]
name = "digits"
limit = 100
[[models]]
name = "lenet"
label = "LeNet"
weights = "digits"
[[attacks]]
name = "fgsm"
label = "FGSM"
norm = "linf"
eps = [0, 0.05, 0.1]
[[attacks]]
name = "pgd"
label = "PGD"
norm = "linf"
eps = [0.05, 0.1]
params = { steps = 5, alpha = "eps/2" }
"""


class Said(NamedTuple):
    code: int
    out: str
    err: str


Type = Callable[..., Said]


@pytest.fixture
def type_(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Type:
    """Runs `bench` with the words given, outside of any CI."""
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "250")

    def typed(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Said(ended.value.code, said.out, said.err)

    return typed


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a net whose weights were spoilt by noise."""
    folder = tmp_path_factory.mktemp("gate")
    generator = torch.Generator().manual_seed(0)
    weights = load_file(WEIGHTS / "lenet-digits.safetensors")
    spoilt = {
        name: each + 0.7 * each.std() * torch.randn(each.shape, generator=generator)
        for name, each in weights.items()
    }
    save_file(spoilt, folder / "spoilt.safetensors")
    return folder


@pytest.fixture(scope="module")
def run(home: Path) -> Callable[..., Path]:
    """(name, old, new) -> the folder of a run of SUITE with `old` replaced; run but once."""

    def run_changed(name: str, old: str = "", new: str = "") -> Path:
        folder = home / name
        if not folder.exists():
            assert old in SUITE
            read = reader.parse_suite(SUITE.replace(old, new, 1) if old else SUITE, name, home)
            runner.run_suite(read, folder, options.RunOptions(device="cpu", copied=False))
        return folder

    return run_changed


@pytest.fixture
def kept(home: Path, run: Callable[..., Path], type_: Type) -> Path:
    """The baseline: the suite as it is."""
    path = home / "baseline.json"
    if not path.exists():
        said = type_("baseline", run("first"), "-o", path)
        assert said.code == 0, said.err
        assert "4 cells, 100 examples" in said.out
    return path


def flipped(before: Path, after: Path, attack: str, eps: float) -> list[int]:
    """Ids of the examples that only the run `before` holds as robust."""
    sides = []
    for folder in (before, after):
        frame = read_records(folder).frame
        own = frame[(frame["attack"] == attack) & (frame["eps"] == eps)]
        sides.append(pd.Series(metrics.robust_examples(own).to_numpy(), index=own["example"]))
    return list(sides[0].index[sides[0] & ~sides[1]])


# ------------------------------------------------------------------------------------ in real runs


def test_a_run_held_against_itself_is_all_well(
    type_: Type, kept: Path, run: Callable[..., Path]
) -> None:
    said = type_("check", run("first"), "--baseline", kept)
    assert (said.code, said.err) == (0, "")
    assert "passed: 8 accuracies compared" in said.out
    assert "No loss of fewer than 10 of 100 examples (10.0 pp)" in said.out


def test_another_seed_is_no_regression(type_: Type, kept: Path, run: Callable[..., Path]) -> None:
    other = run("seeded", 'name = "gated"', 'name = "gated"\nseed = 7')
    said = type_("check", other, "--baseline", kept)
    assert said.code == 0
    assert "the seed was 0 and is 7" in said.out


def test_spoilt_weights_are_red_and_the_examples_that_flipped_are_named(
    type_: Type, kept: Path, run: Callable[..., Path], home: Path
) -> None:
    spoilt = run("spoilt", 'weights = "digits"', 'weights = "spoilt.safetensors"')
    said = type_("check", spoilt, "--baseline", kept, "--junit", home / "j.xml")
    assert said.code == 1
    assert "note: LeNet is another model than the baseline's" in said.out
    ids = flipped(home / "first", spoilt, "FGSM", 0.05)
    assert len(ids) >= 9
    cases = ElementTree.parse(home / "j.xml").iter("testcase")
    (case,) = [c for c in cases if c.get("name") == "robust accuracy: LeNet, FGSM, eps 0.05"]
    failure = case.find("failure")
    assert failure is not None
    assert failure.text is not None
    assert f"lost: {' '.join(map(str, ids))}" in failure.text
    assert f"to accept this run: bench baseline {spoilt} -o {kept}" in said.out


def test_the_way_back_is_an_improvement_with_the_command_that_accepts_it(
    type_: Type, run: Callable[..., Path], tmp_path: Path
) -> None:
    spoilt = run("spoilt", 'weights = "digits"', 'weights = "spoilt.safetensors"')
    path = tmp_path / "poor.json"
    assert type_("baseline", spoilt, "-o", path).code == 0
    said = type_("check", run("first"), "--baseline", path)
    assert said.code == 0
    assert "improved" in said.out
    assert f"to accept this run: bench baseline {run('first')} -o {path}" in said.out


def test_a_threshold_on_the_command_line_overrides_the_suites(
    type_: Type, kept: Path, run: Callable[..., Path]
) -> None:
    spoilt = run("spoilt", 'weights = "digits"', 'weights = "spoilt.safetensors"')
    lenient = ["--fail", "robust_accuracy:-100pp", "--fail", "clean_accuracy:-100pp"]
    lenient += ["--fail", "audit:+9"]
    assert type_("check", spoilt, "--baseline", kept, *lenient).code == 0


def test_a_suites_own_thresholds_come_with_its_run(
    type_: Type, kept: Path, run: Callable[..., Path], home: Path
) -> None:
    spoilt = run("spoilt", 'weights = "digits"', 'weights = "spoilt.safetensors"')
    lenient = home / "lenient"
    if not lenient.exists():
        shutil.copytree(spoilt, lenient)
    path = lenient / "provenance.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["suite"]["text"] += (
        '\n[gate]\nfail = ["robust_accuracy:-100pp", "clean_accuracy:-100pp", "audit:+9"]\n'
    )
    path.write_text(json.dumps(document), encoding="utf-8")
    assert type_("check", lenient, "--baseline", kept).code == 0


def test_the_worst_class_is_compared_where_a_threshold_asks_for_it(
    type_: Type, kept: Path, run: Callable[..., Path]
) -> None:
    spoilt = run("spoilt", 'weights = "digits"', 'weights = "spoilt.safetensors"')
    said = type_("check", spoilt, "--baseline", kept)
    assert "worst class" not in said.out
    said = type_("check", spoilt, "--baseline", kept, "--fail", "worst_class_robust_accuracy:-1pp")
    lines = [line for line in said.out.splitlines() if "is the worst" in line]
    assert len(lines) == 6  # two attacks at two eps, and the worst case at each
    frame = read_records(spoilt).frame
    worst = frame[(frame["attack"] == "FGSM") & (frame["eps"] == 0.05)]
    labels = worst["label"].to_numpy()
    sizes = pd.Series(labels).value_counts()
    assert sizes.min() < 10 <= sizes.max()  # so that some of the ten classes are left out
    robust = metrics.robust_examples(worst).groupby(labels).mean()[sizes.index[sizes >= 10]]
    (line,) = [line for line in lines if "LeNet, FGSM, eps 0.05" in line]
    lowest = robust.index[robust == robust.min()]
    assert any(f"class {index} is the worst" in line for index in lowest)
    assert f"{sum(sizes < 10)} class" in said.out


def test_a_changed_parameter_is_3_and_named(
    type_: Type, kept: Path, run: Callable[..., Path]
) -> None:
    changed = run("changed", "steps = 5", "steps = 6")
    said = type_("check", changed, "--baseline", kept)
    assert said.code == 3
    assert "other settings: params.steps 5 → 6" in said.out
    assert "COULD NOT COMPARE: 4 accuracies compared, 2 not compared" in said.out


def test_a_run_that_was_cut_short_is_3_and_no_baseline(
    type_: Type, kept: Path, run: Callable[..., Path], tmp_path: Path
) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(run("first"), cut)
    for path in (cut / "records").glob("*pgd*.parquet"):
        path.unlink()
    said = type_("check", cut, "--baseline", kept)
    assert said.code == 3
    assert "0 of 100 examples are done" in said.out
    refused = type_("baseline", cut, "-o", tmp_path / "b.json")
    assert refused.code == 2
    assert "2 of 5 cells are not finished" in refused.err
    assert not (tmp_path / "b.json").exists()


def test_a_cell_that_failed_is_1(
    type_: Type, kept: Path, run: Callable[..., Path], tmp_path: Path
) -> None:
    failed = tmp_path / "failed"
    shutil.copytree(run("first"), failed)
    for cell in json.loads((failed / "provenance.json").read_text(encoding="utf-8"))["cells"]:
        if cell["attack"] == "PGD":
            records.write_failure(failed, cell["identity"], "ValueError: no way")
    said = type_("check", failed, "--baseline", kept)
    assert said.code == 1
    assert said.out.count("ValueError: no way") == 1
    assert "LeNet, PGD, eps 0.05, 0.1" in said.out
    assert "FAILED: 4 accuracies compared, 2 of 9 verdicts red" in said.out
    assert "not audited, as no cell is finished: PGD" in said.out
    assert "accept this run" not in said.out


def test_a_run_with_a_cell_that_failed_is_a_baseline_only_if_that_is_asked_for(
    type_: Type, run: Callable[..., Path], tmp_path: Path
) -> None:
    failed = tmp_path / "failed"
    shutil.copytree(run("first"), failed)
    for cell in json.loads((failed / "provenance.json").read_text(encoding="utf-8"))["cells"]:
        if cell["attack"] == "PGD":
            records.write_failure(failed, cell["identity"], "ValueError: no way")
    path = tmp_path / "b.json"
    refused = type_("baseline", failed, "-o", path)
    assert (refused.code, path.exists()) == (2, False)
    (line,) = refused.err.splitlines()
    assert "2 of 5 cells are not finished, the first of them LeNet · PGD at eps 0.05" in line
    assert "(ValueError: no way); run the suite again" in line
    accepted = type_("baseline", failed, "-o", path, "--partial")
    assert accepted.code == 0
    assert accepted.err.count("ValueError: no way") == 2
    said = type_("check", run("first"), "--baseline", path)
    assert said.code == 0
    assert "the baseline has it failed" in said.out


def test_a_loss_that_is_not_proven_is_in_the_headline_and_red_with_strict(
    type_: Type, kept: Path, run: Callable[..., Path], tmp_path: Path
) -> None:
    """In the baseline, 4 examples more are robust in one cell."""
    lowered = tmp_path / "lowered.json"
    document = json.loads(kept.read_text(encoding="utf-8"))
    n = document["data"]["n"]
    model, cell = document["models"][0], document["cells"][0]
    clean = snapshot.unpack_outcomes(model["clean"], n)
    robust = snapshot.unpack_outcomes(cell["robust"], n)
    more = clean[clean & ~robust].index[:4]
    robust[more] = True
    cell["robust"], cell["robust_correct"] = snapshot.pack_outcomes(robust), int(robust.sum())
    lowered.write_text(json.dumps(document), encoding="utf-8")
    said = type_("check", run("first"), "--baseline", lowered)
    assert said.code == 0
    assert "LOST, NOT PROVEN: 8 accuracies compared, 1 lost more than allowed, not proven" in (
        said.out
    )
    assert "examples would prove it" in said.out
    assert type_("check", run("first"), "--baseline", lowered, "--strict").code == 1
    assert type_("check", run("first"), "--baseline", kept, "--strict").code == 0


@pytest.mark.parametrize("words", [["none.json"], ["broken.json"], ["b.json", "--fail", "x"]])
def test_a_check_that_cannot_be_made_says_so_in_every_output(
    type_: Type,
    kept: Path,
    run: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.json").write_text("{", encoding="utf-8")
    shutil.copy(kept, "b.json")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "step.md")
    outputs = ["--junit", "j.xml", "--sarif", "s.json"]
    said = type_("check", run("first"), "--baseline", *words, *outputs)
    assert said.code == 2
    problem = said.err.removeprefix("bench: ").rstrip("\n")
    assert "\n" not in problem
    assert said.out.startswith("::error title=bench check::")
    (error,) = ElementTree.parse("j.xml").iter("error")
    assert error.get("message") == error.text == problem
    (invocation,) = json.loads(Path("s.json").read_text(encoding="utf-8"))["runs"][0]["invocations"]
    assert invocation["executionSuccessful"] is False
    assert invocation["toolExecutionNotifications"][0]["message"]["text"] == problem
    summary = Path("step.md").read_text(encoding="utf-8")
    assert summary.startswith("### ⚠️ Robustness could not be checked")
    assert problem.split(":")[0] in summary


def test_a_run_made_before_settings_were_kept_cannot_be_compared(
    type_: Type, kept: Path, run: Callable[..., Path], tmp_path: Path
) -> None:
    old = tmp_path / "old"
    shutil.copytree(run("first"), old)
    document = json.loads((old / "provenance.json").read_text(encoding="utf-8"))
    for cell in document["cells"]:
        del cell["settings"]
    (old / "provenance.json").write_text(json.dumps(document), encoding="utf-8")
    said = type_("check", old, "--baseline", kept)
    assert said.code == 3
    assert "→ unknown" in said.out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["check", "first", "--baseline", "none.json"], "expected a baseline, found no such file"),
        (["check", "first", "--baseline", "broken.json"], "damaged baseline"),
        (["check", "nowhere", "--baseline", "baseline.json"], "expected the folder of a run"),
        (["check", "first"], "--baseline"),
        (
            ["check", "first", "--baseline", "baseline.json", "--fail", "robust:-1pp"],
            "--fail: unkn",
        ),
        (["check", "first", "--baseline", "baseline.json", "--junit", "first/x/"], "x"),
        (["baseline", "first"], "-o"),
        (["baseline", "nowhere", "-o", "b.json"], "expected the folder of a run"),
        (["baseline", "first", "-o", "baseline.json/b.json"], "could not be written"),
    ],
)
def test_a_mistake_is_2_and_one_sentence(
    type_: Type,
    kept: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(home)
    Path("broken.json").write_text("{", encoding="utf-8")
    Path("first/x").mkdir(exist_ok=True)
    said = type_(*words)
    assert said.code == 2
    assert expected in said.err
    assert "Traceback" not in said.out + said.err


def test_under_actions_the_summary_is_added_to_and_errors_are_annotated(
    type_: Type,
    kept: Path,
    run: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoilt = run("spoilt", 'weights = "digits"', 'weights = "spoilt.safetensors"')
    summary = tmp_path / "summary.md"
    summary.write_text("before\n", encoding="utf-8")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    said = type_("check", spoilt, "--baseline", kept)
    errors = [line for line in said.out.splitlines() if line.startswith("::error ")]
    assert any("title=robust accuracy regressed::LeNet, FGSM, eps 0.05: " in e for e in errors)
    page = summary.read_text(encoding="utf-8")
    assert page.startswith("before\n### 🔴 Robustness of gated")
    assert type_("check", spoilt, "--baseline", kept, "--summary", tmp_path / "own.md").code == 1
    assert summary.read_text(encoding="utf-8") == page
    assert (tmp_path / "own.md").read_text(encoding="utf-8") == page.removeprefix("before\n")
