"""Certificates in a run: stored, resumed, compared with attacks, and any contradiction reported."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import pytest
from cheap_runs import draw_only
from command_line import type_command
from seeded_nets import SEEDED, write_suite
from torch import Tensor

import bench
from bench.analysis import certified, results
from bench.core.contracts import types
from bench.core.errors import RecordError, SuiteError
from bench.evaluation.certification import bounds
from bench.evaluation.certification.layers import Node
from bench.suite.reader import parse_suite

NET = f"""
{SEEDED}
def net(width: int = 6, kind: str = "relu") -> nn.Module:
    bend = nn.ReLU() if kind == "relu" else nn.Softplus()
    return seeded(nn.Sequential(nn.Flatten(), nn.Linear(64, width), bend, nn.Linear(width, 3)))

def data(limit=None):
    images, labels = labelled(net(), 30, 8)
    return images[:limit], labels[:limit]
"""
SUITE = """
schema = 1
name = "small"
certify = true
[data]
name = "net.py:data"
[[models]]
name = "net.py:net"
label = "relu net"
[[models]]
name = "net.py:net"
label = "softplus net"
params = { kind = "softplus" }
[[attacks]]
name = "pgd"
label = "PGD"
norm = "linf"
eps = [0, 0.004, "4/255"]
[[attacks]]
name = "fgsm"
label = "FGSM"
norm = "linf"
eps = [0.004, 0.5]
[[attacks]]
name = "pgd"
label = "L2"
norm = "l2"
eps = [0.1]
"""

ONE = """
schema = 1
name = "one"
certify = true
[data]
name = "net.py:data"
[[models]]
name = "net.py:net"
[[attacks]]
name = "fgsm"
norm = "linf"
eps = [0.004]
"""


def bench_run(folder: Path, suite: str = SUITE, fresh: bool = False) -> results.RunResults:
    """The results of a run without its report."""
    path = write_suite(folder, NET, suite)
    return bench.run(path, folder / "out", device="cpu", fresh=fresh)


@pytest.fixture(scope="module", autouse=True)
def no_figures() -> Iterator[None]:
    """Of all figures, the certified bounds alone are drawn."""
    with draw_only("certified"):
        yield


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run, and what was printed."""
    folder = tmp_path_factory.mktemp("certified")
    code, output = type_command(
        "run", write_suite(folder, NET, SUITE), "--out", str(folder / "out"), "--device", "cpu"
    )
    assert code == 0
    return folder, output


def test_certified_accuracy_is_a_lower_bound_of_what_attacks_left(
    ran: tuple[Path, str],
) -> None:
    table = pd.read_csv(ran[0] / "out" / "certified.csv")
    assert list(table.columns) == list(certified.COLUMNS)
    relu = table[table["model"] == "relu net"]
    # pandas before 3 loses the last bit of what it reads.
    assert list(relu["eps"]) == pytest.approx(2 * [0.004, 4 / 255, 0.5], rel=1e-15)
    assert list(relu["method"]) == 3 * ["ibp"] + 3 * ["crown"]
    assert (relu["status"] == "ok").all()
    assert (relu["n"] == 30).all()
    assert (relu["certified_correct"] <= relu["attacked_robust_correct"]).all()
    assert (relu["undecided"] == relu["attacked_robust_correct"] - relu["certified_correct"]).all()
    for _, own in relu.groupby("method"):
        assert own["certified_correct"].is_monotonic_decreasing
    by_method = relu.groupby("method")["certified_correct"].sum()
    assert 0 < by_method["ibp"] <= by_method["crown"]
    worst = results.read_results(ran[0] / "out").worst
    at = worst[(worst["model"] == "relu net") & (worst["norm"] == "linf") & (worst["eps"] == 0.004)]
    assert at["robust_correct"].item() == relu["attacked_robust_correct"].iloc[0]


def test_a_net_without_bounds_is_skipped_with_its_layers_name(ran: tuple[Path, str]) -> None:
    folder, _ = ran
    table = pd.read_csv(folder / "out" / "certified.csv")
    other = table[table["model"] == "softplus net"]
    assert (other["status"] == "skipped").all()
    assert (other["reason"] == "no bounds for Softplus (2)").all()
    assert other["certified_correct"].isna().all()


def test_pages_and_terminal_state_the_certified_bounds_and_a_figure_draws_them(
    ran: tuple[Path, str],
) -> None:
    folder, output = ran
    out = folder / "out"
    row = pd.read_csv(out / "certified.csv").query("method == 'crown' and eps == 0.004").iloc[0]
    rate = f"{100 * row['certified_accuracy']:.1f} %"
    text, page = ((out / f"report.{kind}").read_text("utf-8") for kind in ("md", "html"))
    for written in (text, page):
        assert "Certified" in written
        assert "(worst case of 2 attacks)" in written
        assert f"between {rate}" in written
        assert "no bounds for Softplus" in written
    assert "relu net, eps 4/255: between" in output
    assert "Contradiction" not in text
    for kind in ("png", "svg"):
        assert (out / "plots" / f"bracket-relu-net.{kind}").stat().st_size > 5000
    assert not (out / "plots" / "bracket-softplus-net.png").exists()


def test_a_second_run_certifies_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[types.BoundMethod] = []
    whole = bounds.certified_margins

    def watched(
        layers: Sequence[Node],
        inside: bounds.Region,
        labels: Tensor,
        method: types.BoundMethod,
    ) -> Tensor:
        seen.append(method)
        return whole(layers, inside, labels, method)

    monkeypatch.setattr(bounds, "certified_margins", watched)
    bench_run(tmp_path, ONE.replace("true", '["ibp"]'))
    assert set(seen) == {"ibp"}
    seen.clear()
    first = bench_run(tmp_path, ONE).certified.table
    assert set(seen) == {"crown"}
    seen.clear()
    pd.testing.assert_frame_equal(bench_run(tmp_path, ONE).certified.table, first)
    assert seen == []
    bench_run(tmp_path, ONE.replace('"net.py:net"', '"net.py:net"\nparams = { width = 7 }'))
    assert set(seen) == {"ibp", "crown"}  # another model
    bench_run(tmp_path, ONE, fresh=True)
    assert len(list((tmp_path / "out" / "records").glob("*.certificates"))) == 2


def test_a_certified_example_that_an_attack_has_broken_is_a_contradiction_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def credulous(
        layers: Sequence[Node],
        inside: bounds.Region,
        labels: Tensor,
        method: types.BoundMethod,
    ) -> Tensor:
        return inside.low.new_ones(len(labels))

    monkeypatch.setattr(bounds, "certified_margins", credulous)
    found = bench_run(tmp_path).certified.contradictions
    broken = found[(found["attack"] == "FGSM") & (found["attack_eps"] == 0.5)]
    assert set(broken["eps"]) == {0.5}  # a smaller certified ball says nothing of so far an image
    assert len(found[found["attack"] == "L2"])  # that an image is near is measured, not declared
    code, output = type_command("report", str(tmp_path / "out"))
    assert code == 1
    assert "contradiction: relu net: CROWN certified at eps 0.5 what FGSM broke" in output
    assert f"({broken['example'].iloc[0]}" in output
    for kind in ("md", "html"):
        text = (tmp_path / "out" / f"report.{kind}").read_text("utf-8")
        assert "an attack broke certified examples" in text


def test_certificates_that_are_gone_are_missing_and_the_run_is_not_whole(tmp_path: Path) -> None:
    bench_run(tmp_path, ONE)
    path = next((tmp_path / "out" / "records").glob("*.certificates"))
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(RecordError, match="damaged certificates"):
        _ = results.read_results(tmp_path / "out").certified
    path.unlink()
    assert type_command("report", str(tmp_path / "out"))[0] == 1
    table = pd.read_csv(tmp_path / "out" / "certified.csv")
    missing = table[table["status"] == "missing"]
    assert missing["reason"].str.startswith("0 of 30 examples are done").all()
    assert len(missing) == 1
    assert (bench_run(tmp_path, ONE).certified.table["status"] != "missing").all()


def test_a_suite_that_certifies_nothing_has_no_section_and_leaves_no_table(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "certified.csv").write_text("of another suite", encoding="utf-8")
    bench_run(tmp_path, ONE.replace("certify = true\n", ""))
    assert type_command("report", str(tmp_path / "out"))[0] == 0
    assert not (tmp_path / "out" / "certified.csv").exists()
    assert "## Certified" not in (tmp_path / "out" / "report.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("says", "methods"),
    [("true", ("ibp", "crown")), ("false", ()), ('["crown", "crown"]', ("crown",))],
)
def test_a_suite_says_how_it_certifies(says: str, methods: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    text = SUITE.replace("certify = true", f"certify = {says}")
    entries = parse_suite(text, "s.toml", tmp_path).certify
    assert tuple(each.method for each in entries) == methods
    assert {each.norm for each in entries} <= {"linf"}


@pytest.mark.parametrize(
    ("says", "sentence"),
    [
        ('["lirpa"]', "certify[0]: expected 'ibp', 'crown' or 'smoothing'"),
        ('["crwn"]', "(did you mean 'crown'?), got 'crwn'"),
        ('"ibp"', "certify: expected true, false or a list of methods, got 'ibp'"),
        ('["smoothing"]', "certify[0]: expected a table with sigma, such as"),
        ('[{ method = "smoothing" }]', "certify[0].sigma: expected a value, got nothing"),
        ('[{ method = "crown", nrm = "l2" }]', "certify[0].nrm: unknown key; did you mean 'norm'?"),
        ('[{ method = "crown", norm = "l1" }]', "certify[0].norm: expected 'linf' or 'l2'"),
        ('[{ method = "smoothing", sigma = 0 }]', "certify[0].sigma: expected greater"),
        ('[{ method = "smoothing", sigma = 0.5, n = 5 }]', "expected n of at least 10"),
        ('[{ method = "smoothing", sigma = 0.5, radii = [-1] }]', "expected a radius of at least"),
        ('[{ method = "smoothing", sigma = 0.5, radii = ["x"] }]', "radii[0]: expected a number"),
        (
            '[{method="smoothing", sigma=0.5}, {method="smoothing", sigma="1/2", n=99}]',
            "certify: expected each sigma once, got 0.5 again",
        ),
    ],
)
def test_a_mistake_in_how_a_suite_certifies_is_one_sentence(
    says: str, sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    text = SUITE.replace("certify = true", f"certify = {says}")
    with pytest.raises(SuiteError) as raised:
        parse_suite(text, "s.toml", tmp_path)
    (problem,) = raised.value.problems
    assert sentence in problem


@pytest.mark.parametrize(
    ("says", "eps", "sentence"),
    [
        (
            '["crown", { method = "crown", norm = "l2" }]', "[0.004]",
            "s.toml: certify: expected an attack in l2 at an eps above 0, since bounds are "
            "computed at the eps of the attacks; got attacks in linf",
        ),
        ("true", "[0]", "s.toml: certify: expected an attack in linf at an eps above 0"),
    ],
)  # fmt: skip
def test_bounds_at_no_eps_of_an_attack_are_refused(
    says: str, eps: str, sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    text = ONE.replace("certify = true", f"certify = {says}").replace(
        "eps = [0.004]", f"eps = {eps}"
    )
    with pytest.raises(SuiteError) as raised:
        parse_suite(text, "s.toml", tmp_path)
    (problem,) = raised.value.problems
    assert problem.startswith(sentence)


def test_in_an_l2_ball_bounds_lie_below_what_l2_attacks_left_and_have_their_own_rows(
    tmp_path: Path,
) -> None:
    both = 'certify = ["crown", { method = "crown", norm = "l2" }]'
    suite = SUITE.replace("certify = true", both).replace("eps = [0.1]", "eps = [0.02, 0.1]")
    found = bench_run(tmp_path, suite)
    table = found.certified.table.query("model == 'relu net' and norm == 'l2'")
    assert list(table["eps"]) == [0.02, 0.1]
    assert (table["status"] == "ok").all()
    assert (table["certified_correct"] <= table["attacked_robust_correct"]).all()
    assert table["certified_correct"].iloc[0] > 0
    assert found.certified.contradictions.empty
    assert type_command("report", str(tmp_path / "out"))[0] == 0
    text = (tmp_path / "out" / "report.md").read_text("utf-8")
    assert "relu net, L2, eps 0.02: between" in text
    assert (tmp_path / "out" / "plots" / "bracket-relu-net-l2.png").exists()
    # The box around an L2 ball is larger, so a bound over it certifies no more.
    box = found.certified.table.query("model == 'relu net' and norm == 'linf'")
    assert list(box["eps"]) == [0.004, 4 / 255, 0.5]


def test_bounds_in_the_other_norm_leave_those_of_a_suite_as_they_are(tmp_path: Path) -> None:
    first = bench_run(tmp_path, SUITE.replace("true", '["crown"]'))
    again = bench_run(tmp_path, SUITE.replace("true", '["crown", {method="crown", norm="l2"}]'))
    before, after = (
        {each["identity"] for each in run.provenance["certify"]} for run in (first, again)
    )
    assert before < after
    box = again.certified.table.query("norm == 'linf'").reset_index(drop=True)
    pd.testing.assert_frame_equal(box, first.certified.table)


def test_an_l2_certificate_is_contradicted_by_the_l2_distance_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def credulous(
        layers: Sequence[Node],
        inside: bounds.Region,
        labels: Tensor,
        method: types.BoundMethod,
    ) -> Tensor:
        return inside.low.new_ones(len(labels))

    monkeypatch.setattr(bounds, "certified_margins", credulous)
    suite = SUITE.replace("true", '[{ method = "crown", norm = "l2" }]')
    found = bench_run(tmp_path, suite.replace("eps = [0.1]", "eps = [0.1, 0.6]"))
    broken = found.certified.contradictions
    assert set(broken["norm"]) == {"l2"}
    records = found.stored.frame.set_index(["model", "attack", "eps", "example"])
    for row in broken.itertuples():
        record = records.loc[(row.model, row.attack, row.attack_eps, row.example)]
        assert record["l2"] <= row.eps * 1.001
    assert "FGSM" not in set(broken[broken["attack_eps"] == 0.5]["attack"])
    assert len(broken)
