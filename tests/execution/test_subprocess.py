"""Models that crash, hang or exhaust memory beside a sound one: their cells alone fail.

Workers are forked from a process that has imported everything, but for one that is spawned as
users' are.
"""

import os
import signal
import sys
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import NamedTuple

import pandas as pd
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


class Faulty(nn.Module):
    '''Fails when asked about so many images at once, once so many files of records are there.'''

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


def sleep():
    Path(__file__).with_name("hangs").touch()
    ctypes.PyDLL(None).sleep(1000)  # in C: no other thread of Python runs


def eat():
    held = []
    while True:
        held.append(torch.ones(2**22))  # 16 MiB, touched


WAYS = {
    "exits": lambda: os._exit(3),
    "segfaults": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "loops": loop,
    "sleeps": sleep,
    "eats": eat,
}


def faulty(way, least, most=1000, after=0):
    return Faulty(way, least, most, after)


def exits_when_loaded():
    os._exit(5)


def loops_when_loaded():
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
name = "faulty"
[data]
name = "digits"
limit = 40
"""
FAULTY = """
[[models]]
name = "mine.py:faulty"
label = "{way}"
params = {{ way = "{way}", {when} }}
"""
SOUND = """
[[models]]
name = "softmax"
label = "sound"
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
"""When a model fails: in the passes that time it, of 64 rows; asked about all 40 clean images;
asked about few, as when it is probed, once all four files of records are there."""
OPTIONS = RunOptions(device="cpu", batch_size=64)
SECONDS = 5
"""Time limit: long for a sound model even on a busy machine; its calls take milliseconds."""
LIMITS = Limits(seconds=SECONDS, memory=2**30)
REASONS = {
    "exits": "its process ended itself with exit code 3",
    "segfaults": "its process was killed by SIGSEGV (Segmentation fault)",
    "loops": f"no sign of life for {SECONDS} s, the time limit of one pass",
    "sleeps": f"no sign of life for {SECONDS} s, the time limit of one pass",
    "eats": "of memory and was killed; the limit is 1.0GiB",
}
pytestmark = pytest.mark.usefixtures("forked_workers")


def write_suite(folder: Path, *parts: str) -> reader.Suite:
    (folder / "mine.py").write_text(MINE, encoding="utf-8")
    (folder / "s.toml").write_text("".join(parts), encoding="utf-8")
    return reader.read_suite(str(folder / "s.toml"))


def run_isolated(suite: reader.Suite, out: Path, limits: Limits) -> list[Event]:
    events: list[Event] = []
    runner.run_suite(suite, out, OPTIONS, events.append, SubprocessBackend(limits))
    return events


def hash_records(out: Path, model: str) -> str:
    frame = read_records(out).frame
    return fingerprint.records_hash(frame[frame["model"] == model].reset_index(drop=True))


class Faults(NamedTuple):
    """A run of a model for each fault, and of a sound one."""

    folder: Path
    table: pd.DataFrame
    events: list[Event]


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory, warm: ForkServerContext) -> Faults:
    """The model that exits does so when it is timed, the others when asked about clean images."""
    folder = tmp_path_factory.mktemp("faults")
    faulty = [FAULTY.format(way=way, when=TIMED if way == "exits" else CLEAN) for way in REASONS]
    suite = write_suite(folder, HEAD, *faulty, SOUND, ATTACKS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("multiprocessing.get_context", lambda method: warm)
        events = run_isolated(suite, folder / "out", LIMITS)
    return Faults(folder, results.read_results(folder / "out").table.set_index("model"), events)


def test_a_sound_model_has_the_records_of_a_run_in_one_process_whatever_the_others_do(
    faults: Faults, tmp_path: Path
) -> None:
    assert set(faults.table.loc["sound", "status"]) == {"ok"}
    runner.run_suite(write_suite(tmp_path, HEAD, SOUND, ATTACKS), tmp_path / "out", OPTIONS)
    assert hash_records(faults.folder / "out", "sound") == hash_records(tmp_path / "out", "sound")


@pytest.mark.parametrize("way", REASONS)
def test_a_faulty_model_fails_in_each_of_its_cells_for_its_reason(faults: Faults, way: str) -> None:
    cells = faults.table.loc[way]
    assert set(cells["status"]) == {"failed"}
    (reason,) = set(cells["reason"])
    assert REASONS[way] in reason
    events = [each for each in faults.events if each.what == "failed" and way in each.text]
    assert [event.about["eps"] for event in events] == [["0.02", "0.05"]]


def test_a_stream_that_kills_its_process_is_tried_cell_by_cell(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, HEAD, SOUND, STREAM)
    events = run_isolated(suite, tmp_path / "out", Limits())
    table = results.read_results(tmp_path / "out").table.set_index("eps_text")
    status = {"0.02": "ok", "0.05": "failed", "0.07": "failed", "0.09": "ok"}
    assert table["status"].to_dict() == status
    assert table.loc["0.05", "reason"] == "its process ended itself with exit code 6"
    assert "of mine" in table.loc["0.07", "reason"]
    for sentence in ("its eps are tried one at a time", "tried once more in a new process"):
        assert sum(sentence in event.text for event in events) == 1
    tried = (tmp_path / "tried").read_text(encoding="utf-8").split()
    assert tried.count("0.07") == 1  # what failed for what it raised, no other child tries again
    failed = [event.about["eps"] for event in events if event.what == "failed"]
    assert sorted(failed) == [["0.05"], ["0.07"]]


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("exits_when_loaded", "ended itself with exit code 5"),
        ("loops_when_loaded", f"gave no sign of life for {SECONDS} s"),
    ],
)
def test_a_model_that_does_not_survive_being_loaded_is_one_sentence_and_ends_the_run_with_2(
    tmp_path: Path, factory: str, reason: str
) -> None:
    faulty = f'[[models]]\nname = "mine.py:{factory}"\nlabel = "faulty"\n'
    write_suite(tmp_path, HEAD, SOUND, faulty, ATTACKS)
    words = ["run", str(tmp_path / "s.toml"), "--out", str(tmp_path / "out")]
    limit = ["--time-limit", str(SECONDS)]
    done = CliRunner().invoke(cli, [*words, *limit], standalone_mode=False)
    assert done.return_value == 2
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("bench: ")]
    assert sentence.startswith(f"bench: model 'faulty', loading it: its process {reason}")
    assert not (tmp_path / "out" / "run.lock").exists()


def test_what_the_worker_refuses_the_parent_refuses_in_the_same_words(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, HEAD, SOUND.replace("random", "none.safetensors"), ATTACKS)
    with pytest.raises(SuiteError) as here:
        runner.run_suite(suite, tmp_path / "here", OPTIONS)
    with pytest.raises(SuiteError) as there:
        run_isolated(suite, tmp_path / "there", Limits())
    assert str(there.value) == str(here.value)


def test_a_model_that_dies_when_it_is_probed_keeps_its_cells(tmp_path: Path) -> None:
    write_suite(tmp_path, HEAD, FAULTY.format(way="exits", when=PROBED), SOUND, ATTACKS)
    place = str(tmp_path / "s.toml")
    run = bench.run(place, tmp_path / "out", device="cpu", batch_size=64, isolate=True)
    assert set(run.table["status"]) == {"ok"}
    assert "exit code 3" in run.provenance["probes"]["exits"]["failed"]
    assert run.provenance["probes"]["sound"]["failed"] == ""


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the child in /proc")
def test_a_spawned_worker_whose_parent_is_killed_ends_though_its_model_hangs_in_c(
    tmp_path: Path, warm: ForkServerContext
) -> None:
    write_suite(tmp_path, HEAD, FAULTY.format(way="sleeps", when=CLEAN), ATTACKS)
    options = {"device": "cpu", "batch_size": 64, "isolate": True}
    # Its own workers are spawned: what this module replaces is not replaced there.
    parent = warm.Process(
        target=bench.run, args=(str(tmp_path / "s.toml"), tmp_path / "out"), kwargs=options
    )
    parent.start()
    assert parent.pid is not None
    ends = time.monotonic() + 120
    while not (tmp_path / "hangs").exists():
        assert time.monotonic() < ends
        time.sleep(0.02)
    listed = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text(encoding="ascii")
    children = [int(process) for process in listed.split()]
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    ends = time.monotonic() + 30
    while (left := [child for child in children if is_alive(child)]) and time.monotonic() < ends:
        time.sleep(0.02)
    for child in left:
        os.kill(child, signal.SIGKILL)
    assert children
    assert left == []


def is_alive(process: int) -> bool:
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


ENDLESS = """
import time
from dataclasses import dataclass
from bench import Attack


@dataclass(frozen=True, kw_only=True)
class Params:
    pass


def run(model, x, y, threat, params, noise):
    while True:
        model(x)
        time.sleep(0.01)


ENDLESS = Attack(summary="s", source="s", params=Params, norms=("linf",), run=run)
"""


@pytest.mark.usefixtures("forked_workers")
def test_an_isolated_unit_reports_its_passes_and_is_all_that_an_interruption_loses(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine.py").write_text(ENDLESS, encoding="utf-8")
    entries = "".join(
        f'[[attacks]]\nname = "{name}"\nlabel = "{label}"\nnorm = "linf"\neps = [0.1]\n'
        for name, label in (("fgsm", "first"), ("mine.py:ENDLESS", "endless"))
    )
    (tmp_path / "s.toml").write_text(
        'schema = 1\nname = "s"\ndata = { name = "digits", limit = 8 }\n'
        f'models = [{{ name = "lenet", weights = "digits" }}]\n{entries}',
        encoding="utf-8",
    )
    events: list[Event] = []

    def listen(event: Event) -> None:
        events.append(event)
        if event.what == "progress":
            raise KeyboardInterrupt

    suite, out = reader.read_suite(str(tmp_path / "s.toml")), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        runner.run_suite(suite, out, RunOptions(device="cpu"), listen, SubprocessBackend(Limits()))
    assert events[-1].about["attack"] == "endless"
    assert events[-1].about["passes"] > 0
    done = {event.about["attack"] for event in events if event.what == "done"}
    assert set(read_records(out).frame["attack"]) == done == {"first"}
