"""Models that crash, hang or eat memory, each beside one that is well: their cells alone fail."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import bench
from bench.analysis import results
from bench.cli import cli
from bench.core.errors import SuiteError
from bench.execution import runner
from bench.execution.backends.limits import Limits, parse_limits
from bench.execution.backends.subprocess import SubprocessBackend
from bench.execution.events import Event
from bench.execution.options import RunOptions
from bench.storage import fingerprint
from bench.storage.reader import read_records
from bench.suite import reader

MINE = """
import ctypes, os, signal
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from bench import Attack

RECORDS = Path(__file__).with_name("out") / "records"


class Sick(nn.Module):
    '''Well but for so many images at once, once so many files of records are there.'''

    def __init__(self, way, least, most, after):
        super().__init__()
        self.way, self.least, self.most, self.after = way, least, most, after
        self.layer = nn.Linear(784, 10)
        self.layer.bias.data[0] = 5.0  # so that it is right about zeros

    def forward(self, x):
        if self.least <= len(x) <= self.most and len([*RECORDS.glob("*.parquet")]) >= self.after:
            WAYS[self.way]()
        return self.layer(x.flatten(1))

    def extra_repr(self):
        return self.way  # else two of them are one model


def loop():
    while True:
        pass


def eat():
    held = []
    while True:
        held.append(torch.ones(2**22))  # 16 MiB, touched


WAYS = {
    "exits": lambda: os._exit(3),
    "segfaults": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "loops": loop,
    "sleeps": lambda: ctypes.PyDLL(None).sleep(1000),  # in C: no other thread of Python runs
    "eats": eat,
}


def sick(way, least, most=1000, after=0):
    return Sick(way, least, most, after)


def unborn():
    os._exit(5)


def stillborn():
    loop()


@dataclass(frozen=True, kw_only=True)
class Params:
    pass


def deadly(model, x, y, threat, params, noise):
    with Path(__file__).with_name("tried").open("a") as file:
        file.write(f"{threat.eps} ")
    if threat.eps == 0.05:
        os._exit(6)
    if threat.eps == 0.07:
        raise ValueError("of mine")
    return (x + threat.eps).clamp(0, 1)


ATTACK = Attack(summary="deadly", source="here", run=deadly, norms=("linf",), params=Params)
"""
HEAD = """
schema = 1
name = "sick"
[data]
name = "digits"
limit = 40
"""
SICK = """
[[models]]
name = "mine.py:sick"
label = "{way}"
params = {{ way = "{way}", {when} }}
"""
WELL = """
[[models]]
name = "softmax"
label = "well"
weights = "random"
"""
ATTACKS = """
[[attacks]]
name = "fgsm"
norm = "linf"
eps = [0.02, 0.05]
[[attacks]]
name = "pgd"
norm = "linf"
eps = [0.05]
params = { steps = 3 }
"""
STREAM = """
[[attacks]]
name = "mine.py:ATTACK"
label = "deadly"
norm = "linf"
eps = [0.02, 0.05, 0.07, 0.09]
"""
TIMED, CLEAN, PROBED = "least = 64", "least = 40, most = 40", "least = 2, most = 15, after = 4"
"""When a model is sick: in the passes that time it, of 64 rows; asked about all 40 clean images;
asked about few, as when it is probed, once all four files of records are there."""
OPTIONS = RunOptions(device="cpu", batch_size=64)
UNLIMITED, LIMITS = Limits(), Limits(seconds=5, memory=2**30)


def written(folder: Path, *parts: str) -> reader.Suite:
    (folder / "mine.py").write_text(MINE, encoding="utf-8")
    (folder / "s.toml").write_text("".join(parts), encoding="utf-8")
    return reader.read_suite(str(folder / "s.toml"))


def isolated(given: reader.Suite, out: Path, limits: Limits = UNLIMITED) -> list[Event]:
    heard: list[Event] = []
    backend = SubprocessBackend(limits)
    runner.run_suite(given, out, OPTIONS, heard.append, backend)
    return heard


def said(out: Path, model: str) -> str:
    frame = read_records(out).frame
    return fingerprint.records_hash(frame[frame["model"] == model].reset_index(drop=True))


def test_a_model_that_ends_its_process_fails_alone_and_the_other_has_the_records_of_one_process(
    tmp_path: Path,
) -> None:
    sick = SICK.format(way="exits", when=TIMED)
    heard = isolated(written(tmp_path, HEAD, sick, WELL, ATTACKS), tmp_path / "out")
    table = results.read_results(tmp_path / "out").table.set_index("model")
    assert set(table.loc["exits", "status"]) == {"failed"}
    assert set(table.loc["exits", "reason"]) == {"its process ended itself with exit code 3"}
    assert [event.about["eps"] for event in heard if event.what == "failed"] == [["0.02", "0.05"]]
    runner.run_suite(written(tmp_path, HEAD, WELL, ATTACKS), tmp_path / "here", OPTIONS)
    assert said(tmp_path / "out", "well") == said(tmp_path / "here", "well")


@pytest.mark.slow
def test_each_way_to_be_sick_is_told_and_the_run_ends(tmp_path: Path) -> None:
    whys = {
        "segfaults": "its process was killed by SIGSEGV (Segmentation fault)",
        "loops": "no sign of life for 5 s, the time limit of one pass",
        "sleeps": "no sign of life for 5 s, the time limit of one pass",
        "eats": "of memory and was killed; the limit is 1.0GiB",
    }
    sick = "".join(SICK.format(way=way, when=CLEAN) for way in whys)
    heard = isolated(written(tmp_path, HEAD, sick, WELL, ATTACKS), tmp_path / "out", LIMITS)
    table = results.read_results(tmp_path / "out").table.set_index("model")
    assert set(table.loc["well", "status"]) == {"ok"}
    for way, why in whys.items():
        assert set(table.loc[way, "status"]) == {"failed"}
        (told,) = set(table.loc[way, "reason"])
        assert why in told
    assert sum(event.what == "failed" for event in heard) == len(whys)


@pytest.mark.slow
def test_a_stream_that_kills_its_process_is_tried_cell_by_cell(tmp_path: Path) -> None:
    heard = isolated(written(tmp_path, HEAD, WELL, STREAM), tmp_path / "out")
    table = results.read_results(tmp_path / "out").table.set_index("eps_text")
    status = {"0.02": "ok", "0.05": "failed", "0.07": "failed", "0.09": "ok"}
    assert table["status"].to_dict() == status
    assert table.loc["0.05", "reason"] == "its process ended itself with exit code 6"
    assert "of mine" in table.loc["0.07", "reason"]
    for told in ("its eps are tried one at a time", "tried once more in a new process"):
        assert sum(told in event.text for event in heard) == 1
    tried = (tmp_path / "tried").read_text(encoding="utf-8").split()
    assert tried.count("0.07") == 1  # what failed for what it raised, no other child tries again
    failed = [event.about["eps"] for event in heard if event.what == "failed"]
    assert sorted(failed) == [["0.05"], ["0.07"]]


@pytest.mark.parametrize(
    ("factory", "why"),
    [
        ("unborn", "ended itself with exit code 5"),
        pytest.param("stillborn", "gave no sign of life for 5 s", marks=pytest.mark.slow),
    ],
)
def test_a_model_that_does_not_survive_being_loaded_is_one_sentence_and_ends_the_run_with_2(
    tmp_path: Path, factory: str, why: str
) -> None:
    sick = f'[[models]]\nname = "mine.py:{factory}"\nlabel = "sick"\n'
    written(tmp_path, HEAD, WELL, sick, ATTACKS)
    words = ["run", str(tmp_path / "s.toml"), "--out", str(tmp_path / "out"), "--time-limit", "5"]
    done = CliRunner().invoke(cli, words, standalone_mode=False)
    assert done.return_value == 2
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("bench: ")]
    assert told.startswith(f"bench: model 'sick', loading it: its process {why}")
    assert not (tmp_path / "out" / "run.lock").exists()


@pytest.mark.slow
def test_what_the_child_refuses_the_parent_refuses_in_the_same_words(tmp_path: Path) -> None:
    given = written(tmp_path, HEAD, WELL.replace("random", "none.safetensors"), ATTACKS)
    with pytest.raises(SuiteError) as here:
        runner.run_suite(given, tmp_path / "here", OPTIONS)
    with pytest.raises(SuiteError) as there:
        isolated(given, tmp_path / "there")
    assert str(there.value) == str(here.value)


@pytest.mark.slow
def test_a_model_that_dies_when_it_is_probed_keeps_its_cells(tmp_path: Path) -> None:
    written(tmp_path, HEAD, SICK.format(way="exits", when=PROBED), WELL, ATTACKS)
    place = str(tmp_path / "s.toml")
    found = bench.run(place, tmp_path / "out", device="cpu", batch_size=64, isolate=True)
    assert set(found.table["status"]) == {"ok"}
    assert "exit code 3" in found.provenance["probes"]["exits"]["failed"]
    assert found.provenance["probes"]["well"]["failed"] == ""


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the child in /proc")
@pytest.mark.slow
def test_a_child_whose_parent_is_killed_ends_though_its_model_hangs_in_c(tmp_path: Path) -> None:
    written(tmp_path, HEAD, SICK.format(way="sleeps", when=CLEAN), ATTACKS)
    words = ["run", str(tmp_path / "s.toml"), "--out", str(tmp_path / "out"), "--isolate"]
    parent = subprocess.Popen([sys.executable, "-m", "bench", *words, "--batch-size", "64"])
    ends = time.monotonic() + 60
    while not list((tmp_path / "out").glob("records/clean*")):  # the child is at work
        assert time.monotonic() < ends
        time.sleep(0.1)
    listed = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text(encoding="ascii")
    children = [int(process) for process in listed.split()]
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert children
    while any(alive(child) for child in children):
        assert time.monotonic() < ends
        time.sleep(0.1)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_limits_are_read_or_refused_in_one_sentence() -> None:
    assert parse_limits(False, None, None) is None
    assert parse_limits(True, None, None) == Limits()
    assert parse_limits(False, 2.0, "2 GB") == Limits(2.0, 2 * 10**9)
    for size in ("2", "GB", "-1GiB", "1.5.GiB", "2 apples"):
        with pytest.raises(SuiteError, match="expected a number and a unit, such as 1500MB"):
            parse_limits(False, None, size)
    with pytest.raises(SuiteError, match="expected seconds above 0, got 0"):
        parse_limits(False, 0.0, None)
