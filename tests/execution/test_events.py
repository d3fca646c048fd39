"""Events of a run: reasons only on request, JSON for machines, records of the logger."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import bench
from bench.cli import cli
from bench.execution import runner
from bench.execution.events import KEYS, Event, format_json_line
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
def verbose(path: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The folder of a run with reasons, and what it printed."""
    out = tmp_path_factory.mktemp("verbose")
    return out, invoke_run(path, out, "-v")


def invoke_run(path: str, out: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, ["run", path, "--device", "cpu", "--out", str(out), *words],
                              standalone_mode=False)  # fmt: skip


def parse_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_run_gives_no_reasons_unless_it_is_asked_for_them(
    path: str, verbose: tuple[Path, Result], tmp_path: Path
) -> None:
    quiet, loud = invoke_run(path, tmp_path / "quiet"), verbose[1]
    assert quiet.return_value == loud.return_value == 1
    assert "why: " not in quiet.stderr
    reasons = [line for line in loud.stderr.splitlines() if line.startswith("why: ")]
    assert len(reasons) > 10
    rest, same = (
        [line[4:] for line in told.splitlines() if not re.match("why: |.* passes, left ", line)]
        for told in (loud.stderr, quiet.stderr)  # how many lines show passes depends on the time
    )
    assert rest == same


def test_the_reasons_name_every_kind_of_decision(verbose: tuple[Path, Result]) -> None:
    out, printed = verbose[0], verbose[1].stderr
    assert "why: device cpu: as asked for" in printed
    assert "why: data digits: 24 examples of 1x28x28" in printed
    assert "rows a pass, by the memory that one row takes" in printed
    assert "preflight found nothing wrong" in printed
    assert "skipped at eps 0.1: the attack needs 3 channels, the images have 1" in printed
    assert "lenet · fgsm: 0 of 24 outcomes are on disk, 1 chunk of examples is run" in printed
    assert "why: lenet, in float32: an accelerated model is attacked" in printed
    assert "no accelerated model is attacked: the attack has a loop of its own" in printed
    assert "failed at 2 eps in one stream" in printed
    assert "certified by ibp: 1 chunks are not on disk and are made" in printed
    assert "lenet: the audit's probes were made" in printed
    assert f"records go to {out / 'records'}" in printed


def test_a_second_run_names_what_it_found_on_disk(path: str, verbose: tuple[Path, Result]) -> None:
    events: list[Event] = []
    runner.run_suite(reader.read_suite(path), verbose[0], RunOptions(device="cpu"), events.append)
    reasons = "\n".join(event.text for event in events if event.what == "why")
    assert "lenet · fgsm: 24 of 24 outcomes are on disk, 0 chunks of examples are run" in reasons
    assert "certified by ibp: 0 chunks are not on disk" in reasons
    assert "lenet: the audit's probes of the same cells were kept" in reasons


def test_for_machines_every_line_is_an_object_of_documented_keys(path: str, tmp_path: Path) -> None:
    done = invoke_run(path, tmp_path / "out", "-v", "--json")
    events = parse_lines(done.stderr)
    assert all(set(event) >= REQUIRED and set(event) <= set(KEYS) for event in events)
    assert {"start", "begin", "done", "failed", "why"} <= {event["event"] for event in events}
    failed = next(event for event in events if event["event"] == "failed")
    assert (failed["model"], failed["attack"], failed["eps"]) == ("lenet", "broken", ["0.1"])
    assert failed["reason"].startswith("ValueError: out of ideas")
    work = [event["work"] for event in events if event["event"] == "done"]
    start = next(event["work"] for event in events if event["event"] == "start")
    assert sum(work) == pytest.approx(start)
    assert "robust accuracy by eps" in done.stdout


def test_for_machines_reasons_come_only_with_them(path: str, tmp_path: Path) -> None:
    events = parse_lines(invoke_run(path, tmp_path / "out", "--json", "--shard", "1/2").stderr)
    assert {"start", "failed"} <= {event["event"] for event in events}
    assert "why" not in {event["event"] for event in events}


def test_for_machines_a_mistake_is_an_object_too(tmp_path: Path) -> None:
    done = invoke_run("no-such-suite", tmp_path / "out", "--json")
    (error,) = parse_lines(done.stderr)
    assert done.return_value == 2
    assert error["event"] == "error"
    assert "no-such-suite" in error["text"]


def test_a_line_holds_no_character_that_a_terminal_obeys() -> None:
    line = format_json_line(Event("note", "evil \x1b[2J\nmodel ·", 0.0, {"model": "\u202e"}))
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["text"] == "evil \x1b[2J\nmodel ·"


def test_from_python_a_run_logs_its_events_and_prints_nothing(
    path: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with caplog.at_level(logging.DEBUG, logger="bench"):
        bench.run(path, tmp_path / "out", device="cpu")
    failed = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.bench["attack"] for record in failed] == ["broken"] * 4  # type: ignore[attr-defined]
    assert any(record.getMessage().startswith("why: ") for record in caplog.records)
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_a_shard_names_its_part_of_the_run(path: str, tmp_path: Path) -> None:
    events: list[Event] = []
    options = RunOptions(device="cpu", shard=Shard(1, 2))
    runner.run_suite(reader.read_suite(path), tmp_path / "out", options, events.append)
    assert any("shard 1 of 2:" in event.text for event in events if event.what == "why")
