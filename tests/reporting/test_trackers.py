"""Finished runs logged to trackers: every number of table.csv, whole files, and no run lost."""

import importlib.util
import sys
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner, Result

from bench.analysis import results
from bench.cli import cli
from bench.core.errors import SuiteError
from bench.reporting import trackers
from bench.reporting.trackers import RunSummary, Tracker, TrackerTarget, wandb

SUITE = """
schema = 1
name = "tracked"
[data]
name = "digits"
limit = 20
[[models]]
name = "lenet"
weights = "digits"
[[attacks]]
name = "fgsm"
norm = "linf"
eps = [0.05, "8/255"]
[[attacks]]
name = "mifgsm"
label = "MI, 3 steps"
norm = "linf"
eps = ["8/255"]
params = { steps = 3 }
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("suite") / "tracked.toml"
    file.write_text(SUITE, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def out(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, with its report."""
    folder = tmp_path_factory.mktemp("out")
    words = ["run", str(path), "--device", "cpu", "--out", str(folder)]
    assert CliRunner().invoke(cli, words, standalone_mode=False).return_value == 0
    return folder


def report(out: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, ["report", str(out), *words], standalone_mode=False)


def missing(package: str) -> pytest.MarkDecorator:
    absent = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(absent, reason=f"the package {package} is not installed")


def test_what_is_logged_are_the_numbers_of_the_table_and_of_the_worst_case(out: Path) -> None:
    found = results.read_results(out)
    summary = trackers.summarize_run(found, out)
    points = {(p.metric, p.cell, p.eps_text): p.value for p in summary.points}
    for row in found.table.to_dict("records"):
        cell = f"{row['model']} {row['attack']} {row['norm']} {row['goal']}"
        for figure in ("n", "robust_correct", "robust_accuracy", "robust_low", "robust_high"):
            assert points[figure, cell, row["eps_text"]] == row[figure]
    assert ("robust_correct", "lenet worst case linf untargeted", "8/255") in points
    assert {path.name for path in summary.files} == set(trackers.LOGGED_FILES)
    assert summary.params["examples"] == "20"
    assert summary.name == f"tracked-{(out / 'records.sha256').read_text(encoding='utf-8')[:12]}"


def test_a_number_that_is_none_is_not_logged(out: Path) -> None:
    found = results.read_results(out)
    found.table.loc[0, "attack_success_rate"] = float("nan")
    found.table.loc[1, "status"] = "failed"
    points = trackers.summarize_run(found, out).points
    fgsm = [point for point in points if point.cell == "lenet fgsm linf untargeted"]
    assert {point.eps_text for point in fgsm} == {"0.05"}
    assert "attack_success_rate" not in {point.metric for point in fgsm}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("tensorbord:runs", "did you mean 'tensorboard'"),
        ("tensorboard", "WHERE is missing"),
        (":runs", "expected NAME:WHERE"),
    ],
)
def test_a_name_that_is_none_ends_a_run_before_it_begins(
    path: Path, tmp_path: Path, text: str, sentence: str
) -> None:
    words = ["run", str(path), "--out", str(tmp_path / "out"), "--track", text]
    done = CliRunner().invoke(cli, words, standalone_mode=False)
    assert done.return_value == 2
    assert sentence in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_library_that_is_not_installed_is_named_with_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SuiteError, match=r"tensorboard is not installed; pip install"):
        trackers.parse_target("tensorboard:runs")


def test_a_tracker_that_fails_loses_nothing_of_the_run(out: Path) -> None:
    def fail(run: RunSummary, where: str) -> str:
        raise ConnectionError(f"nobody answers at {where}")

    wanted = TrackerTarget("broken", Tracker("json", "", fail), "there")
    with pytest.raises(SuiteError, match="nobody answers at there; the run is kept"):
        trackers.log_run(wanted, results.read_results(out), out)


def test_a_shard_is_logged_to_no_tracker(path: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorboard") is None:
        pytest.skip("the package tensorboard is not installed")
    words = ["run", str(path), "--shard", "1/2", "--track", f"tensorboard:{tmp_path}"]
    done = CliRunner().invoke(cli, words, standalone_mode=False)
    assert done.return_value == 2
    assert "give it to bench merge" in done.stderr


@missing("tensorboard")
@pytest.mark.filterwarnings("default::DeprecationWarning")
def test_tensorboard_reads_every_figure_back(out: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = report(out, "--track", f"tensorboard:{tmp_path / 'runs'}")
    assert done.return_value == 0, done.output
    (folder,) = (tmp_path / "runs").iterdir()
    read = EventAccumulator(str(folder))
    read.Reload()
    table = pd.read_csv(out / "table.csv")
    rows = table[table["attack"] == "fgsm"].sort_values("eps")
    scalars = read.Scalars("robust_accuracy/lenet fgsm linf untargeted")
    assert [each.value for each in scalars] == pytest.approx(rows["robust_accuracy"].tolist())
    assert [each.step for each in scalars] == [round(eps * 1e6) for eps in rows["eps"]]
    assert "parameters/text_summary" in read.Tags()["tensors"]


@missing("mlflow")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_mlflow_keeps_figures_parameters_and_files(
    out: Path, tmp_path: Path, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # which it wants to be asked for
    done = report(out, "--track", f"mlflow:{scheme}{tmp_path / 'mlruns'}")
    assert done.return_value == 0, done.output
    client = MlflowClient(tracking_uri=f"{scheme}{tmp_path / 'mlruns'}")
    experiment = client.get_experiment_by_name("bench")
    (run,) = client.search_runs([experiment.experiment_id])
    table = pd.read_csv(out / "table.csv").set_index(["attack", "eps_text"])
    kept = run.data.metrics["robust_correct/lenet MI_ 3 steps linf untargeted/8/255"]
    assert kept == table.loc[("MI, 3 steps", "8/255"), "robust_correct"]
    assert run.data.params["suite"] == "tracked"
    assert run.info.status == "FINISHED"
    assert {each.path for each in client.list_artifacts(run.info.run_id)} == set(
        trackers.LOGGED_FILES
    )


@missing("wandb")
@pytest.mark.filterwarnings("default")
def test_wandb_writes_a_folder_where_it_is_offline(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    done = report(out, "--track", "wandb:robustness")
    assert done.return_value == 0, done.output
    (log,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert b"robust_accuracy/lenet fgsm linf untargeted" in log.read_bytes()


class StandIn:
    """W&B's functions that the tracker calls; records what it logs."""

    url, dir, id = "https://wandb.example/run", "", "abc"

    def __init__(self) -> None:
        self.started: dict[str, object] = {}
        self.rows: list[dict[str, float]] = []
        self.files: set[str] = set()

    def init(self, **settings: object) -> "StandIn":
        self.started = settings
        return self

    def __enter__(self) -> "StandIn":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def Settings(self, **settings: object) -> object:  # noqa: N802
        return settings

    def Artifact(self, name: str, type: str) -> "StandIn":  # noqa: N802
        return self

    def add_file(self, path: str) -> None:
        self.files.add(Path(path).name)

    def define_metric(self, *names: str, **settings: object) -> None:
        return None

    def log(self, row: dict[str, float]) -> None:
        self.rows.append(row)

    def log_artifact(self, artifact: object) -> None:
        return None


def test_wandb_gets_a_row_for_each_eps_the_parameters_and_the_files(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", library)
    told = trackers.summarize_run(results.read_results(out), out)
    assert wandb.log_to_wandb(told, "team/robustness") == library.url
    assert (library.started["entity"], library.started["project"]) == ("team", "robustness")
    assert library.started["config"] == dict(told.params)
    table = pd.read_csv(out / "table.csv")
    fgsm = table[table["attack"] == "fgsm"].sort_values("eps")
    key = "robust_correct/lenet fgsm linf untargeted"
    assert [row[key] for row in library.rows] == fgsm["robust_correct"].tolist()
    assert [row["eps"] for row in library.rows] == fgsm["eps"].tolist()
    assert library.files == set(trackers.LOGGED_FILES)
