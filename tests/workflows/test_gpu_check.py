"""`bench gpu-check`: its parts on the CPU in tiny sizes, captures on a pretended GPU, output."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from gpu.fake_cuda import FakeCuda

from bench.cli import cli
from bench.engine import cuda_graphs
from bench.engine.resident_rows import copy_changed
from bench.workflows.gpu_check import captures, check, passes, race
from bench.workflows.gpu_check.setup import TINY, Job, Setup, build_net

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@pytest.fixture
def setup(digits: Any) -> Setup:
    x, y = digits
    return Setup(CPU, x[:4], y[:4], TINY, time.monotonic() + 1000)


def test_networks_have_the_same_random_weights_each_time_and_leave_the_global_generator() -> None:
    with torch.random.fork_rng():
        before = torch.get_rng_state()
        first = build_net("softmax", CPU)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(5)
        second = build_net("softmax", CPU)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs of the only part."""
    listed: list[Job] = []
    part = check.Part("Trial", lambda setup: iter(listed), 1.0)
    monkeypatch.setattr(check, "PARTS", {"trial": part})
    return listed


def run(setup: Setup, out: Path, seconds: float = 1000) -> list[check.Line]:
    return check.run_check(setup, out, seconds, parts=["trial"])


# ------------------------------------------------------------------------------------------- parts


def test_a_captured_step_gives_the_same_bits_as_single_launches(setup: Setup) -> None:
    cuda = FakeCuda(0)
    with cuda.pretend() as device:
        found = captures.compare(setup._replace(device=device), "pgd", "linf")
    assert cuda.replays
    assert found == {
        "captured": True, "equal": True, "repeats": True, "difference": 0.0,
        "refilled_steps_equal": True, "refilled_difference": 0.0,
    }  # fmt: skip


def test_a_graph_that_computes_something_else_is_found(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def capture_wrong(step: Any, static: Any, number: int, memory: Any) -> Any:
        def replay() -> None:
            after = step(static, number)
            copy_changed(after, static)
            static.state.x.mul_(0.5)

        return replay

    monkeypatch.setattr(cuda_graphs, "capture_graph", capture_wrong)
    with FakeCuda(0).pretend() as device:
        found = captures.compare(setup._replace(device=device), "pgd", "linf")
    assert (found["captured"], found["equal"], found["repeats"]) == (True, False, True)
    (problem,) = check.find_problems([{"part": "captures", "job": "pgd linf", **found}], gpu=True)
    assert problem.startswith("captures, pgd linf: the results differ, by 0.")


def test_a_step_that_cannot_be_captured_is_named_with_its_reason(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(step: Any, static: Any, number: int, memory: Any) -> Any:
        raise cuda_graphs.CaptureError("planted")

    monkeypatch.setattr(cuda_graphs, "capture_graph", refuse)
    with FakeCuda(0).pretend() as device:
        found = captures.compare(setup._replace(device=device), "bim", "l2")
    assert (found["captured"], found["reason"], found["equal"]) == (False, "planted", True)
    line = {"part": "captures", "job": "bim l2", **found}
    assert check.find_problems([line], gpu=True) == ["captures, bim l2: not captured: planted"]
    assert check.find_problems([line], gpu=False) == []


def test_a_capture_that_failed_in_the_race_is_a_problem_too() -> None:
    line = {"part": "race", "job": "bench, 2048 rows", "failed_captures": ["planted"]}
    problems = check.find_problems([line], gpu=True)
    assert problems == ["race, bench, 2048 rows: not captured: planted"]
    assert check.find_problems([line], gpu=False) == []


def test_the_ratios_of_a_race_whose_runs_failed_hold_what_is_known(setup: Setup) -> None:
    started = race.Race(setup)
    started.library[TINY.batches[0]] = 1.0
    assert started.compare().keys() == {"bandwidth", "traffic"}
    started.bench["first-success"] = 0.5
    assert started.compare()["over_first"] == 2.0


def test_every_rule_that_iterates_is_captured_in_every_norm(setup: Setup) -> None:
    names = [job.name for job in captures.list_jobs(setup)]
    assert {"pgd linf", "pgd l1", "fmn l0", "surfree l2", "apgd_t l2"} <= set(names)
    assert len(names) == len(set(names))
    assert not any(name.startswith(("fgsm", "noise", "autoattack")) for name in names)


def test_the_race_counts_what_is_robust_and_compares_times(setup: Setup) -> None:
    found = {job.name: job.run() for job in race.list_jobs(setup)}
    ratios = found.pop("ratios")
    assert len(found) == 6
    assert all(each["seconds"] > 0 and len(each["correct"]) == 7 for each in found.values())
    assert found["torchattacks, batch 2"]["images"] == 2  # its share
    assert min(ratios[key] for key in ("over_first", "over_best", "limit", "limit_share")) > 0


def test_the_traffic_of_a_gradient_is_that_of_a_row() -> None:
    class Halving(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1) / 2

    traffic = [
        race.count_traffic(Halving(), torch.rand(2, 1, 1, n), torch.zeros(2, dtype=torch.int64))
        for n in (100, 200)
    ]
    # Each operation reads and writes 4 bytes a pixel: the division alone 8, its gradient 8.
    assert traffic[1] - traffic[0] >= 16 * 100


def test_memory_waits_and_devices_are_read_on_a_gpu_alone(setup: Setup) -> None:
    memory, waits = (job.run() for job in passes.list_memory_jobs(setup))
    assert memory == {"allocated": [], "reserved": [], "grows": False}
    assert waits == {"waits": None}
    assert passes.compare_devices(setup) == {"devices": 0}


def test_memory_that_grows_is_a_problem(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    held: Iterator[int] = iter([10, 20, 30])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: next(held), raising=False)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 40)
    with FakeCuda(0).pretend() as device:
        sizes = TINY._replace(calls=3)
        found = passes.compare_memory(setup._replace(device=device, sizes=sizes))
    assert (found["allocated"], found["grows"]) == ([10, 20, 30], True)
    problems = check.find_problems([{"part": "memory", "job": "calls", **found}], gpu=True)
    assert problems == ["memory, calls: memory grows from call to call"]


def test_a_second_gpu_is_compared_with_the_first(setup: Setup) -> None:
    with FakeCuda(0).pretend() as device:
        found = passes.compare_devices(setup._replace(device=device))
    assert (found["devices"], found["equal"]) == (2, True)


def test_a_large_network_is_timed_in_each_precision_and_layout(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "LARGE_NET", "lenet")
    jobs = list(passes.list_precision_jobs(setup))
    assert len(jobs) == 4  # without TF32, which a CPU has not
    net = passes.load_net(CPU)
    sized = setup._replace(sizes=TINY._replace(side=28))
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: setup.x[:1])
    found = passes.time_gradient(sized, net, 1, "bfloat16", "channels-last")
    assert found["images_per_second"] == pytest.approx(1 / found["seconds"])


def test_autoattack_counts_the_images_that_each_part_breaks(setup: Setup) -> None:
    found = passes.run_autoattack(setup)
    assert found["robust"] + sum(found["broken_by"].values()) == found["images"]
    assert list(found["broken_by"]) == ["apgd-ce", "apgd-t", "fab-t", "square"]


# ------------------------------------------------------------------------------------------ output


def test_a_measurement_that_fails_is_a_line_and_the_next_one_follows(
    setup: Setup, jobs: list[Job], tmp_path: Path
) -> None:
    jobs += [Job("one", lambda: 1 // 0), Job("two", lambda: {"found": 2})]  # type: ignore[list-item]
    lines = run(setup, tmp_path)
    assert [line["job"] for line in lines] == ["one", "two"]
    assert "ZeroDivisionError" in lines[0]["failed"]
    assert "test_gpu_check.py" in lines[0]["where"]
    assert lines[1]["found"] == 2
    written = (tmp_path / check.LINES).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in written] == lines
    page = (tmp_path / check.PAGE).read_text(encoding="utf-8")
    assert "2 measurements, of which 1 failed and 0 were skipped." in page
    assert "| two | found 2 |" in page
    assert len(check.find_problems(lines, gpu=True)) == 1


def test_a_line_is_on_disk_before_the_next_measurement_begins(
    setup: Setup, jobs: list[Job], tmp_path: Path
) -> None:
    jobs += [
        Job("one", lambda: {}),
        Job("two", lambda: {"before": (tmp_path / check.LINES).read_text(encoding="utf-8")}),
    ]
    lines = run(setup, tmp_path)
    assert json.loads(lines[1]["before"])["job"] == "one"


def test_no_measurement_begins_after_the_time_is_over(
    setup: Setup, jobs: list[Job], tmp_path: Path
) -> None:
    jobs += [Job("one", lambda: {})]
    (line,) = run(setup, tmp_path, seconds=-1)
    assert line == {"part": "trial", "job": "begin", "skipped": "no time was left"}


def test_a_part_that_cannot_begin_is_a_failure(
    setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(setup: Setup) -> Iterator[Job]:
        raise RuntimeError("planted")

    monkeypatch.setattr(check, "PARTS", {"trial": check.Part("Trial", begin, 1.0)})
    (line,) = run(setup, tmp_path)
    assert (line["job"], "planted" in line["failed"]) == ("begin", True)


def test_machine_names_versions_and_device() -> None:
    found = check.describe_machine(CPU)
    assert found["packages"]["torch"] in torch.__version__
    assert found["device"] == "cpu"


def test_without_a_gpu_it_says_one_sentence_and_exits_with_2(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["gpu-check", str(tmp_path / "out"), "--device", "cuda:7"])
    assert done.exit_code == 2
    (line,) = done.output.splitlines()
    assert line.startswith("bench: device 'cuda:7' is not there: torch sees ")
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------- a machine without a network


def test_the_bundle_runs_from_its_own_folder_without_an_installation(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("the bundle is built from a commit: this is no checkout")
    raw, out = tmp_path / "data" / "MNIST" / "raw", tmp_path / "bundle"
    raw.mkdir(parents=True)
    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (raw / name).write_bytes(b"content")
    environment = {
        **os.environ, "BENCH_DATA_DIR": str(tmp_path / "data"), "PACKAGES": "",
        "PYTHON": sys.executable,
    }  # fmt: skip
    built = subprocess.run(
        [ROOT / ".ci/gpu_bundle", out], capture_output=True, text=True, env=environment, check=True
    )
    assert built.stdout.startswith(f"{out}: ")
    assert (out / "data/MNIST/raw/t10k-images-idx3-ubyte").read_bytes() == b"content"
    assert not list((out / "wheels").iterdir())
    done = subprocess.run(
        [out / "run", tmp_path / "results", "--device", "cuda:7"],
        capture_output=True, text=True, env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("bench: device 'cuda:7' is not there")
    again = subprocess.run(
        [ROOT / ".ci/gpu_bundle", out], capture_output=True, text=True, env=environment
    )
    assert (again.returncode, len(again.stderr.splitlines())) == (2, 1)
