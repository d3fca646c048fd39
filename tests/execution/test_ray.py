"""The same run by workers of Ray, some of which die."""

import functools
import importlib.util
import itertools
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.analysis import results
from bench.cli import cli
from bench.core.errors import SuiteError
from bench.execution import merge, runner, sharding
from bench.execution.backends import ray
from bench.execution.events import Event
from bench.execution.options import RunOptions
from bench.storage import fingerprint
from bench.storage.reader import read_records
from bench.suite import reader

MINE = """
import os, signal, time
from dataclasses import dataclass
from pathlib import Path

from bench import Attack

HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Params:
    pass


def slow(model, x, y, threat, params, noise):
    '''Says which process it is in, and takes its time as long as the test wants.'''
    (HERE / f"at-{os.getpid()}").touch()
    while (HERE / "wait").exists():
        time.sleep(0.02)
    return (x + threat.eps).clamp(0, 1)


def deadly(model, x, y, threat, params, noise):
    with (HERE / "tried").open("a") as file:
        file.write(f"{threat.eps} ")
    if threat.eps == 0.05:
        os.kill(os.getpid(), signal.SIGKILL)
    return (x + threat.eps).clamp(0, 1)


def attack(run):
    return Attack(summary="mine", source="here", run=run, norms=("linf",), params=Params)


SLOW, DEADLY = attack(slow), attack(deadly)
"""
SUITE = """
schema = 1
name = "spread"
[data]
name = "digits"
limit = 40
[[models]]
name = "softmax"
weights = "random"
[[attacks]]
name = "mine.py:NAME"
label = "mine"
norm = "linf"
eps = [0.02, 0.05]
[[attacks]]
name = "pgd"
norm = "linf"
eps = [0.02, 0.05]
params = { steps = 3 }
[[attacks]]
name = "fgsm"
norm = "linf"
eps = [0.05]
"""
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason='needs pip install "robustness-bench[ray]"'
)


TWO_CHUNKS = 'split = "train"\nlimit = 1100'
"""Instead of SUITE's limit: so many images that there are two chunks, six work units."""


def written(folder: Path, attack: str = "SLOW", images: str = "limit = 40") -> Path:
    (folder / "mine.py").write_text(MINE, encoding="utf-8")
    path = folder / "s.toml"
    text = SUITE.replace("NAME", attack).replace("limit = 40", images)
    path.write_text(text, encoding="utf-8")
    return path


def here(path: Path, out: Path, text: str = "1/1") -> None:
    """The run in this process."""
    shard = sharding.parse_shard(text)
    options = RunOptions(device="cpu", batch_size=32, shard=shard)
    runner.run_suite(reader.read_suite(str(path)), shard.folder(out), options)


def hash_records(out: Path) -> str:
    return fingerprint.records_hash(read_records(out).frame)


def counts(out: Path) -> Sequence[object]:
    table = results.read_results(out).table
    return table[["attack", "eps", "status", "n", "robust_correct", "fooled"]].to_numpy().tolist()


def started(path: Path, out: Path, workers: int) -> "subprocess.Popen[str]":
    words = ["run", str(path), "--out", str(out), "--device", "cpu", "--batch-size", "32"]
    return subprocess.Popen(
        [sys.executable, "-m", "bench", *words, "--ray", "--workers", str(workers)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def workers_at(folder: Path) -> list[int]:
    """The workers that have begun with the slow attack, as soon as there is one."""
    ends = time.monotonic() + 90
    while not (table := [int(path.name[3:]) for path in folder.glob("at-*")]):
        assert time.monotonic() < ends
        time.sleep(0.1)
    return table


@needs_ray
@pytest.mark.slow
def test_workers_of_which_one_is_killed_and_shards_give_the_records_of_one_process(
    tmp_path: Path,
) -> None:
    path = written(tmp_path, images=TWO_CHUNKS)
    here(path, tmp_path / "here")
    (tmp_path / f"at-{os.getpid()}").unlink()

    for number in range(1, 6):
        here(path, tmp_path / "shards", f"{number}/5")
    merge.merge_runs([tmp_path / "shards"], tmp_path / "shards")
    (tmp_path / f"at-{os.getpid()}").unlink()

    one = started(path, tmp_path / "one", 1)
    _, printed = one.communicate(timeout=120)
    assert one.returncode == 0, printed
    assert "note: Ray: 1 workers, 0 GPUs each" in printed
    for mark in tmp_path.glob("at-*"):
        mark.unlink()

    (tmp_path / "wait").touch()
    two = started(path, tmp_path / "two", 2)
    killed = workers_at(tmp_path)[0]
    os.kill(killed, signal.SIGKILL)
    (tmp_path / "wait").unlink()
    _, printed = two.communicate(timeout=120)
    assert two.returncode == 0, printed
    assert " ".join(printed.split()).count("its worker died, tried again") == 1
    for folder in ("shards", "one", "two"):
        assert hash_records(tmp_path / folder) == hash_records(tmp_path / "here")
        assert counts(tmp_path / folder) == counts(tmp_path / "here")


@needs_ray
@pytest.mark.slow
def test_a_cell_that_kills_every_worker_is_failed_and_the_rest_is_done(tmp_path: Path) -> None:
    done = started(written(tmp_path, "DEADLY"), tmp_path / "out", 2)
    _, printed = done.communicate(timeout=180)
    assert done.returncode == 1, printed
    table = results.read_results(tmp_path / "out").table.set_index(["attack", "eps_text"])
    assert table["status"].to_dict() == {
        ("mine", "0.02"): "ok", ("mine", "0.05"): "failed",
        ("pgd", "0.02"): "ok", ("pgd", "0.05"): "ok", ("fgsm", "0.05"): "ok",
    }  # fmt: skip
    reason = table.loc[("mine", "0.05"), "reason"]
    assert reason.startswith("its worker died 3 times, examples 0 to 39: ")
    tried = (tmp_path / "tried").read_text(encoding="utf-8").split()
    assert tried.count("0.05") == 2 * ray.TRIES  # with the other eps, then alone


@needs_ray
@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished_and_leaves_no_process_behind(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_text(SUITE.replace("NAME", "SLOW").replace("[[attacks]]", "#", 1), encoding="utf-8")
    path = written(tmp_path)
    (tmp_path / "wait").touch()
    run = started(path, tmp_path / "out", 1)
    (worker,) = workers_at(tmp_path)
    run.send_signal(signal.SIGINT)
    _, printed = run.communicate(timeout=60)
    assert run.returncode == 130, printed
    assert "what was finished is kept, run again to go on" in printed
    ends = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < ends
        time.sleep(0.1)


@needs_ray
def test_an_address_where_nothing_answers_is_one_sentence(tmp_path: Path) -> None:
    words = ["run", str(written(tmp_path)), "--out", str(tmp_path / "out"), "--device", "cpu"]
    done = CliRunner().invoke(cli, [*words, "--ray", "ray/nowhere"], standalone_mode=False)
    assert done.return_value == 2
    assert "bench: --ray ray/nowhere: no cluster could be joined there" in done.stderr


def test_without_ray_the_remedy_is_one_sentence_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SuiteError, match=r'pip install "robustness-bench\[ray\]"'):
        ray.RayBackend(ray.Cluster())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--workers", "2"], "--workers and --gpus-per-worker are --ray's"),
        (["--ray", "--isolate"], "each worker of Ray is a process of its own already"),
    ],
)
def test_what_does_not_go_together_is_refused(
    tmp_path: Path, words: list[str], sentence: str
) -> None:
    run = ["run", str(written(tmp_path)), "--out", str(tmp_path / "out"), *words]
    done = CliRunner().invoke(cli, run, standalone_mode=False)
    assert done.return_value == 2
    assert sentence in done.stderr


class FakeRay(types.ModuleType):
    """As much of Ray as the backend uses, in this process; the calls in `dies` lose their worker.

    A call is "load" or the eps that a unit is at.
    """

    def __init__(self, dies: Callable[[str], bool] = lambda call: False) -> None:
        super().__init__("ray")
        self.exceptions = types.ModuleType("ray.exceptions")
        self.exceptions.RayError = type("RayError", (Exception,), {})
        self.exceptions.RayTaskError = type("RayTaskError", (self.exceptions.RayError,), {})
        self.dies, self.calls, self.answers = dies, [], {}

    def init(self, address: str, **settings: object) -> None:
        """Nothing is joined."""

    def shutdown(self) -> None:
        """Nothing is left."""

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def remote(self, **settings: object) -> Callable[[type], object]:
        return lambda kind: types.SimpleNamespace(remote=functools.partial(self.actor, kind))

    def actor(self, kind: type, *given: object) -> object:
        worker = kind(*given)

        def call(name: str, *asked: object) -> object:
            reference = object()
            if name in ("put", "take"):
                self.answers[reference] = getattr(worker, name)(*asked)
                return reference
            call = "load" if name == "load" else "+".join(asked[0].cells)
            self.calls.append(call)
            self.answers[reference] = None if self.dies(call) else getattr(worker, name)(*asked)
            return reference

        return types.SimpleNamespace(**{
            name: types.SimpleNamespace(remote=functools.partial(call, name))
            for name in ("load", "run_unit", "put", "take")
        })  # fmt: skip

    def wait(self, asked: list[object], num_returns: int, timeout: float) -> tuple[list[object]]:
        return (asked[:num_returns],)

    def get(self, reference: object) -> object:
        answer = self.answers[reference]
        if answer is None:
            raise self.exceptions.RayError("Worker exit detail: it was lost. And more.")
        return answer


def with_fake(path: Path, out: Path, fake: FakeRay, monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setitem(sys.modules, "ray.exceptions", fake.exceptions)
    events: list[Event] = []
    options = RunOptions(device="cpu", batch_size=32)
    backend = ray.RayBackend(ray.Cluster(workers=2))
    runner.run_suite(reader.read_suite(str(path)), out, options, events.append, backend)
    return events


def test_workers_some_of_which_die_give_the_records_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path)
    here(path, tmp_path / "here")
    turns = itertools.count()
    fake = FakeRay(lambda call: next(turns) in (1, 4))
    events = with_fake(path, tmp_path / "there", fake, monkeypatch)
    assert hash_records(tmp_path / "there") == hash_records(tmp_path / "here")
    work = sum(event.work for event in events if event.what == "start")
    assert work == pytest.approx(sum(event.work for event in events if event.what == "done"))
    assert fake.calls.count("load") >= 3


def test_a_cell_that_loses_every_worker_is_divided_from_the_others_and_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path)
    here(path, tmp_path / "here")
    table = results.read_results(tmp_path / "here").table.set_index(["attack", "eps_text"])
    deadly = table.loc[("mine", "0.05"), "cell"]
    fake = FakeRay(lambda call: deadly in call)
    events = with_fake(path, tmp_path / "there", fake, monkeypatch)
    table = results.read_results(tmp_path / "there").table.set_index(["attack", "eps_text"])
    assert table["status"].to_dict() == {
        key: "failed" if key == ("mine", "0.05") else "ok" for key in table.index
    }
    reason = table.loc[("mine", "0.05"), "reason"]
    assert reason == "its worker died 3 times, examples 0 to 39: it was lost"
    assert sum(deadly in call for call in fake.calls) == 2 * ray.TRIES  # with the other, then alone
    assert sum("its eps are tried alone" in event.text for event in events) == 1


def test_workers_that_do_not_survive_loading_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SuiteError, match="3 workers of Ray died while they loaded the suite: it"):
        with_fake(
            written(tmp_path), tmp_path / "out", FakeRay(lambda call: call == "load"), monkeypatch
        )
