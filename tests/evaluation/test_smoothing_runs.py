"""Randomised smoothing in a run: stored, resumed, counted by radius, apart from the attacks."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import type_command
from seeded_nets import SEEDED, write_suite

import bench
from bench.analysis import results, smoothed
from bench.analysis.results_from_csv import read_results_from_csv
from bench.core.errors import RecordError
from bench.evaluation.certification import smoothing

NET = f"""
{SEEDED}
class Noisy(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) + 1e-3 * torch.randn(len(x), 3)

def net(width: int = 6, kind: str = "plain") -> nn.Module:
    made = seeded(nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.Tanh(), nn.Linear(width, 3)))
    return Noisy(made) if kind == "noisy" else made

def data(limit=None):
    images, labels = labelled(net(), 20, 4)
    labels[:3] = (labels[:3] + 1) % 3
    return images[:limit], labels[:limit]
"""
SUITE = """
schema = 1
name = "smooth"
certify = [
    { method = "smoothing", sigma = 0.25, n0 = 20, n = 100, alpha = 0.01, radii = [0, "1/8", 0.4] },
    { method = "smoothing", sigma = 0.5, n0 = 20, n = 100, alpha = 0.01 },
]
[data]
name = "net.py:data"
[[models]]
name = "net.py:net"
label = "net"
[[models]]
name = "net.py:net"
label = "labels alone"
access = "labels"
[[models]]
name = "net.py:net"
label = "noisy"
params = { kind = "noisy" }
predictions = 3
[[attacks]]
name = "fgsm"
label = "FGSM"
norm = "linf"
eps = [0.02]
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run, and what was printed."""
    folder = tmp_path_factory.mktemp("smoothed")
    out = folder / "out"
    code, output = type_command(
        "run", write_suite(folder, NET, SUITE), "--out", str(out), "--device", "cpu"
    )
    assert code == 0
    return out, output


def test_the_table_counts_the_records_at_every_radius(ran: tuple[Path, str]) -> None:
    out, _ = ran
    found = results.read_results(out).smoothed
    table = found.table.query("status == 'ok'")
    assert list(found.table.columns) == list(smoothed.COLUMNS)
    assert len(table) == 2 * (3 + 7)
    for row in table.to_dict("records"):
        own = found.examples.query(f"model == '{row['model']}' and sigma == {row['sigma']}")
        assert len(own) == row["n"] == 20
        right = (own["predicted"] == own["label"]) & ~own["abstained"]
        assert row["correct"] == right.sum()
        assert row["abstained"] == own["abstained"].sum()
        assert row["certified_correct"] == (right & (own["radius"] > row["radius"])).sum()
        assert row["certified_low"] <= row["certified_accuracy"] <= row["certified_high"]
    assert table["certified_correct"].max() > 10
    assert table["abstained"].max() > 0
    assert table["correct"].max() < 20  # three labels are wrong


def test_a_record_holds_what_its_radius_follows_from(ran: tuple[Path, str]) -> None:
    examples = results.read_results(ran[0]).smoothed.examples
    assert list(examples.columns) == list(smoothed.EXAMPLE_COLUMNS)
    counts, low = examples["count"].to_numpy(), examples["probability_low"].to_numpy()
    assert np.allclose(low, smoothing.lower_confidence_bound(counts, 100, 0.01))
    for sigma, own in examples.groupby("sigma"):
        radius = smoothing.certified_radius(own["probability_low"].to_numpy(), float(sigma))
        assert np.allclose(own["radius"], radius)
    assert ((examples["radius"] == 0) == examples["abstained"]).all()


def test_the_curve_falls_at_every_radius_and_agrees_with_the_table(ran: tuple[Path, str]) -> None:
    found = results.read_results(ran[0]).smoothed
    for (model, sigma), own in found.curve.groupby(["model", "sigma"]):
        assert own["radius"].is_monotonic_increasing
        assert own["radius"].iloc[0] == 0
        assert (own["certified_correct"].diff().dropna() < 0).all()
        assert own["certified_correct"].iloc[-1] == 0
        table = found.table.query(f"model == '{model}' and sigma == {sigma}")
        for row in table.to_dict("records"):
            at = own[own["radius"] <= row["radius"]].iloc[-1]
            assert at["certified_correct"] == row["certified_correct"]


def test_a_model_is_smoothed_by_its_labels_alone_and_one_that_answers_at_random_is_not(
    ran: tuple[Path, str],
) -> None:
    found = results.read_results(ran[0]).smoothed
    by_model = dict(list(found.examples.groupby("model")))
    columns = ["sigma", "example", "predicted", "count", "radius"]
    pd.testing.assert_frame_equal(
        by_model["net"][columns].reset_index(drop=True),
        by_model["labels alone"][columns].reset_index(drop=True),
    )
    noisy = found.table.query("model == 'noisy'")
    assert (noisy["status"] == "skipped").all()
    assert (noisy["reason"] == "it answers at random").all()


def test_results_are_the_same_at_every_batch_size(ran: tuple[Path, str], tmp_path: Path) -> None:
    first = results.read_results(ran[0]).smoothed
    path = write_suite(tmp_path, NET, SUITE)
    other = bench.run(path, tmp_path / "out", device="cpu", batch_size=7).smoothed
    pd.testing.assert_frame_equal(first.examples, other.examples)


def test_pages_show_smoothing_apart_from_bounds_and_attacks(ran: tuple[Path, str]) -> None:
    out, output = ran
    text, page = ((out / f"report.{kind}").read_text("utf-8") for kind in ("md", "html"))
    for written in (text, page):
        assert "Randomised smoothing" in written
        assert "certifies the smoothed classifier" in written
        assert "skipped: it answers at random" in written
        assert "robust under all attacks" not in written
    assert "| net | 0.25 | 20 + 100 | 0.01 |" in text
    assert "## Certified" not in text
    assert "net, smoothed with sigma 0.25: certified in L2" in output
    assert not (out / "certified.csv").exists()
    assert (out / "plots" / "smoothing-net.png").stat().st_size > 5000
    assert (out / "plots" / "smoothing-net.svg").exists()


def test_tables_beside_a_run_without_records_are_read_back(ran: tuple[Path, str]) -> None:
    whole, read = results.read_results(ran[0]).smoothed, read_results_from_csv(ran[0]).smoothed
    done = [found.table.query("status == 'ok'") for found in (read, whole)]
    for ours, theirs in (done, (read.curve, whole.curve)):
        pd.testing.assert_frame_equal(ours, theirs, check_dtype=False, check_exact=True)


def test_other_radii_are_counted_from_the_same_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = SUITE[: SUITE.index('[[models]]\nname = "net.py:net"\nlabel = "labels')]
    one += SUITE[SUITE.index("[[attacks]]") :]
    bench.run(write_suite(tmp_path, NET, one), tmp_path / "out", device="cpu")

    def never(*_: object) -> None:
        raise AssertionError("certified again")

    with monkeypatch.context() as patch:
        patch.setattr(smoothing, "certify_smoothed", never)
        other = one.replace('radii = [0, "1/8", 0.4]', "radii = [0.3]")
        found = bench.run(
            write_suite(tmp_path, NET, other), tmp_path / "out", device="cpu"
        ).smoothed
    assert found.table.query("sigma == 0.25")["radius"].tolist() == [0.3]
    tasks = results.read_results(tmp_path / "out").provenance["certify"]
    before = {each["identity"] for each in tasks}
    again = bench.run(
        write_suite(tmp_path, NET, one.replace('"smooth"', '"smooth"\nseed = 1')), tmp_path / "out",
        device="cpu", fresh=True,
    )  # fmt: skip
    assert before.isdisjoint(each["identity"] for each in again.provenance["certify"])


def test_records_that_are_gone_are_missing_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    found = bench.run(write_suite(tmp_path, NET, SUITE), tmp_path / "out", device="cpu")
    assert (found.smoothed.table["status"] != "missing").all()
    path = next((tmp_path / "out" / "records").glob("*.certificates"))
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(RecordError, match="damaged certificates"):
        _ = results.read_results(tmp_path / "out").smoothed
    path.unlink()
    code, _ = type_command("report", str(tmp_path / "out"))
    table = pd.read_csv(tmp_path / "out" / "smoothing.csv")
    assert code == 1
    assert set(table.query("status == 'missing'")["reason"]) == {
        "0 of 20 examples are done; run the suite again to go on"
    }
