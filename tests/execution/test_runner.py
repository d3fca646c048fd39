"""Whole runs on real digits: resume, interruption, broken attacks, code of the user's own."""

import os
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import bench
from bench.analysis import results
from bench.core.errors import RecordError, SuiteError
from bench.execution import runner
from bench.execution.events import Event
from bench.execution.options import RunOptions
from bench.storage.reader import read_pieces
from bench.suite import reader

LENET = '[[models]]\nname = "lenet"\nweights = "digits"\n'
COUNTS = ["attack", "eps", "status", "n", "clean_correct", "robust_correct", "fooled", "violations"]

MINE = """
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from bench import Attack
from bench.datasets import digits


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        first, last = nn.Linear(784, width), nn.Linear(width, 10)
        self.net = nn.Sequential(nn.Flatten(), first, nn.ReLU(), last)

    def forward(self, x):
        with Path(__file__).with_name("passes").open("a") as file:
            file.write(f"{len(x)}\\n")
        return self.net(x)


def make(width=16):
    return Net(width)


def data(limit):
    loaded = digits.load(limit=limit)
    return loaded.read(0, loaded.n), loaded.labels


@dataclass(frozen=True, kw_only=True)
class Params:
    size: float = 1.0


def attack(run, **keys):
    keys = {"norms": ("linf",), "params": Params, **keys}
    return Attack(summary="mine", source="mine", run=run, **keys)


def towards_white(model, x, y, threat, params, noise):
    return (x + threat.eps * params.size).clamp(0, 1)


WHITE = attack(towards_white)
"""


def attacks(*keys: str, eps: str = "[0, 0.1]") -> str:
    return "".join(f'[[attacks]]\nnorm = "linf"\neps = {eps}\n{each}\n' for each in keys)


def written(folder: Path, *parts: str, data: str = 'name = "digits"\nlimit = 60') -> str:
    path = folder / "mine.toml"
    head = f'schema = 1\nname = "mine"\n[data]\n{data}\n'
    path.write_text(head + "\n".join(parts or (LENET,)), encoding="utf-8")
    return str(path)


def run(path: str, out: Path, rows: int = 32, **keys: object) -> pd.DataFrame:
    return bench.run(path, out=out, batch_size=rows, device="cpu", **keys).table  # type: ignore[arg-type]


def counts(table: pd.DataFrame) -> list[list[object]]:
    return table[COUNTS].to_numpy().tolist()


def files(out: Path) -> dict[str, tuple[int, bytes]]:
    paths = (out / "records").glob("*.parquet")
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with code of the user's own, and weights for its net."""
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10))
    torch.save({f"net.{k}": v for k, v in layers.state_dict().items()}, tmp_path / "mine.pt")
    return tmp_path


OWN = '[[models]]\nname = "mine.py:make"\nweights = "mine.pt"\nlabel = "net"\n'
OWN_DATA = 'name = "mine.py:data"\nlimit = 60'


# ------------------------------------------------------------------------------------------ resume


def test_a_second_run_does_no_work_and_changes_no_file(tmp_path: Path) -> None:
    path = written(tmp_path, LENET, attacks('name = "fgsm"', 'name = "pgd"\nparams.steps = 3'))
    first = run(path, tmp_path / "out")
    before = files(tmp_path / "out")
    events: list[Event] = []
    options = RunOptions(device="cpu", batch_size=32)
    runner.run_suite(reader.read_suite(path), tmp_path / "out", options, events.append)
    reported = [(event.what, event.work) for event in events if event.what != "why"]
    assert reported == [("start", 0.0)]
    assert files(tmp_path / "out") == before
    assert counts(run(path, tmp_path / "out")) == counts(first)


def test_a_second_run_asks_the_model_nothing_but_what_tells_that_it_is_the_same(own: Path) -> None:
    def asked() -> int:
        lines = (own / "passes").read_text(encoding="utf-8").split()
        (own / "passes").unlink()
        return sum(map(int, lines))

    more = 'name = "pgd"\nparams.steps = 30'
    path = written(own, OWN, attacks('name = "fgsm"', more), data=OWN_DATA)
    run(path, own / "out")
    first = asked()
    run(path, own / "out")
    # Preflight asks about single images, batches and shifts, the resume check about stored ones.
    assert asked() < 300 < first


def test_another_parameter_runs_only_its_own_attack_again(tmp_path: Path) -> None:
    def attacked(steps: int) -> str:
        return written(
            tmp_path, LENET, attacks('name = "bim"', f'name = "pgd"\nparams.steps = {steps}')
        )

    run(attacked(2), tmp_path / "out")
    before = files(tmp_path / "out")
    run(attacked(3), tmp_path / "out")
    after = files(tmp_path / "out")
    assert before.items() < after.items()
    assert [name[:10] for name in after.keys() - before.keys()] == ["lenet-pgd-"]


def test_a_new_eps_runs_alone(tmp_path: Path) -> None:
    run(written(tmp_path, LENET, attacks('name = "bim"', eps="[0.1]")), tmp_path / "out")
    before = files(tmp_path / "out")
    run(written(tmp_path, LENET, attacks('name = "bim"', eps="[0.05, 0.1]")), tmp_path / "out")
    added = files(tmp_path / "out").keys() - before.keys()
    cells = {piece.cell for piece in read_pieces(tmp_path / "out")}
    assert len(added) == 1
    assert len(cells) == 2


def test_an_attacks_own_file_that_changed_runs_again(own: Path) -> None:
    path = written(own, LENET, attacks('name = "mine.py:WHITE"', 'name = "fgsm"'))
    run(path, own / "out")
    before = files(own / "out")
    (own / "other.py").write_text(MINE + "\n# changed\n", encoding="utf-8")
    path = written(own, LENET, attacks('name = "other.py:WHITE"', 'name = "fgsm"'))
    run(path, own / "out")
    assert len(files(own / "out").keys() - before.keys()) == 1


def test_another_forward_of_the_same_module_is_another_model(tmp_path: Path) -> None:
    code = "from torch import nn\nclass N(nn.Module):\n def forward(self, x):\n  return {}\n"
    cells = []
    for name, body in (("a", "x.flatten(1)[:, 300:310]"), ("b", "x.flatten(1)[:, 310:320]")):
        (tmp_path / f"{name}.py").write_text(code.format(body), encoding="utf-8")
        path = written(tmp_path, f'[[models]]\nname = "{name}.py:N"\n', attacks('name = "fgsm"'))
        cells.append(set(run(path, tmp_path / "out")["cell"]))
    assert cells[0].isdisjoint(cells[1])


def test_an_interrupted_run_goes_on_to_the_table_of_an_undisturbed_one(own: Path) -> None:
    stop = "\n".join(
        [
            "def stopping(model, x, y, threat, params, noise):",
            "    if not Path(__file__).with_name('go on').exists():",
            "        raise KeyboardInterrupt",
            "    return towards_white(model, x, y, threat, params, noise)",
            "STOP = attack(stopping)",
        ]
    )
    (own / "mine.py").write_text(MINE + stop, encoding="utf-8")
    path = written(own, LENET, attacks('name = "bim"', 'name = "mine.py:STOP"', 'name = "fgsm"'))
    with pytest.raises(KeyboardInterrupt):
        run(path, own / "out")
    kept = files(own / "out")
    assert [name[:10] for name in kept] == ["lenet-bim-"]
    (own / "go on").touch()
    resumed = run(path, own / "out")
    assert kept.items() < files(own / "out").items()
    assert counts(resumed) == counts(run(path, own / "undisturbed"))


def test_two_entries_that_mean_the_same_cell_share_its_records(tmp_path: Path) -> None:
    attack = '[[attacks]]\nname = "pgd"\nnorm = "linf"\neps = [0.1]\nparams.steps = 3\n'
    file = tmp_path / "s.toml"
    file.write_text(
        'schema = 1\nname = "s"\n[data]\nname = "digits"\nlimit = 20\n'
        f'{LENET}{attack}label = "a"\n{attack}label = "b"\nbatch_size = 4\n'
        '[[crosschecks]]\nours = "a"\nreference = "b"\n'
    )
    finished = bench.run(str(file), tmp_path / "run", device="cpu")
    assert list(finished.table["n"]) == [20, 20]
    assert finished.table["robust_correct"].nunique() == 1
    assert len(finished.stored.frame) == 20
    assert list(finished.crosschecks["differ"]) == [0]


def test_fresh_starts_over(tmp_path: Path) -> None:
    path = written(tmp_path, LENET, attacks('name = "fgsm"'))
    run(path, tmp_path / "out")
    before = files(tmp_path / "out")
    run(path, tmp_path / "out", fresh=True)
    after = files(tmp_path / "out")
    assert len(after) == len(before) == 1
    assert after != before


def test_a_report_names_damaged_records_and_the_next_run_makes_them_again(tmp_path: Path) -> None:
    path = written(tmp_path, LENET, attacks('name = "fgsm"'))
    whole = run(path, tmp_path / "out")
    (damaged,) = (tmp_path / "out" / "records").glob("*.parquet")
    damaged.write_bytes(damaged.read_bytes()[:-50])
    with pytest.raises(RecordError, match="bench run sets the file aside"):
        results.read_results(tmp_path / "out")
    assert counts(run(path, tmp_path / "out")) == counts(whole)


# ------------------------------------------------------------------------------------- the numbers


def test_counts_do_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        LENET,
        attacks('name = "fgsm"', 'name = "pgd"\nparams.steps = 5', eps="[0.05, 0.1]"),
    )
    few, many = (run(path, tmp_path / str(rows), rows=rows) for rows in (7, 64))
    assert counts(few) == counts(many)


def test_a_suite_and_evaluate_agree_example_by_example(
    tmp_path: Path, digits: tuple[Tensor, Tensor], lenet: nn.Module
) -> None:
    path = written(tmp_path, LENET, attacks('name = "pgd"\nparams.steps = 4'))
    ran = bench.run(path, out=tmp_path / "out", batch_size=32, device="cpu")
    x, y = digits[0][:60], digits[1][:60]
    asked = bench.evaluate(lenet, x, y, eps=[0, 0.1], params={"steps": 4}, batch_size=32)
    assert ran.table["robust_correct"].tolist() == asked.table["robust_correct"].tolist()
    for eps, mine in asked.records.groupby("eps"):
        theirs = ran.stored.frame[ran.stored.frame["eps"] == eps]
        assert theirs["adv_pred"].tolist() == mine["adv_pred"].tolist()


def test_clean_mistakes_are_not_attacked_and_not_robust(tmp_path: Path) -> None:
    path = written(tmp_path, LENET, attacks('name = "fgsm"'))
    frame = bench.run(path, out=tmp_path / "out", batch_size=32, device="cpu").stored.frame
    wrong = frame[~frame["clean_correct"]]
    assert len(wrong) == 2
    assert not wrong["attacked"].any()
    assert (wrong["adv_pred"] == wrong["clean_pred"]).all()


def test_a_targeted_attack_aims_where_the_suite_says(tmp_path: Path) -> None:
    targets = ("next", "complement", "random", "least-likely", "7")
    keys = [f'name = "bim"\nlabel = "{t}"\ngoal = "targeted"\ntarget = "{t}"' for t in targets]
    path = written(tmp_path, LENET, attacks(*keys, eps="[0.3]"))
    run = bench.run(path, out=tmp_path / "out", batch_size=32, device="cpu")
    eligible = run.table.set_index("attack")["eligible"]
    for target, own in run.stored.frame.groupby("attack", observed=True):
        label = own["label"]
        known = {"next": (label + 1) % 10, "complement": 9 - label, "7": label * 0 + 7}
        assert own["target"].equals(known.get(str(target), own["target"])), target
        fooled = own[own["fooled"]]
        assert len(fooled) > 0, target
        assert (fooled["adv_pred"] == fooled["target"]).all(), target
        assert not (fooled["label"] == fooled["target"]).any(), target
        apart = own["clean_correct"] & (label != own["target"])
        assert eligible[target] == int(apart.sum()), target
    assert set(eligible.index) == set(targets)


def test_a_target_that_the_data_does_not_know_stops_the_run_before_it_begins(
    tmp_path: Path,
) -> None:
    key = 'name = "bim"\ngoal = "targeted"\ntarget = "horse"'
    with pytest.raises(SuiteError, match="target 'horse' is no class"):
        run(written(tmp_path, LENET, attacks(key)), tmp_path / "out")
    assert files(tmp_path / "out") == {}


# ------------------------------------------------------------------------------ the user's own code


def test_model_weights_data_and_attack_of_ones_own_run_from_another_folder(
    own: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(own, OWN, attacks('name = "mine.py:WHITE"\nlabel = "white"'), data=OWN_DATA)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    table = run(os.path.relpath(path), Path("out"))
    assert table["status"].tolist() == ["ok", "ok"]
    assert table["n"].tolist() == [60, 60]
    assert table["dataset"].unique().tolist() == ["mine.py:data"]
    assert table["mean_linf"].iloc[1] <= 0.1 + 1e-6 or table["fooled"].iloc[1] == 0


def test_weights_of_ones_own_may_be_safetensors(own: Path) -> None:
    state = torch.load(own / "mine.pt", weights_only=True)
    save_file(state, own / "mine.safetensors")
    tables = [
        run(written(own, model, attacks('name = "fgsm"'), data=OWN_DATA), own / "out")
        for model in (OWN, OWN.replace("mine.pt", "mine.safetensors"))
    ]
    assert tables[0]["cell"].tolist() == tables[1]["cell"].tolist()


BROKEN = {
    "raise ValueError('no way')": ("failed", "ValueError: no way (broken.py:10)"),
    "raise SystemExit(0)": ("failed", "SystemExit: 0 (broken.py:10)"),
    "return None": ("failed", "expected the attack to return a tensor, got NoneType"),
    "return x[:, :, :-1]": ("failed", "expected the attack to return (32, 1, 28, 28)"),
    "return x.double()": ("failed", "torch.float64"),
    "return x[:-1]": ("failed", "got (31, 1, 28, 28)"),
    "return x * float('nan')": ("violation", "image is not finite"),
    "return x + 1": ("violation", "pixels in [1, 2], allowed [0, 1]"),
    "return 1 - x": ("violation", "linf distance"),
    "return x": ("ok", ""),
    "model.train(); return x": ("ok", ""),
    "x.zero_(); y.zero_(); return x0": ("ok", ""),
    "torch.manual_seed(1); return x": ("ok", ""),
    "[p.data.zero_() for p in model.parameters()]; return x": ("failed", "changed the model"),
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame, pd.DataFrame]:
    """One run of every broken attack, and a sound one after them: folder, table, records."""
    folder = tmp_path_factory.mktemp("broken")
    code = [MINE.partition("class Net")[0], MINE[MINE.index("@dataclass") :]]
    bodies = "".join(
        f"\n\ndef f{i}(model, x, y, threat, params, noise):\n x0 = x.clone(); {body}\n"
        f"A{i} = attack(f{i})\n"
        for i, body in enumerate(BROKEN)
    )
    (folder / "broken.py").write_text("".join(code) + bodies, encoding="utf-8")
    keys = [f'name = "broken.py:A{i}"\nlabel = "{i}"' for i in range(len(BROKEN))]
    path = written(folder, LENET, attacks(*keys, 'name = "fgsm"', eps="[0.1]"))
    finished = bench.run(path, out=folder / "out", batch_size=32, device="cpu")
    return folder, finished.table.set_index("attack"), finished.violations.set_index("attack")


@pytest.mark.parametrize("index", range(len(BROKEN)), ids=list(BROKEN))
def test_a_broken_attack_gives_the_outcome_that_it_deserves(
    broken: tuple[Path, pd.DataFrame, pd.DataFrame], index: int
) -> None:
    outcome, part = list(BROKEN.values())[index]
    row, violations = broken[1].loc[str(index)], broken[2]
    assert row["status"] == ("ok" if outcome == "ok" else "failed")
    if outcome == "ok":
        assert row["robust_correct"] == row["clean_correct"] == 59
        assert row["violations"] == 0
        return
    assert part.partition(" (broken")[0] in row["reason"]
    assert pd.isna(row["robust_accuracy"])
    if outcome == "violation":
        assert "59 of 59 attacked images are violations, the first of them ex" in row["reason"]
        assert violations.loc[str(index), "violation"].str.contains(part, regex=False).any()


def test_what_broke_leaves_the_next_attack_alone(
    broken: tuple[Path, pd.DataFrame, pd.DataFrame], tmp_path: Path
) -> None:
    alone = run(written(tmp_path, LENET, attacks('name = "fgsm"', eps="[0.1]")), tmp_path / "out")
    assert broken[1].loc["fgsm", "robust_correct"] == alone["robust_correct"].item() < 30


def test_a_failed_cell_is_tried_again_by_the_next_run(own: Path) -> None:
    body = "    Path(__file__).with_name('whole').stat()\n    return a[1]\n"
    code = f"\ndef f(*a):\n{body}F = attack(f)\n"
    (own / "mine.py").write_text(MINE + code, encoding="utf-8")
    path = written(own, LENET, attacks('name = "mine.py:F"', 'name = "fgsm"', eps="[0.1]"))
    assert run(path, own / "out")["status"].tolist() == ["failed", "ok"]
    before = files(own / "out")
    (own / "whole").touch()
    assert run(path, own / "out")["status"].tolist() == ["ok", "ok"]
    assert before.items() < files(own / "out").items()


def test_an_impossible_pairing_is_skipped_and_the_rest_runs(tmp_path: Path) -> None:
    table = run(
        written(
            tmp_path, LENET, attacks('name = "torchattacks:TIFGSM"', 'name = "fgsm"', eps="[0.1]")
        ),
        tmp_path / "out",
    )
    assert table["status"].tolist() == ["skipped", "ok"]
    assert "needs 3 channels" in table["reason"].iloc[0]


def test_a_folder_that_cannot_be_written_is_one_sentence_before_anything_runs(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    path = written(tmp_path, LENET, attacks('name = "fgsm"'))
    with pytest.raises(SuiteError, match="could not be written"):
        run(path, tmp_path / "file" / "out")


def test_sessions_are_added_to_the_provenance_and_kept(tmp_path: Path) -> None:
    path = written(tmp_path, LENET, attacks('name = "fgsm"'))
    out = tmp_path / "out"
    runs = [bench.run(path, out=out, batch_size=32, device="cpu") for _ in range(2)]
    first, second = (each.provenance["sessions"] for each in runs)
    assert first[0] in second
    assert all(session["finished"] for session in second)
