"""The same work for everyone, judged by one judge; nothing here asserts a time."""

import functools
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pandas as pd
import pytest
import torch

import bench
from bench import cli
from bench.core.contracts.attack import ExternalAttack
from bench.core.errors import SuiteError
from bench.engine import timing
from bench.models import published_weights
from bench.suite.reader import parse_attack
from bench.workflows.speed import memory, page, workloads
from bench.workflows.speed.competitors import (
    FILES,
    PEERS,
    adv_lib,
    bare_loop,
    bench_engine,
    list_competitors,
    tutorial,
)
from bench.workflows.speed.race import Race, list_batch_sizes, run_race
from bench.workflows.speed.setup import Competitor, RaceTask, WorkResult, load_task
from bench.workflows.speed.workloads import TargetModel, Workload

EPS = (0, 0.1, 0.2)
IMAGES = 16
ROWS = 8
PARAMS = {
    "fgsm": {},
    "pgd": {"steps": 5, "alpha": 0.05},
    "bim": {"steps": 5, "alpha": 0.05},
    "mifgsm": {"steps": 5, "alpha": "eps/steps"},
}


def work(attack: str, ours: tuple[workloads.Variant, ...] = ("first-success",)) -> Workload:
    return Workload(
        name="small",
        title="a small work",
        models=[TargetModel(name="lenet", weights="mnist")],
        data="mnist",
        limit=IMAGES,
        attack=attack,
        params=PARAMS[attack],
        eps=EPS,
        ours=ours,
    )


@functools.cache
def loaded(attack: str, *variants: workloads.Variant) -> RaceTask:
    """Digits for LeNet with the digits' weights, with no data folder; loaded once for all tests."""
    small = work(attack, variants or ("first-success",))
    cpu = torch.device("cpu")
    return load_task(small, small.models[0], device=cpu, data_dir=Path("none"), data="digits")


def raced(task: RaceTask, *names: str, rounds: int = 1) -> Race:
    everyone = [each for each in list_competitors(task.work) if not names or each.name in names]
    return run_race(task, everyone, rounds=rounds, rows=ROWS)


@functools.cache
def count_robust(attack: str) -> list[int]:
    """How many examples `bench.evaluate` finds robust, at each eps."""
    task = loaded(attack)
    table = bench.evaluate(
        task.model, task.x, task.y, attack=attack, eps=EPS, params=PARAMS[attack], device="cpu"
    ).table
    counts: list[int] = table["robust_correct"].tolist()
    return counts


# ------------------------------------------------------------------------------------------- works


def test_every_work_that_ships_can_be_read_and_its_attack_and_weights_are_known() -> None:
    for each in workloads.read_workloads():
        raw = {"name": each.attack, "norm": "linf", "eps": [*each.eps], "params": {**each.params}}
        assert not isinstance(parse_attack(raw, each.name).attack, ExternalAttack)
        for victim in each.models:
            path = published_weights.WEIGHTS / f"{victim.name}-{victim.weights}.safetensors"
            assert victim.weights == "random" or path.is_file()


def test_an_unknown_work_is_reported_in_one_sentence_with_the_nearest_name() -> None:
    with pytest.raises(SuiteError, match=r"'pgd-curv' is unknown; did you mean 'pgd-curve'\?"):
        workloads.select_workloads(["pgd-curv"], workloads.read_workloads())


def test_mistakes_in_the_file_of_works_are_reported_with_their_place(tmp_path: Path) -> None:
    path = tmp_path / "works.toml"
    path.write_text(
        '[[works]]\nname = "a"\ntitle = "a"\ndata = "digits"\nlimit = 0\nattack = "fgsm"\n'
        'eps = ["8-255"]\nours = ["often"]\nmodels = [{ name = "lenet" }]\n'
    )
    with pytest.raises(SuiteError) as error:
        workloads.read_workloads(path)
    result = "\n".join(error.value.problems)
    assert "works[0].limit: expected at least 1, got 0" in result
    assert "works[0].ours" in result
    assert "works[0].models[0].weights: expected a value, got nothing" in result


def test_data_that_are_not_there_are_reported_with_what_ships(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_OFFLINE", "1")
    small = work("fgsm")
    with pytest.raises(SuiteError, match="--data digits") as error:
        load_task(small, small.models[0], device=torch.device("cpu"), data_dir=tmp_path)
    assert len(error.value.problems) == 1


@pytest.mark.slow
def test_without_a_folder_of_images_they_are_random_and_the_model_labels_them() -> None:
    (big,) = workloads.select_workloads(["resnet50"], workloads.read_workloads())
    small = TargetModel(name="torchvision:squeezenet1_1", weights="random")
    task = load_task(big, small, device=torch.device("cpu"), data_dir=Path("none"), limit=2)
    assert task.data.name == "random images"
    assert task.x.shape == (2, 3, 224, 224)
    assert 0 <= float(task.x.min()) < float(task.x.max()) <= 1
    assert bool(task.clean.all())


# ------------------------------------------------------------------------------------------ racing


def test_the_table_has_a_row_for_everyone_and_the_judge_agrees_with_evaluate() -> None:
    task = loaded("pgd", "first-success", "never")
    done = raced(task)
    table = page.build_table(done)
    assert len(table) == len(done.outcomes) == len(list(list_competitors(task.work)))
    frame = page.build_frame([done]).set_index(["contestant", "eps"])
    expected = count_robust("pgd")
    for name in ("bench", "bench, every step"):
        rows = frame.loc[name]
        assert rows["robust"].tolist() == expected
        assert (rows["counted_right"] >= rows["robust"]).all()
        assert rows["judged"].tolist() == [IMAGES] * 3
        shown = table.set_index("contestant").loc[name, f"{page.ROBUST} 0.2"]
        assert shown == f"{100 * expected[2] / IMAGES:.2f} %"
    assert frame.loc["bare loop", "robust"].isna().all()
    assert expected[0] > expected[1] > expected[2]


def test_nested_finds_no_fewer_and_everyone_is_compared_with_torchattacks() -> None:
    task = loaded("bim", "first-success", "nested")
    done = raced(task, "bench", "bench, nested", "torchattacks", "bare loop", rounds=2)
    frame = page.build_frame([done])
    beyond = frame[frame["contestant"].isin(["bench", "torchattacks"])]
    assert (beyond["robust_beyond_torchattacks"] == 0).all()
    nested = frame[frame["contestant"] == "bench, nested"]["robust_beyond_torchattacks"]
    assert (nested <= 0).all()
    library = frame[frame["contestant"] == "torchattacks"]
    assert (library["over_torchattacks"] == 1).all()
    assert (frame[frame["contestant"] == "bare loop"]["over_bare"] == 1).all()
    for name in ("over_torchattacks", "over_bare"):
        assert (frame[f"{name}_q1"] <= frame[name]).all()
        assert (frame[name] <= frame[f"{name}_q3"]).all()


def test_each_round_starts_with_the_next_contestant() -> None:
    done = raced(loaded("fgsm"), "bench", "bare loop", "torchattacks", rounds=4)
    first = ["bench", "bare loop", "torchattacks"]
    assert done.orders == [first, first[1:] + first[:1], first[2:] + first[:2], first]
    assert all(len(each.seconds) == 4 for each in done.outcomes)


def test_without_a_batch_size_each_takes_the_best_of_those_tried() -> None:
    task = loaded("fgsm")
    done = run_race(task, list(list_competitors(task.work, ["torchattacks"])), rounds=1)
    for outcome in done.outcomes:
        if outcome.competitor.rows is None:
            assert list(outcome.searched) == list_batch_sizes(task)
            assert outcome.searched[outcome.rows] == min(outcome.searched.values())
    assert list_batch_sizes(task)[-1] == IMAGES


def test_a_shortened_work_is_the_same_with_fewer_examples_steps_and_eps() -> None:
    short = loaded("pgd").shortened(8)
    assert (len(short.x), len(short.y), short.steps, short.eps) == (8, 8, 2, (0.2,))
    assert loaded("fgsm").shortened(8).steps == 1


def test_a_library_that_is_not_installed_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("bench.workflows.speed.race.importlib.metadata.version", missing)
    done = raced(loaded("fgsm"))
    table = page.build_table(done).set_index("contestant")
    for name in ("torchattacks", "Foolbox", "ART", "adversarial-library"):
        assert set(table.loc[f"{name} (not run)"]) == {"—"}
        assert f"{name}: not run, not installed" in list(page.list_notes(done))
    assert page.build_frame([done])["status"].value_counts()["not run"] == len(PEERS)


def test_a_library_that_raises_is_a_row_and_an_error_of_ours_is_not_hidden() -> None:
    def broken(task: RaceTask) -> Callable[[int], WorkResult]:
        raise ValueError("no such\nthing")

    task = loaded("fgsm")
    library = Competitor(name="broken", prepare=broken, library="torchattacks")
    done = run_race(task, [library], rounds=1, rows=8)
    assert done.outcomes[0].status == "failed"
    assert done.outcomes[0].reason == "ValueError: no such"
    with pytest.raises(ValueError, match="no such"):
        run_race(task, [library._replace(library="")], rounds=1, rows=8)


def test_an_image_outside_the_ball_fools_nobody_and_is_counted() -> None:
    task = loaded("fgsm")

    def cheat(task: RaceTask) -> Callable[[int], WorkResult]:
        far = (1 - task.x).expand(len(EPS), *task.x.shape)
        return lambda rows: WorkResult(far, [0] * len(EPS))

    outcome = run_race(task, [Competitor(name="cheat", prepare=cheat)], rounds=1, rows=8).outcomes[
        0
    ]
    assert outcome.violations == IMAGES * len(EPS)
    assert outcome.robust is not None
    assert bool((outcome.robust == task.clean).all())


# ------------------------------------------------------------------------------------- competitors


@pytest.mark.parametrize("attack", list(PARAMS))
@pytest.mark.parametrize("peer", PEERS)
def test_a_library_does_the_same_work(peer: str, attack: str) -> None:
    """Without a random start its robust examples are ours; each one counts what the judge does."""
    task = loaded(attack)
    (competitor,) = (each for each in list_competitors(task.work, [peer]) if each.peer)
    try:
        importlib.metadata.version(competitor.library)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{competitor.library} is not installed")
    outcome = run_race(task, [competitor], rounds=1, rows=6).outcomes[0]
    if competitor.refusal:
        assert outcome.status == "not run"
        assert peer in ("adv_lib", "pyautoattack")  # neither has each of these attacks
        return
    assert outcome.status == "ok", outcome.reason
    assert outcome.robust is not None
    assert outcome.violations == 0
    counts = outcome.robust.sum(1).tolist()
    assert counts == outcome.right
    assert counts[0] == int(task.clean.sum())
    same_rule = attack in ("fgsm", "bim") or (attack == "mifgsm" and peer != "foolbox")
    slack = 0 if same_rule and peer != "adv_lib" else 4
    pairs = zip(counts, count_robust(attack), strict=True)
    assert all(abs(theirs - ours) <= slack for theirs, ours in pairs)


@pytest.mark.parametrize(
    ("attack", "name", "gradients"),
    [
        ("fgsm", bare_loop.NAME, 3),
        ("fgsm", "bare loop, one gradient", 1),
        ("pgd", bare_loop.NAME, 15),
    ],
)
def test_a_bare_loop_makes_the_attacks_passes_and_no_more(
    attack: str, name: str, gradients: int
) -> None:
    task = loaded(attack)
    competitor = next(each for each in bare_loop.list_variants(task.work) if each.name == name)
    run = competitor.prepare(task)
    with timing.count_passes(task.model) as passes:
        run(ROWS)
    assert passes.backwards == IMAGES * gradients
    assert passes.forwards == IMAGES * (gradients + len(EPS))


def test_the_tutorial_runs_on_a_few_images_and_its_seconds_are_scaled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tutorial, "IMAGES", 8)
    monkeypatch.setattr("bench.engine.timing.time_call", lambda work, device: (work(), 1.0))
    task = loaded("fgsm")
    done = raced(task, "bench", "tutorial loop")
    first, last = done.outcomes
    assert first.robust is not None
    assert last.robust is not None
    assert last.seconds == [IMAGES / 8]
    assert last.robust.equal(first.robust[:, :8])
    assert last.right == last.robust.sum(1).tolist()
    assert not any(p.requires_grad or p.grad is not None for p in task.model.parameters())


def test_only_a_work_of_one_gradient_has_a_tutorial_and_peers_can_be_chosen() -> None:
    assert list(tutorial.list_variants(work("pgd"))) == []
    names = [each.name for each in list_competitors(work("pgd"), ["art"])]
    assert names == ["bench", "bare loop", "bare loop on the copy", "ART"]
    assert {file.__name__.rpartition(".")[2] for file in FILES} >= set(PEERS)
    assert {each.peer for each in list_competitors(work("pgd"))} - {""} == set(PEERS)
    assert next(adv_lib.list_variants(work("fgsm"))).refusal


def test_ours_brings_an_image_for_every_eps() -> None:
    task = loaded("fgsm")
    brought = next(bench_engine.list_variants(task.work)).prepare(task)(ROWS)
    assert brought.x_adv is not None
    assert brought.x_adv.shape == (3, IMAGES, 1, 28, 28)
    assert brought.x_adv[0].equal(task.x)


# ----------------------------------------------------------------------------------------- reading


def test_a_ratio_is_taken_within_rounds() -> None:
    done = raced(loaded("fgsm"), "bench", "torchattacks")
    for outcome, seconds in zip(done.outcomes, ([1.0, 10.0, 2.0], [2.0, 20.0, 2.0]), strict=True):
        outcome.seconds = seconds
    rows = page.build_frame([done]).groupby("contestant").first()
    assert rows.loc["bench", "over_torchattacks"] == 0.5
    assert rows.loc["bench", "seconds"] == 2
    assert pd.isna(rows.loc["bench", "over_bare"])


class Answered(NamedTuple):
    returncode: int
    stdout: str
    stderr: str = ""


@pytest.fixture
def memory_jobs(monkeypatch: pytest.MonkeyPatch) -> list[memory.MemoryJob]:
    """The jobs given to processes, which are not started: the n-th answers n MiB."""
    jobs: list[memory.MemoryJob] = []

    def answer(command: list[str], *, input: str, **_: object) -> Answered:
        jobs.append(memory.MemoryJob(**json.loads(input)))
        return Answered(0, f"{2**20 * len(jobs)}\n")

    monkeypatch.setattr(memory, "subprocess", SimpleNamespace(run=answer))
    return jobs


def make_job(rows: int, competitor: str = "bare loop") -> memory.MemoryJob:
    return memory.MemoryJob(
        work="fgsm-sweep", model=0, competitor=competitor, device="cpu", data_dir="none",
        limit=128, data="digits", rows=rows, threads=1,
    )  # fmt: skip


def test_the_memory_of_each_competitor_is_measured_in_a_separate_process(
    memory_jobs: list[memory.MemoryJob],
) -> None:
    done = raced(loaded("fgsm"), "bench", "bare loop", "tutorial loop")
    memory.measure_memory(done, make_job(ROWS, competitor=""))
    assert [job.competitor for job in memory_jobs] == ["bench", "bare loop", "tutorial loop"]
    assert [job.rows for job in memory_jobs] == [ROWS, ROWS, 1]
    assert page.build_table(done)["memory over bare loop"].tolist() == ["0.5x", "1x", "1.5x"]


def test_a_larger_batch_has_a_higher_peak() -> None:
    assert memory.measure_peak(make_job(4)) < memory.measure_peak(make_job(128))


def test_a_real_process_answers() -> None:
    done = raced(loaded("fgsm"), "bare loop")
    memory.measure_memory(done, make_job(128))
    assert done.outcomes[0].memory, done.outcomes[0].memory_reason


def test_a_process_that_fails_says_why_in_its_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = Answered(1, "", "Traceback\nSuiteError: work 'nothing' is unknown\n")
    process = SimpleNamespace(run=lambda *args, **named: failed)
    monkeypatch.setattr(memory, "subprocess", process)
    done = raced(loaded("fgsm"), "bare loop")
    memory.measure_memory(done, make_job(ROWS))
    assert done.outcomes[0].memory_reason == "SuiteError: work 'nothing' is unknown"


# ------------------------------------------------------------------------------------ command line


class Said(NamedTuple):
    code: int
    out: str
    err: str


Type = Callable[..., Said]


def _typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object
) -> Said:
    monkeypatch.setattr(sys, "argv", ["bench", "speed", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return Said(ended.value.code, said.out, said.err)


@pytest.fixture
def type_(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Type:
    monkeypatch.setenv("BENCH_OFFLINE", "1")
    return partial(_typed, monkeypatch, capsys)


def test_a_command_writes_a_table_a_page_and_a_document_without_this_machines_paths(
    type_: Type, tmp_path: Path
) -> None:
    out = tmp_path / "speed"
    said = type_(
        "fgsm-sweep", "--data", "digits", "--limit", 16, "--rounds", 2, "--batch-size", 8,
        "--peer", "torchattacks", "--device", "cpu", "--data-dir", tmp_path, "--out", out,
        "--plain-heap",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert "robust at eps" in said.out
    command = (
        "bench speed fgsm-sweep --rounds 2 --limit 16 --batch-size 8 --device cpu --data digits "
        "--peer torchattacks --plain-heap"
    )
    texts = [(out / f"speed.{kind}").read_text() for kind in ("csv", "md", "json")]
    assert not any(str(tmp_path) in text or str(Path.home()) in text for text in texts)
    assert all(command in text for text in texts[1:])
    document = json.loads(texts[2])
    (race_,) = document["races"]
    ran = [len(each["seconds"]) for each in race_["contestants"]]
    assert set(ran) == {2}
    assert document["environment"]["threads"] == torch.get_num_threads()
    frame = pd.read_csv(out / "speed.csv")
    assert list(frame.columns) == list(page.CSV)
    assert len(frame) == len(ran) * 7


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nothing"], "work 'nothing' is unknown"),
        (["bim", "--peer", "foolbux"], "--peer 'foolbux' is unknown; did you mean 'foolbox'?"),
        (["bim", "--device", "tpu"], "device 'tpu'"),
        (["bim", "--data", "mnits"], "mnits"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    words: list[str], expected: str, type_: Type
) -> None:
    said = type_(*words)
    assert said.code == 2
    assert said.err.startswith("bench: ")
    assert expected in said.err
    assert said.err.count("\n") == 1


def test_the_heap_is_kept_only_where_the_c_library_can_do_so() -> None:
    result = (
        "from bench.engine.malloc import keep_freed_memory as keep; "
        "print(keep(), type(keep()).__name__)"
    )
    run = subprocess.run([sys.executable, "-c", result], capture_output=True, text=True, check=True)
    assert run.stdout in ("True bool\n", "False bool\n")


def test_the_list_names_every_work(type_: Type) -> None:
    said = type_("--list")
    assert said.code == 0
    assert all(each.name in said.out for each in workloads.read_workloads())
