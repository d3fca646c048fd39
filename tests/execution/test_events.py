"""What a run says of itself: quiet unless asked, reasons for who asks, JSON for machines."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import bench
from bench.cli import cli
from bench.execution import events as logs
from bench.execution import runner
from bench.execution.events import Event
from bench.execution.options import RunOptions
from bench.execution.sharding import Shard
from bench.suite import reader

SUITE = """
schema = 1
name = "said"
certify = ["ibp"]
[data]
name = "digits"
limit = 24
[[models]]
name = "lenet"
weights = "digits"
[[models]]
name = "softmax"
weights = "random"
[[attacks]]
name = "fgsm"
norm = "linf"
eps = [0.1]
[[attacks]]
name = "rgb.py:GREY"
label = "grey"
norm = "linf"
eps = [0.1]
[[attacks]]
name = "broken.py:BROKEN"
label = "broken"
norm = "linf"
eps = [0.1, 0.2]
"""
MINE = """
from bench.attacks.fgsm import Params
from bench import Attack


def run(model, x, y, threat, params, noise):
    raise ValueError("out of ideas")


keys = dict(summary="s", source="s", params=Params, norms=("linf",), run=run)
BROKEN = Attack(**keys)
GREY = Attack(**keys, channels=(3,))
"""
REQUIRED = {"time", "event", "text"}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A suite with an attack that runs, one that is skipped and one that fails."""
    folder = tmp_path_factory.mktemp("suite")
    for name in ("rgb.py", "broken.py"):
        (folder / name).write_text(MINE, encoding="utf-8")
    file = folder / "said.toml"
    file.write_text(SUITE, encoding="utf-8")
    return str(file)


@pytest.fixture(scope="module")
def asked(path: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The folder of a run with reasons, and what was said."""
    out = tmp_path_factory.mktemp("asked")
    return out, typed(path, out, "-v")


def typed(path: str, out: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, ["run", path, "--device", "cpu", "--out", str(out), *words],
                              standalone_mode=False)  # fmt: skip


def lines(said: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said.splitlines()]


def test_a_run_gives_no_reasons_unless_it_is_asked_for_them(
    path: str, asked: tuple[Path, Result], tmp_path: Path
) -> None:
    quiet, told = typed(path, tmp_path / "quiet"), asked[1]
    assert quiet.return_value == told.return_value == 1
    assert "why: " not in quiet.stderr
    reasons = [line for line in told.stderr.splitlines() if line.startswith("why: ")]
    assert len(reasons) > 10
    rest = [line for line in told.stderr.splitlines() if not line.startswith("why: ")]
    assert [line[4:] for line in rest] == [line[4:] for line in quiet.stderr.splitlines()]


def test_the_reasons_name_every_kind_of_decision(asked: tuple[Path, Result]) -> None:
    out, said = asked[0], asked[1].stderr
    assert "why: device cpu: as asked for" in said
    assert "why: data digits: 24 examples of 1x28x28" in said
    assert "rows a pass, by the memory that one row takes" in said
    assert "preflight found nothing wrong" in said
    assert "skipped at eps 0.1: the attack needs 3 channels, the images have 1" in said
    assert "lenet · fgsm: 0 of 1 chunks of cells are on disk, 1 of 1 chunks of examples" in said
    assert "why: lenet, in float32: an accelerated model is attacked" in said
    assert "no accelerated model is attacked: the attack has a loop of its own" in said
    assert "failed at 2 eps in one stream" in said
    assert "certified by ibp: 1 chunks are not on disk and are made" in said
    assert "lenet: the audit's probes were made" in said
    assert f"records go to {out / 'records'}" in said


def test_a_second_run_says_what_it_found_on_disk(path: str, asked: tuple[Path, Result]) -> None:
    events: list[Event] = []
    runner.run_suite(reader.read_suite(path), asked[0], RunOptions(device="cpu"), events.append)
    said = "\n".join(event.text for event in events if event.what == "why")
    assert "lenet · fgsm: 1 of 1 chunks of cells are on disk, 0 of 1 chunks" in said
    assert "certified by ibp: 0 chunks are not on disk" in said
    assert "lenet: the audit's probes of the same cells were kept" in said


def test_for_machines_every_line_is_an_object_of_documented_keys(path: str, tmp_path: Path) -> None:
    done = typed(path, tmp_path / "out", "-v", "--json")
    said = lines(done.stderr)
    assert all(set(line) >= REQUIRED and set(line) <= set(logs.KEYS) for line in said)
    assert {"start", "begin", "done", "failed", "why"} <= {line["event"] for line in said}
    failed = next(line for line in said if line["event"] == "failed")
    assert (failed["model"], failed["attack"], failed["eps"]) == ("lenet", "broken", ["0.1"])
    assert failed["reason"].startswith("ValueError: out of ideas")
    work = [line["work"] for line in said if line["event"] == "done"]
    start = next(line["work"] for line in said if line["event"] == "start")
    assert sum(work) == pytest.approx(start)
    assert "robust accuracy by eps" in done.stdout


def test_for_machines_reasons_come_only_with_them(path: str, tmp_path: Path) -> None:
    said = lines(typed(path, tmp_path / "out", "--json", "--shard", "1/2").stderr)
    assert {"start", "failed"} <= {line["event"] for line in said}
    assert "why" not in {line["event"] for line in said}


def test_for_machines_a_mistake_is_an_object_too(tmp_path: Path) -> None:
    done = typed("no-such-suite", tmp_path / "out", "--json")
    (error,) = lines(done.stderr)
    assert done.return_value == 2
    assert error["event"] == "error"
    assert "no-such-suite" in error["text"]


def test_a_line_holds_no_character_that_a_terminal_obeys() -> None:
    told = logs.format_json_line(Event("note", "evil \x1b[2J\nmodel ·", 0.0, {"model": "\u202e"}))
    assert told.isascii()
    assert told.isprintable()
    assert json.loads(told)["text"] == "evil \x1b[2J\nmodel ·"


def test_from_python_a_run_is_heard_through_the_logger(
    path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="bench"):
        bench.run(path, tmp_path / "out", device="cpu")
    failed = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.bench["attack"] for record in failed] == ["broken"] * 4  # type: ignore[attr-defined]
    assert any(record.getMessage().startswith("why: ") for record in caplog.records)


def test_from_python_a_run_is_silent_by_default(
    path: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bench.run(path, tmp_path / "out", device="cpu")
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


def test_a_share_says_what_of_the_run_it_does(path: str, tmp_path: Path) -> None:
    events: list[Event] = []
    options = RunOptions(device="cpu", shard=Shard(1, 2))
    runner.run_suite(reader.read_suite(path), tmp_path / "out", options, events.append)
    assert any("shard 1 of 2:" in event.text for event in events if event.what == "why")
