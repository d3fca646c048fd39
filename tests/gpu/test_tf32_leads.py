"""TF32 leads and the model in float32 judges: in a suite, in `bench speed` and in the GPU check."""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bench
from bench.engine.device import has_tf32
from bench.engine.float32_precision import read_precision, restore_precision
from bench.evaluation import judge, make_evaluator
from bench.evaluation.crafting import Examples
from bench.workflows.gpu_check import leading, passes
from bench.workflows.gpu_check.setup import TINY, Setup
from bench.workflows.single_image import attack as single_image
from bench.workflows.speed import page, race, workloads
from bench.workflows.speed import setup as speed_setup
from bench.workflows.speed.competitors import bench_engine, list_competitors
from gpu.fake_cuda import FakeCuda
from gpu.pretended import Machine

CPU = torch.device("cpu")
ROW = bench_engine.VARIANTS["tf32-leads"].name
SEEN: list[tuple[bool, bool]] = []
"""Of each pass of a `Rounded`: whether it is one for a gradient, and whether TF32 is on."""


def is_tf32_on() -> bool:
    """Whether the process lets a GPU multiply in TF32, by either API."""
    now = read_precision()
    return now.convolutions or now.matrices != "highest"


class Rounded(nn.Module):
    """A network whose logits are a little off wherever TF32 is on, as a GPU's would be."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        tf32 = is_tf32_on()
        SEEN.append((bool(x.requires_grad), tf32))  # which cannot be traced, so that a copy does so
        logits: Tensor = self.net(x)
        return logits - 0.019 * nn.functional.one_hot(logits.argmax(1), 10) * logits.max() * tf32


@pytest.fixture
def net(lenet: nn.Module) -> Rounded:
    SEEN.clear()
    return Rounded(lenet.requires_grad_(False)).eval()


@pytest.fixture
def task(tmp_path: Path) -> speed_setup.RaceTask:
    work = workloads.Workload(
        name="w", title="w", models=[workloads.TargetModel(name="lenet", weights="digits")],
        data="digits", limit=40, attack="pgd", params={"steps": 4}, eps=[0.05],
        ours=["first-success", "tf32-leads", "bfloat16-leads"],
    )  # fmt: skip
    return speed_setup.load_task(work, work.models[0], device=CPU, data_dir=tmp_path)


@pytest.fixture
def settings() -> Iterator[None]:
    """The process's settings are put back after the test."""
    before = read_precision()
    yield
    restore_precision(before)


# ------------------------------------------------------------------------------------- devices


@pytest.mark.parametrize(("capability", "there"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_tf32_is_there_from_ampere_on(capability: tuple[int, int], there: bool) -> None:
    cuda = FakeCuda(0)
    cuda.capability = capability
    with cuda.replace_module():
        assert has_tf32(torch.device("cuda", 0)) is there
    assert not has_tf32(CPU)


def test_a_gpu_of_another_maker_has_no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    with FakeCuda(0).replace_module():
        assert not has_tf32(torch.device("cuda", 0))
    assert not has_tf32(torch.device("xpu", 0))


# -------------------------------------------------------------------------------------- judging


def use_older_api() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True


def use_newer_api() -> None:
    if not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("this torch has the older API alone")
    torch.backends.fp32_precision = "tf32"


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize("switch", [use_older_api, use_newer_api])
@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_whatever_the_process_has_set_the_model_is_judged_without_tf32(
    net: Rounded, digits: tuple[Tensor, Tensor], switch: Callable[[], None], precision: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    x, y = (each[:20] for each in digits)
    settled = bench.evaluate(net, x, y, eps=0.05, params={"steps": 3}, precision=precision)
    asked = []
    call = judge.call_model

    def noting(*given: Any) -> Any:
        asked.append(is_tf32_on())
        return call(*given)

    monkeypatch.setattr(judge, "call_model", noting)
    SEEN.clear()
    switch()
    before = read_precision()
    found = bench.evaluate(net, x, y, eps=0.05, params={"steps": 3}, precision=precision)
    assert read_precision() == before
    assert found.records.equals(settled.records)
    assert set(asked) == {False}
    assert {tf32 for _, tf32 in SEEN} == {False, precision == "tf32"}


@pytest.mark.usefixtures("settings")
def test_a_model_is_checked_certified_and_shown_without_tf32(
    net: Rounded, digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checked = make_evaluator.from_tensors(net, *(each[:20] for each in digits), CPU)
    SEEN.clear()
    use_older_api()
    again = make_evaluator.from_tensors(net, *(each[:20] for each in digits), CPU)
    assert again.models["Rounded"].sketch == checked.models["Rounded"].sketch
    assert torch.equal(again.models["Rounded"].logits, checked.models["Rounded"].logits)
    assert {tf32 for _, tf32 in SEEN} == {False}
    single_image._answer(net, digits[0][0], 0, ())
    (tmp_path / "nets.py").write_text(
        "import gpu.test_tf32_leads as own\nfrom torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(784, 10))\n"
        "        self.register_forward_hook(own.note)\n",
        encoding="utf-8",
    )
    (tmp_path / "suite.toml").write_text(CERTIFIED, encoding="utf-8")
    SEEN.clear()
    bench.run(str(tmp_path / "suite.toml"), tmp_path / "out", device="cpu")
    assert SEEN
    assert {tf32 for _, tf32 in SEEN} == {False}


CERTIFIED = """
schema = 1
name = "certified"
data = { name = "digits", limit = 6 }
models = [{ name = "nets.py:Net", weights = "random", allow = ["near-chance"] }]
certify = ["ibp"]
attacks = [{ name = "fgsm", norm = "linf", eps = [0.01] }]
"""


def note(module: nn.Module, given: Any, answer: Tensor) -> None:
    """Note a pass as a `Rounded` does."""
    SEEN.append((answer.requires_grad, is_tf32_on()))


SUITE = """
schema = 1
name = "led"
data = { name = "digits", limit = 3 }
precision = "tf32"
models = [{ name = "lenet", weights = "digits" }]
[[attacks]]
name = "pgd"
norm = "linf"
eps = [0.05]
params = { steps = 2 }
"""
OTHER = """
[[attacks]]
name = "bim"
norm = "linf"
eps = [0.05]
params = { steps = 2 }
"""


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=pytest.mark.slow)])
def test_a_suite_names_the_precision_that_leads_and_notes_where_there_is_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, device: str
) -> None:
    caplog.set_level(logging.INFO, "bench")
    text = SUITE + OTHER if device == "cpu" else SUITE
    (tmp_path / "suite.toml").write_text(text, encoding="utf-8")
    if device == "cpu":
        result = bench.run(str(tmp_path / "suite.toml"), tmp_path / "out", device=device)
    else:
        with Machine().run():
            result = bench.run(str(tmp_path / "suite.toml"), tmp_path / "out", device=device)
    assert set(result.table["precision"]) == {"tf32"}
    assert set(result.table["caveats"]) == {
        "Gradients in tf32 (in float32 on a device without it): may be weaker than in float32."
    }
    notes = [each for each in caplog.messages if "has no TF32" in each]
    assert len(notes) == (device == "cpu")


# ---------------------------------------------------------------------------------------- speed


def test_the_row_is_listed_beside_that_of_float32_where_the_device_has_tf32(
    task: speed_setup.RaceTask,
) -> None:
    def names(device: torch.device) -> list[str]:
        return [each.name for each in list_competitors(task.work, (), device)]

    assert ROW not in names(CPU)
    assert bench_engine.VARIANTS["bfloat16-leads"].name in names(CPU)
    cuda = FakeCuda(0)
    with cuda.replace_module():
        assert {"bench", ROW} < set(names(torch.device("cuda", 0)))
        cuda.capability = (7, 5)
        assert ROW not in names(torch.device("cuda", 0))
    shipped = [work.name for work in workloads.read_workloads() if "tf32-leads" in work.ours]
    assert {"pgd-standard", "pgd-robust", "resnet50"} <= set(shipped)


def test_tf32_leads_in_its_row_alone_and_the_model_counts_in_float32(
    task: speed_setup.RaceTask, net: Rounded
) -> None:
    task = dataclasses.replace(task, model=net)
    with FakeCuda(0).replace_module():
        listed = list(list_competitors(task.work, (), torch.device("cuda", 0)))
    row = next(each for each in listed if each.name == ROW)
    plain = [each for each in listed if each.name in ("bench", "bare loop")]
    SEEN.clear()
    race.run_race(task, plain, rounds=1, rows=8)
    assert {tf32 for _, tf32 in SEEN} == {False}
    SEEN.clear()
    done = race.run_race(task, [*plain, row], rounds=1, rows=8)
    assert {tf32 for gradient, tf32 in SEEN if gradient} == {False, True}
    assert "TF32 off but in rows that it leads" in page.describe_timing(done)
    led = done.outcomes[-1]
    assert led.status == "ok"
    assert led.robust is not None
    assert led.right == led.robust.sum(1).tolist()
    assert any("gradients in TF32; the model in float32 confirms" in each
               for each in page.list_notes(done))  # fmt: skip


def test_what_the_model_does_not_confirm_is_attacked_again_as_in_a_suite(
    task: speed_setup.RaceTask, net: Rounded
) -> None:
    task = dataclasses.replace(task, model=net)
    variant = bench_engine.VARIANTS["tf32-leads"]
    found = speed_setup.judge_result(task, bench_engine.prepare(variant, task)(8))
    assert found is not None
    records = bench.evaluate(
        net, task.x, task.y, eps=0.05, params={"steps": 4}, precision="tf32", batch_size=8
    ).records
    assert found[0][0].tolist() == (records["clean_correct"] & ~records["fooled"]).tolist()
    unconfirmed = bench_engine.prepare(variant._replace(confirmed=False, judged=True), task)(8)
    assert sum(unconfirmed.right) > int(found[0].sum())


@pytest.mark.slow
def test_the_row_has_the_same_outcomes_on_a_gpu(task: speed_setup.RaceTask, tmp_path: Path) -> None:
    work = dataclasses.replace(task.work, params={"steps": 2})

    def race_on(device: torch.device) -> Any:
        there = speed_setup.load_task(work, task.victim, device=device, data_dir=tmp_path, limit=4)
        run = bench_engine.prepare(bench_engine.VARIANTS["tf32-leads"], there)(4)
        judged = speed_setup.judge_result(there, run)
        assert judged is not None
        return run.right, judged[0].tolist()

    with Machine().run():
        found = race_on(torch.device("cuda", 0))
    assert found == race_on(CPU)  # a processor computes in float32 either way


# ------------------------------------------------------------------------------------ GPU check


@pytest.fixture
def setup(digits: tuple[Tensor, Tensor]) -> Setup:
    x, y = digits
    return Setup(CPU, x[:4], y[:4], TINY, float("inf"))


def test_the_check_has_a_row_for_each_precision_of_the_device(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leading, "STEPS", 1)
    monkeypatch.setattr(leading, "ROUNDS", 1)
    lines = {job.name: job.run() for job in leading.list_jobs(setup)}
    assert [*lines] == ["led by float32", "led by bfloat16"]
    for found in lines.values():
        assert found["attack_seconds"] > 0
        assert max(found[key] for key in ("claimed", "judged_alike", "robust", "as_float32")) <= 1
    assert lines["led by float32"]["judged_alike"] == lines["led by float32"]["images"] == 1
    cuda = FakeCuda(0)
    with cuda.replace_module():
        assert passes.list_precisions(torch.device("cuda", 0)) == ["float32", "tf32", "bfloat16"]
        cuda.capability = (7, 5)
        assert passes.list_precisions(torch.device("cuda", 0)) == ["float32", "bfloat16"]


def test_the_check_counts_what_the_judge_sees_otherwise(
    net: Rounded, task: speed_setup.RaceTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leading, "EPS", 0.08)
    x, y = task.x[task.clean], task.y[task.clean]
    ids, unused = torch.arange(len(y)), torch.zeros(len(y))
    attack = leading.Leading(net, Examples(ids, x, y, ids - ids - 1, y, unused, unused))
    exact, led = attack.run("float32"), attack.run("tf32")
    assert exact["judged_alike"] == exact["as_float32"] == exact["images"] == len(y)
    assert exact["robust"] + exact["claimed"] == len(y)
    assert led["judged_alike"] < len(y)  # some claims are not confirmed,
    assert led["as_float32"] > led["judged_alike"]  # and attacked again in float32
