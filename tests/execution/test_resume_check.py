"""What a folder holds was made by the model that goes on with it, or the run says so and ends."""

import json
from pathlib import Path

import pytest
from torch import Tensor

import bench
from bench.analysis import results
from bench.core.errors import RecordError, SuiteError
from bench.engine.functional import projections
from bench.evaluation import chunk_sizes, consistency
from bench.execution import merge, runner, sharding
from bench.execution.options import RunOptions
from bench.storage import fingerprint
from bench.storage.reader import read_records
from bench.suite import identity, reader

NET = """
from pathlib import Path

import torch
from torch import nn


class Net(nn.Module):
    \"\"\"Its forward reads a file that no identity knows of.\"\"\"

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))

    def forward(self, x):
        way, least = Path(__file__).with_name("mode").read_text().split()
        if way == "broken":
            raise ValueError("no service")
        z = self.net(x)
        amount = x.square().sum((1, 2, 3)) if way == "dark" else (x == 0).float().mean((1, 2, 3))
        other = amount < float(least)
        return torch.where(other[:, None], 3 * z.flip(1), z)


def make():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Net()
"""
SUITE = """
schema = 1
name = "s"
[data]
name = "digits"
limit = 40
[[models]]
name = "net.py:make"
label = "net"
[[attacks]]
name = "fgsm"
norm = "linf"
eps = [0.1, 0.2]
[[attacks]]
name = "ddn"
norm = "l2"
eps = [0.5, 1]
params.steps = 3
"""
MORE = '[[attacks]]\nname = "bim"\nnorm = "linf"\neps = [0.1]\nparams.steps = 2\n'


class Folder:
    """A suite of one net whose answers a file decides, and its run."""

    def __init__(self, base: Path) -> None:
        self.base, self.out = base, base / "out"
        self.texts: list[str] = []
        (base / "net.py").write_text(NET, encoding="utf-8")
        self.let("dark", 0)

    def let(self, way: str, least: float) -> None:
        """Let the net answer otherwise to images that are darker, or that have fewer zeros."""
        (self.base / "mode").write_text(f"{way} {least}", encoding="utf-8")

    def run(self, more: str = "", text: str = "1/1", **options: object) -> Path:
        path = self.base / "s.toml"
        path.write_text(SUITE + more, encoding="utf-8")
        self.texts.clear()
        shard = sharding.parse_shard(text)
        given = RunOptions(device="cpu", copied=False, shard=shard, **options)  # type: ignore[arg-type]
        runner.run_suite(
            reader.read_suite(path), shard.folder(self.out), given,
            lambda event: self.texts.append(event.text),
        )  # fmt: skip
        return shard.folder(self.out)

    def hash_records(self, out: Path | None = None) -> str:
        return fingerprint.records_hash(read_records(out or self.out).frame)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def beyond_the_probes(x: Tensor) -> float:
    """A darkness that none of the first 16 images has, which a fingerprint may know of, but one of
    the next 16 has."""
    amount = x.square().sum((1, 2, 3))
    assert amount[16:32].min() < amount[:16].min() - 1
    return float(amount[:16].min()) - 1


@pytest.mark.parametrize("what", ["clean", "adversarial"])
def test_a_model_that_became_another_one_ends_the_run_and_loses_nothing(
    folder: Folder, digits: tuple[Tensor, Tensor], what: str
) -> None:
    folder.run()
    before = folder.hash_records()
    if what == "clean":
        folder.let("dark", beyond_the_probes(digits[0]))
    else:  # an attack turns some of the many black pixels grey
        folder.let("moved", float((digits[0][:40] == 0).float().mean((1, 2, 3)).min()))
    where = r"clean example \d+" if what == "clean" else r"example \d+ under (fgsm|ddn) at eps \S+"
    for more in ("", MORE):
        with pytest.raises(SuiteError, match=rf"^model 'net' is not the one .*: {where} was class"):
            folder.run(more)
        assert folder.hash_records() == before
    folder.run(fresh=True)
    assert folder.hash_records() != before


def test_the_same_model_goes_on_whatever_else_is_different(folder: Folder) -> None:
    folder.run()
    before = folder.hash_records()
    folder.run(batch_size=7)
    assert folder.hash_records() == before
    folder.let("broken", 0)
    with pytest.raises(SuiteError, match="no service"):  # preflight's sentence, not a trace
        folder.run(MORE)


def test_shards_and_isolated_runs_are_checked_and_merged_only_if_the_model_was_one(
    folder: Folder,
    digits: tuple[Tensor, Tensor],
    forked_workers: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chunk_sizes, "CHUNK_EXAMPLES", 40)
    folder.run(text="1/2")
    folder.let("dark", beyond_the_probes(digits[0]))
    with pytest.raises(SuiteError, match=r"records in .*shard-1-of-2 .*clean example"):
        folder.run(text="1/2")
    with pytest.raises(SuiteError, match=r"records in .*shard-1-of-2 .*clean example"):
        bench.run(str(folder.base / "s.toml"), folder.out, shard="1/2", device="cpu", isolate=True)
    folder.run(text="2/2")
    with pytest.raises(RecordError, match=r"model 'net' was not the same in both: clean example"):
        merge.merge_runs([folder.out], folder.out)
    monkeypatch.setattr(consistency, "MAX_DIFFERING_SHARE", 1.0)
    assert merge.merge_runs([folder.out], folder.out).missing == []


def test_another_version_of_torch_is_a_note_for_who_goes_on_and_who_reads(folder: Folder) -> None:
    folder.run()
    notes = results.read_results(folder.out).notes
    path = folder.out / "provenance.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    here = document["sessions"][0]["environment"]["packages"]["torch"]
    document["sessions"][0]["environment"]["packages"] |= {"torch": "1.0", "timm": "0.1"}
    path.write_text(json.dumps(document), encoding="utf-8")
    wanted = f"The records of this folder were made with torch 1.0, then {here}: "
    folder.run()  # which does nothing
    assert [text for text in folder.texts if text.startswith("The records")] == []
    assert results.read_results(folder.out).notes == notes
    folder.run(MORE)
    (note,) = [text for text in folder.texts if text.startswith("The records")]
    assert note.startswith(wanted)
    assert results.read_results(folder.out).notes == [*notes, note]


# ---------------------------------------------------------------- what the identity does cover

LENET = """
schema = 1
name = "s"
[data]
name = "digits"
limit = 20
[[models]]
name = "lenet"
weights = "digits"
[[attacks]]
norm = "linf"
eps = [0.3]
"""
MINE = """
from dataclasses import dataclass

from bench import Attack
from {helper} import moved


@dataclass(frozen=True, kw_only=True)
class Params:
    pass


def run(model, x, y, threat, params, noise):
    return moved(x, threat.eps)


ATTACK = Attack(
    summary="mine", source="mine", params=Params, norms=("linf",), run=run, needs="nothing"
)
"""


def robust(base: Path, attack: str) -> int:
    """Examples of the run in a folder that are robust, once it went on with this attack."""
    path = base / "s.toml"
    path.write_text(LENET + attack, encoding="utf-8")
    table = bench.run(str(path), base / "out", device="cpu", copied=False).table
    return int(table["robust_correct"].item())


def test_a_module_that_the_user_s_attack_imports_is_part_of_its_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    helper = f"moves_{tmp_path.name.replace('-', '_')}"
    (tmp_path / "mine.py").write_text(MINE.format(helper=helper), encoding="utf-8")
    inverted = "def moved(x, eps):\n    return x + eps * (1 - 2 * x).clamp(-1, 1)\n"
    (tmp_path / f"{helper}.py").write_text(inverted, encoding="utf-8")
    attack = 'name = "mine.py:ATTACK"\n'
    strong = robust(tmp_path, attack)
    nothing = "def moved(x, eps):\n    return x + 0.01 * eps * (1 - 2 * x)\n"
    (tmp_path / f"{helper}.py").write_text(nothing, encoding="utf-8")
    assert robust(tmp_path, attack) > strong


def test_a_projection_that_changed_makes_its_cells_again_once_the_numerics_version_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = 'name = "pgd"\nparams.steps = 5\n'
    assert robust(tmp_path, attack) < 5
    monkeypatch.setattr(
        projections, "project_into", lambda x, box, x0, eps, norm: x0 + 0.01 * (1 - 2 * x0)
    )
    # Without it the old number stays; tests/golden fails then, whoever changed the projection.
    monkeypatch.setattr(identity, "NUMERICS_VERSION", identity.NUMERICS_VERSION + 1)
    assert robust(tmp_path, attack) > 15
