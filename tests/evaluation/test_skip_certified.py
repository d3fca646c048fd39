"""`skip_certified`: examples that a certificate proves robust are not attacked and stay so."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch
from cheap_runs import draw_only
from command_line import type_command
from seeded_nets import SEEDED, write_suite
from torch import Tensor

import bench
from bench.analysis import certified, tables
from bench.analysis.results import RunResults, read_results
from bench.analysis.results_from_csv import read_results_from_csv
from bench.analysis.snapshot import take_snapshot
from bench.analysis.snapshot_file import format_snapshot, read_snapshot, write_snapshot
from bench.core.errors import RecordError, SuiteError
from bench.evaluation import chunk_sizes, metrics
from bench.evaluation.certification import bounds
from bench.execution import merge, runner, sharding
from bench.execution.options import RunOptions
from bench.reporting.run_output import write_run_output
from bench.storage.fingerprint import records_hash
from bench.suite import plan
from bench.suite.identity import ModelFacts
from bench.suite.reader import parse_suite
from bench.suite.schema import Suite
from bench.suite.thresholds import DEFAULTS, Scope, Thresholds, parse_threshold
from bench.workflows.gate.check import check_against_baseline

NET = f"""
{SEEDED}
def net(width: int = 6) -> nn.Module:
    return seeded(nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 5)))

def data(limit=None):
    images, labels = labelled(net(), 40, 8)
    labels[3] = (labels[3] + 1) % 5  # misclassified
    return images[:limit], labels[:limit]
"""
HEAD = """
schema = 1
name = "small"
certify = ["ibp", "crown"]
{top}
[data]
name = "net.py:data"
[[models]]
name = "net.py:net"
"""
ATTACKS = """
[[attacks]]
name = "pgd"
label = "PGD"
norm = "linf"
eps = [0.03, 0, 0.004, 0.01]
params = { steps = 5 }
[[attacks]]
name = "autoattack"
label = "AA"
norm = "linf"
eps = [0.004, 0.01]
params = { steps = 3, queries = 8 }
[[attacks]]
name = "square"
label = "Square"
norm = "linf"
eps = [0.01]
params = { steps = 8 }
budgets = [2, 8]
[[attacks]]
name = "pgd"
label = "targeted"
norm = "linf"
eps = [0.004]
goal = "targeted"
target = 2
params = { steps = 3 }
[[attacks]]
name = "pgd"
label = "L2"
norm = "l2"
eps = [0.02]
params = { steps = 3 }
[[attacks]]
name = "fmn"
label = "search"
norm = "linf"
eps = [0.004]
params = { steps = 5 }
"""
APPLIED = ("PGD", "AA", "Square", "targeted")
"""Attacks of ATTACKS that certificates apply to."""
LIMITS = Thresholds(tuple((Scope(), parse_threshold(text)) for text in DEFAULTS))


def run_suite(folder: Path, text: str, **options: object) -> RunResults:
    return bench.run(write_suite(folder, NET, text), folder / "out", device="cpu", **options)  # type: ignore[arg-type]


def read(text: str, tmp_path: Path) -> Suite:
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    return parse_suite(text, "s.toml", tmp_path)


@pytest.fixture(scope="module", autouse=True)
def no_figures() -> Iterator[None]:
    with draw_only("certified"):
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunResults:
    """Every example is attacked."""
    return run_suite(tmp_path_factory.mktemp("whole"), HEAD.format(top="") + ATTACKS)


@pytest.fixture(scope="module")
def skipping(tmp_path_factory: pytest.TempPathFactory) -> RunResults:
    """Certified examples are not."""
    text = HEAD.format(top="skip_certified = true") + ATTACKS
    return run_suite(tmp_path_factory.mktemp("skipping"), text)


def records_of(run: RunResults, attack: str) -> pd.DataFrame:
    frame = run.stored.frame[run.stored.frame["attack"] == attack]
    return frame.sort_values(["eps", "example"]).reset_index(drop=True)


def crown_certified(run: RunResults, eps: float) -> set[int]:
    """Ids that CROWN certifies, from the files of the run."""
    frames = [pd.read_parquet(path) for path in (run.folder / "records").glob("*.certificates")]
    rows = pd.concat(frames).query("method == 'crown' and certified and eps == @eps")
    return set(rows["example"])


def test_exactly_the_certified_examples_are_not_attacked_and_cost_nothing(
    skipping: RunResults,
) -> None:
    for attack in APPLIED:
        for eps, rows in records_of(skipping, attack).groupby("eps"):
            mine = rows[rows["certified"]]
            eligible = metrics.eligible_examples(rows)
            proven = rows["example"].isin(crown_certified(skipping, float(eps)))
            assert set(mine["example"]) == set(rows["example"][proven & eligible])
            assert not mine["attacked"].any()
            assert (mine[["forwards", "backwards", "linf"]] == 0).all(axis=None)
            assert rows["attacked"][~rows["certified"] & eligible].all() or eps == 0
    some = skipping.table[skipping.table["attack"] == "PGD"].set_index("eps")["certified"]
    assert pd.isna(some[0])  # at eps 0 nothing is attacked
    assert 40 > some[0.004] > some[0.01] > some[0.03] >= 0


def test_all_other_records_are_those_of_a_run_that_attacks_everything(
    whole: RunResults, skipping: RunResults
) -> None:
    for attack in APPLIED:
        all_rows, rows = records_of(whole, attack), records_of(skipping, attack)
        assert (metrics.robust_examples(all_rows) == metrics.robust_examples(rows)).all()
        open_ = ~rows["certified"]
        for name in ("adv_pred", "fooled", "part", "forwards", "first_success_step", "attacked"):
            assert rows[name][open_].tolist() == all_rows[name][open_].tolist(), name
        assert torch.allclose(
            *(torch.tensor(each["linf"][open_].tolist()) for each in (rows, all_rows))
        )
    assert skipping.worst["robust_correct"].tolist() == whole.worst["robust_correct"].tolist()


def test_attacks_that_no_certificate_applies_to_run_as_before(
    whole: RunResults, skipping: RunResults
) -> None:
    for attack in ("L2", "search"):
        rows, other = records_of(skipping, attack), records_of(whole, attack)
        assert not rows["certified"].any()
        assert set(rows["cell"]) == set(other["cell"])
    assert not set(records_of(skipping, "AA")["cell"]) & set(records_of(whole, "AA")["cell"])


def test_without_the_option_the_new_column_changes_no_hash(whole: RunResults) -> None:
    frame = whole.stored.frame
    assert "certified" not in whole.table
    assert records_hash(frame) == records_hash(frame.drop(columns="certified"))


def test_a_certified_example_falls_at_no_number_of_queries(skipping: RunResults) -> None:
    rows = records_of(skipping, "Square")
    assert (rows["queries"][rows["certified"]] == float("inf")).all()
    at = skipping.queries.set_index("budget") if "budget" in skipping.queries else None
    robust = int(metrics.robust_examples(rows).sum())
    assert at is None or at["robust_correct"].iloc[-1] == robust


@pytest.mark.parametrize("sweep", ["independent", "nested"])
def test_each_example_is_attacked_at_the_eps_at_which_it_is_not_certified(
    sweep: str, tmp_path: Path, skipping: RunResults
) -> None:
    if sweep == "independent":
        rows = records_of(skipping, "PGD")
    else:
        text = HEAD.format(top=f'skip_certified = true\nsweep = "{sweep}"') + ATTACKS
        rows = records_of(run_suite(tmp_path, text), "PGD")
    certified_at = rows[rows["certified"]].groupby("example")["eps"].max()
    attacked = rows[rows["attacked"] & (rows["eps"] > 0)].merge(
        certified_at.rename("proven"), on="example"
    )
    assert (attacked["eps"] > attacked["proven"]).all()
    assert len(attacked) > 0


def test_certificates_are_computed_once_for_all_attacks_and_again_by_no_resumed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    compute = bounds.certified_margins

    def count(*given: object) -> Tensor:
        seen.append(1)
        return compute(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(bounds, "certified_margins", count)
    text = (HEAD.format(top="skip_certified = true") + ATTACKS).replace('"ibp", ', "")
    first = run_suite(tmp_path, text)
    assert len(seen) == 4 - 1  # one for each eps above 0 of the L-inf attacks
    for path in (tmp_path / "out" / "records").glob("*AA*"):
        path.unlink()
    again = run_suite(tmp_path, text)
    assert len(seen) == 3
    assert records_hash(again.stored.frame) == records_hash(first.stored.frame)
    run_suite(tmp_path, text.replace("skip_certified = true", ""))
    assert len(seen) == 3  # another identity, of the same certificates


def test_an_attack_that_breaks_what_another_left_out_as_certified_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def certify_all(nodes: object, inside: bounds.Region, labels: Tensor, method: str) -> Tensor:
        return inside.low.new_ones(len(labels))

    monkeypatch.setattr(bounds, "certified_margins", certify_all)
    both = """
[[attacks]]
name = "pgd"
label = "skips"
norm = "linf"
eps = [0.3]
[[attacks]]
name = "pgd"
label = "attacks all"
norm = "linf"
eps = [0.3]
skip_certified = false
"""
    run = run_suite(tmp_path, HEAD.format(top="skip_certified = true") + both)
    assert set(run.certified.contradictions["attack"]) == {"attacks all"}
    assert run.table.set_index("attack")["attacked"].tolist() == [0, 39]


def test_a_model_without_certificates_is_attacked_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: object) -> Tensor:
        raise RuntimeError("no bound today")

    monkeypatch.setattr(bounds, "certified_margins", fail)
    one = '[[attacks]]\nname = "fgsm"\nnorm = "linf"\neps = [0.004]\n'
    run = run_suite(tmp_path, HEAD.format(top="skip_certified = true") + one)
    assert run.table["attacked"].tolist() == [39]
    assert not run.stored.frame["certified"].any()


def attack(name: str = "pgd", norm: str = "linf", more: str = "", eps: float = 0.1) -> str:
    keys = [
        f'name = "{name}"',
        f'label = "{name} {norm}"',
        f'norm = "{norm}"',
        f"eps = [{eps}]",
        more,
    ]
    return "\n".join(["[[attacks]]", *keys, ""])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            HEAD.format(top="") + attack() + attack("fmn", more="skip_certified = true"),
            "attacks[1].skip_certified: attack 'fmn' searches for the least distance",
        ),
        (
            HEAD.format(top="") + attack() + attack(norm="l2", more="skip_certified = true"),
            "attacks[1].skip_certified: expected bounds in l2 in `certify`",
        ),
        (
            HEAD.format(top="") + attack() + attack(norm="l1", more="skip_certified = true"),
            "attacks[1].skip_certified: certificates are of L-inf and L2 balls alone",
        ),
        (
            HEAD.format(top="").replace('certify = ["ibp", "crown"]', "")
            + attack(more="skip_certified = true"),
            "attacks[0].skip_certified: expected bounds in linf in `certify`",
        ),
        (
            HEAD.format(top="skip_certified = true").replace(
                '["ibp", "crown"]', '[{ method = "smoothing", sigma = 0.1 }]'
            )
            + attack(),
            "skip_certified: expected an attack of fixed budget in a norm that `certify` bounds",
        ),
        (
            HEAD.format(top="skip_certified = 3") + attack(),
            "skip_certified",
        ),
    ],
)
def test_what_has_no_clear_meaning_is_refused_in_one_sentence(
    text: str, problem: str, tmp_path: Path
) -> None:
    with pytest.raises(SuiteError) as caught:
        read(text, tmp_path)
    assert len(caught.value.problems) == 1
    assert problem in caught.value.problems[0]


def plan_identities(suite: Suite) -> Sequence[str]:
    facts = ModelFacts(5, (1, 8, 8), 100, "model", "data")
    tasks = plan.plan_tasks(suite, {"net.py:net": facts})
    return [cell.identity for task in tasks for cell in task.cells]


def test_the_option_and_its_methods_belong_to_the_identity_of_a_cell(tmp_path: Path) -> None:
    off = plan_identities(read(HEAD.format(top="") + attack(), tmp_path))
    on = plan_identities(read(HEAD.format(top="skip_certified = true") + attack(), tmp_path))
    by_table = HEAD.format(top="") + attack(more="skip_certified = true")
    fewer = by_table.replace('"ibp", ', "")
    bare = HEAD.format(top="").replace('certify = ["ibp", "crown"]', "") + attack()
    assert on == plan_identities(read(by_table, tmp_path))
    assert off == plan_identities(read(bare, tmp_path))
    others = [off, on, plan_identities(read(fewer, tmp_path))]
    assert len({*map(tuple, others)}) == 3


def test_the_audit_compares_attacks_on_the_same_examples_and_finds_no_more(
    whole: RunResults, skipping: RunResults
) -> None:
    found = [{(each.name, each.attack, each.eps) for each in run.audit.symptoms}
             for run in (whole, skipping)]  # fmt: skip
    assert found[1] <= found[0]
    assert {each.name for each in skipping.audit.unchecked} == {
        each.name for each in whole.audit.unchecked
    }


def test_every_page_that_shows_the_number_names_the_certified_examples(
    skipping: RunResults, tmp_path: Path
) -> None:
    row = skipping.table[(skipping.table["attack"] == "AA") & (skipping.table["eps"] == 0.01)]
    count = int(row["certified"].item())
    phrase = f"{count} of 40 certified, not attacked"
    assert f"{count} of 40 examples are certified at this eps" in row["caveats"].item()
    assert f"eps 0.01: {phrase} by PGD, AA, Square" in repr(skipping)
    assert phrase in skipping._repr_html_()
    text, page = (write_run_output(skipping, tmp_path / "run").with_suffix(kind).read_text("utf-8")
                  for kind in (".md", ".html"))  # fmt: skip
    for written in (text, page):
        assert written.count(phrase) >= 3  # attack by attack, worst case, and its counts
        assert f"{count} of 40 at eps 0.01" in written
        assert "certified, not attacked (L-inf: " in written  # the union of L-inf and L2
    written_table = pd.read_csv(tmp_path / "run" / "table.csv").set_index("cell")
    assert written_table.loc[row["cell"].item(), "certified"] == count
    listed = json.loads((tmp_path / "run" / "table.json").read_text("utf-8"))
    assert count in [each["certified"] for each in listed["rows"]]
    shutil.copy(skipping.folder / "provenance.json", tmp_path / "run")
    again = read_results_from_csv(tmp_path / "run")
    assert again.table["certified"].sum() == skipping.table["certified"].sum()


def test_a_worst_case_over_an_attack_that_spares_none_names_those_that_do(
    skipping: RunResults,
) -> None:
    worst = skipping.worst[skipping.worst["goal"] == "untargeted"].set_index(["norm", "eps"])
    count = worst.loc[("linf", 0.004), "certified"]
    assert worst.loc[("linf", 0.004), "certified_by"] == "PGD, AA"  # the search attacks them, too
    assert worst.loc[("linf", 0.01), "certified_by"] == ""
    text = skipping._repr_html_()
    assert f"{count} of 40 certified, not attacked by PGD, AA" in text


def test_a_cell_without_a_certified_example_says_that_it_leaves_none_out(
    skipping: RunResults,
) -> None:
    cell = next(each for each in skipping.plan if tables.CERTIFIED_TRAIT in each.traits)
    none = pd.DataFrame({"certified": [False] * 40})
    said = tables._describe_certified(cell, none)["caveats"]
    assert said == "None of 40 examples is certified at this eps, so that none was left out."


def test_a_published_page_and_its_tables_name_the_certified_examples(
    skipping: RunResults, tmp_path: Path
) -> None:
    type_command("publish", str(skipping.folder), "-o", str(tmp_path))
    pages = [*tmp_path.rglob("*.html"), *tmp_path.rglob("*.tex"), *tmp_path.rglob("*.md")]
    named = {page.suffix for page in pages if "certified, not attacked" in page.read_text("utf-8")}
    assert named == {".html", ".tex", ".md"}


def test_a_baseline_and_its_check_name_the_certified_examples(
    whole: RunResults, skipping: RunResults, tmp_path: Path
) -> None:
    now = take_snapshot(skipping)
    write_snapshot(now, tmp_path / "b.json")
    assert read_snapshot(tmp_path / "b.json").cells == now.cells
    assert '"certified"' not in format_snapshot(take_snapshot(whole))
    checked = check_against_baseline(now, now, LIMITS)
    count = next(cell.certified for cell in now.cells if (cell.attack, cell.eps) == ("AA", 0.01))
    assert any("AA: certified, not attacked: " in note for note in checked.notes)
    assert any(f"{count} of 40 at eps 0.01" in note for note in checked.notes)
    # Whether certified examples are attacked is a setting: with and without it is not compared.
    other = check_against_baseline(take_snapshot(whole), now, LIMITS)
    refused = {each.attack for each in other.verdicts if each.outcome == "not compared"}
    assert {"PGD", "AA", "Square"} <= refused


def test_an_example_left_out_without_a_certificate_is_refused(skipping: RunResults) -> None:
    frame = skipping.stored.frame
    at = frame.index[(frame["attack"] == "PGD") & (frame["eps"] == 0.03) & frame["attacked"]
                     & frame["clean_correct"] & ~frame["fooled"]][:1]  # fmt: skip
    forged = frame.copy()
    forged.loc[at, "attacked"], forged.loc[at, "certified"] = False, True
    run = skipping.replace(stored=skipping.stored._replace(frame=forged))
    with pytest.raises(RecordError, match="no certificate proves it"):
        certified.read_certified(run.folder, run.provenance, skipping.worst, forged)


def test_shards_certify_what_they_attack_and_merge_into_the_whole_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk_sizes, "CHUNK_EXAMPLES", 20)
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    suite = read(HEAD.format(top="skip_certified = true") + attack("fgsm", eps=0.004), tmp_path)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    runner.run_suite(suite, whole, RunOptions(device="cpu"))
    for number in (1, 2):
        shard = sharding.Shard(number, 2)
        options = RunOptions(device="cpu", shard=shard)
        runner.run_suite(suite, shard.folder(parts), options)
    merge.merge_runs([parts], parts)
    one, other = read_results(whole), read_results(parts)
    assert records_hash(one.stored.frame) == records_hash(other.stored.frame)
    assert one.stored.frame["certified"].any()
    pd.testing.assert_frame_equal(
        *(run.certified.table.drop(columns="seconds") for run in (one, other))
    )


def test_two_labels_of_one_model_both_leave_certified_examples_out(tmp_path: Path) -> None:
    twin = '[[models]]\nname = "net.py:net"\nlabel = "twin"\n'
    text = HEAD.format(top="skip_certified = true") + twin + attack("fgsm", eps=0.004)
    table = run_suite(tmp_path, text).table
    assert table["certified"].tolist()[0] == table["certified"].tolist()[1] > 0


def test_a_shard_certifies_all_of_a_unit_that_is_larger_than_a_chunk_of_certificates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a folder that was created on a GPU."""
    monkeypatch.setattr(chunk_sizes, "CHUNK_EXAMPLES", 10)
    text = HEAD.format(top="skip_certified = true").replace('"ibp", ', "")
    suite = read(text + attack("fgsm", eps=0.004), tmp_path)
    shard = sharding.Shard(1, 2)
    options = RunOptions(device="cpu", shard=shard, chunk_examples=20)
    runner.run_suite(suite, shard.folder(tmp_path), options)
    paths = (shard.folder(tmp_path) / "records").glob("*.certificates")
    certified_examples = {example for path in paths for example in pd.read_parquet(path)["example"]}
    assert {*range(20)} <= certified_examples
