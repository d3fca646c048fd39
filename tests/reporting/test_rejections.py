"""A run with detectors: counts equal a pivot over the records, on every page and in the gate."""

from pathlib import Path

import pandas as pd
import pytest
from cheap_runs import few_rows, no_figures
from reported_runs import copy_without_records, run_with_report
from rich.console import Console

from bench.analysis import results, results_from_csv, snapshot, snapshot_matching
from bench.reporting import terminal
from bench.reporting.site import sources, writer

__all__ = ["few_rows", "no_figures"]

MINE = """
import torch
from safetensors.torch import load_file
from bench.models import lenet
from bench.models.published_weights import WEIGHTS


class Scored(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = lenet.MODEL.build()
        self.net.load_state_dict(load_file(WEIGHTS / "lenet-digits.safetensors"))

    def forward(self, x):
        return self.net(x), 100 * (x[..., 1:] - x[..., :-1]).square().flatten(1).mean(1)


def make():
    return Scored()
"""
SUITE = """
schema = 1
name = "detectors"
certify = ["ibp"]
[data]
name = "digits"
limit = 24
[[models]]
name = "lenet"
weights = "digits"
[[models]]
name = "mine.py:make"
label = "spared"
detector = { output = 1, threshold = 1.5, rejected = "robust" }
[[models]]
name = "mine.py:make"
label = "counted"
detector = { output = 1, threshold = 1.5, rejected = "error" }
[[attacks]]
name = "pgd"
norm = "linf"
eps = [0, 0.1]
params = { steps = 5 }
[[attacks]]
name = "pgd"
label = "transfer"
norm = "linf"
eps = [0.1]
params = { steps = 5 }
source = "lenet"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("detectors")
    (base / "mine.py").write_text(MINE, encoding="utf-8")
    run_with_report(SUITE, base / "run", base)
    return base / "run"


def test_rejections_csv_is_a_pivot_over_the_records(folder: Path) -> None:
    table = pd.read_csv(folder / "rejections.csv")
    frame = results.read_results(folder).stored.frame
    assert set(table["model"]) == {"spared", "counted"}
    assert len(table) == 6
    keys = ["model", "attack", "eps"]
    for row in table.to_dict("records"):
        own = frame[(frame[keys].astype(object) == [row[key] for key in keys]).all(axis=1)]
        right = own["clean_pred"] == own["label"]
        after = own["adv_pred"][right]
        assert row["n"] == 24
        assert row["clean_rejected"] == (own["clean_pred"] == 10).sum() > 0
        assert row["clean_correct"] == right.sum()
        assert row["answered"] == (after == own["label"][right]).sum()
        assert row["rejected"] == (after == 10).sum()
        assert row["answered"] + row["rejected"] + row["wrong"] == row["clean_correct"]
        spared = row["rejected"] if row["model"] == "spared" else 0
        assert row["robust_correct"] == row["answered"] + spared
        assert row["counted_as"] == {"spared": "robust", "counted": "error"}[row["model"]]
        assert (
            row["clean_rejection_low"] < row["clean_rejection_rate"] < row["clean_rejection_high"]
        )


def test_report_terminal_and_site_count_the_false_rejections(folder: Path, tmp_path: Path) -> None:
    found = results.read_results(folder)
    k = int(found.rejections["clean_rejected"].iloc[0])
    screen = Console(record=True, width=200)
    terminal.print_summary(found, screen)
    pages = [(folder / name).read_text("utf-8") for name in ("report.md", "report.html")]
    for text in (*pages, screen.export_text(clear=False)):
        assert "spared rejects images whose score (output 1) is above 1.5" in text
        assert f"{k}/24, of the clean images" in text
    assert "counts as an error" in pages[0]
    uncertified = "the model rejects images, and no method here bounds the score of a detector"
    assert uncertified in pages[0]
    assert f"spared: not certified by IBP: {uncertified}" in screen.export_text(clear=False)


def test_a_publication_has_the_detectors(folder: Path, tmp_path: Path) -> None:
    writer.publish(sources.gather([folder]), tmp_path / "page")
    page = (tmp_path / "page" / "index.html").read_text("utf-8")
    assert ">Detectors</h2>" in page
    assert "spared rejects images" in page


def test_the_gate_does_not_compare_the_two_countings(folder: Path) -> None:
    found = snapshot.take_snapshot(results.read_results(folder))
    own = {each.model: each for each in found.tasks if each.attack == "pgd"}
    changes = snapshot_matching.find_setting_changes(own["spared"], own["counted"])
    assert [(each.name, each.before, each.now) for each in changes] == [
        ("rejected", "robust", "error")
    ]


def test_the_wrong_class_of_a_rejection_is_called_rejected(folder: Path) -> None:
    classes = results.read_results(folder).classes
    own = classes[(classes["model"] == "counted") & (classes["wrong_class"] == -2)]
    assert (own["wrong_class_name"] == "rejected").all()
    assert len(own)
    spared = classes[classes["model"] == "spared"]
    assert not (spared["wrong_class"] == -2).any()


def test_a_run_is_read_from_its_tables_as_from_its_records(folder: Path, tmp_path: Path) -> None:
    copied = copy_without_records(folder, tmp_path / "bare")
    bare = results_from_csv.read_results_from_csv(copied).rejections
    pd.testing.assert_frame_equal(
        bare, results.read_results(folder).rejections, check_dtype=False, check_like=True
    )


def test_a_detector_is_named_in_the_manifest_and_none_elsewhere(folder: Path) -> None:
    models = results.read_results(folder).provenance["models"]
    assert models["spared"]["detector"] == {
        "output": 1, "threshold": 1.5, "rejects": "above", "rejected": "robust",
    }  # fmt: skip
    assert "detector" not in models["lenet"]
