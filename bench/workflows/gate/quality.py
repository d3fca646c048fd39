"""What a check watches beside accuracies: promises kept, pace, and signs that an attack failed."""

from collections.abc import Iterator
from typing import NamedTuple

from bench.analysis import snapshot_matching
from bench.analysis.snapshot import AttackSnapshot, Snapshot
from bench.reporting.formats import numbers
from bench.suite.thresholds import Threshold, Thresholds
from bench.workflows.gate.verdicts import Outcome, Verdict

LEAST_SECONDS, LEAST_SHARE = 2.0, 0.85
"""Of the processor's time, and of the clock's time in which the processor worked for the run: a
throughput timed over less is not judged. Measured: alone on a core, one attack's ratio varied by
1.07 over 2 s and by 1.2 over 0.05 s. Beside half a dozen programs on two cores it varied by 1.5
whatever the time, and the share was well below this one: no verdict stands on that."""


def judge_quality(before: Snapshot, now: Snapshot, limits: Thresholds) -> Iterator[Verdict]:
    """Validity of every attack on a model, and every model's throughput and audit."""
    for task in now.tasks:
        yield from _validity(before, now, task, limits)
    for model in dict.fromkeys(task.model for task in now.tasks):
        yield _throughput(before, now, model, limits)
    yield from _audit(before, now, limits)


def _validity(
    before: Snapshot, now: Snapshot, task: AttackSnapshot, limits: Thresholds
) -> Iterator[Verdict]:
    cells = snapshot_matching.pair_finished_cells(before, now, task)
    if not cells:
        return
    was = sum(cell.violations for cell, _ in cells)
    count = sum(cell.violations for _, cell in cells)
    threshold = limits.of("violations", task.model, (task.attack, task.family))
    told = f"{was} → {count} images that break their threat model"
    if count - was > threshold.amount:
        yield _of_task("validity", task, "regressed", f"{told}, beyond {_limit(threshold)}")
    elif count < was:
        yield _of_task("validity", task, "improved", told)
    else:
        yield _of_task("validity", task, "passed", told if count else "no violation")


def _throughput(before: Snapshot, now: Snapshot, model: str, limits: Thresholds) -> Verdict:
    """The time that all attacks on a model took, over the time that the same passes would have
    taken at the baseline's ratios: so a long attack weighs more than a short one, and a mixture
    that changed is no slower engine."""
    timed = [pair for pair in _list_timed(before, now) if pair.now.model == model]
    place = ("throughput", model, "", "")
    if why := _explain_untimed(before, now, timed):
        return Verdict(*place, "not judged", why)
    seconds = sum(pair.now.seconds for pair in timed)
    factor = seconds / sum(pair.now.seconds * pair.was_ratio / pair.ratio for pair in timed)
    told = (
        f"{numbers.format_factor(factor)} the baseline's time per pass of a bare loop, "
        f"{numbers.format_seconds(seconds)} in all: {1 / factor - 1:+.0%} examples per second"
    )
    threshold = limits.of("examples_per_second", model)
    least = 1 - float(threshold.amount) / 100
    if 1 / factor < least:
        return Verdict(*place, "regressed", f"{told}, beyond {_limit(threshold)}")
    return Verdict(*place, "improved" if least * (1 / factor) > 1 else "passed", told)


class _Timed(NamedTuple):
    """An attack on a model that was timed both times over the same cells."""

    was: AttackSnapshot
    now: AttackSnapshot
    was_ratio: float
    ratio: float


def _list_timed(before: Snapshot, now: Snapshot) -> Iterator[_Timed]:
    were = snapshot_matching.index_attacks(before)
    for key, task in snapshot_matching.index_attacks(now).items():
        was = were.get(key)
        if was is None or not was.floor_ratio or not task.floor_ratio:
            continue
        shared = {cell.eps for _, cell in snapshot_matching.pair_finished_cells(before, now, task)}
        finished = {
            cell.eps
            for cell in (*before.cells, *now.cells)
            if (cell.model, cell.attack) == key and cell.status == "ok"
        }
        if shared == finished:
            yield _Timed(was, task, was.floor_ratio, task.floor_ratio)


def _explain_untimed(before: Snapshot, now: Snapshot, timed: list[_Timed]) -> str:
    """Why the throughput of these attacks says nothing; empty if it does."""
    if not timed:
        return "no attack was timed both times over the same cells"
    if before.machine != now.machine:
        return f"timed on another machine: {describe_machine(before)} before, {describe_machine(now)} now"
    sides = [pair.was.seconds for pair in timed], [pair.now.seconds for pair in timed]
    short = min(map(sum, sides))
    if short < LEAST_SECONDS:
        return f"too short to judge: {numbers.format_seconds(short)} of {numbers.format_seconds(LEAST_SECONDS)}"
    for side, tasks in (("baseline", [p.was for p in timed]), ("run", [p.now for p in timed])):
        clock = sum(task.clock_seconds for task in tasks)
        share = sum(task.seconds for task in tasks) / clock if clock else 1.0
        if share < LEAST_SHARE:
            return (
                f"the {side} had the processor for {share:.0%} of its time, beside other programs"
            )
    return ""


def describe_machine(snapshot: Snapshot) -> str:
    machine = snapshot.machine
    return (
        f"{machine.device}, {machine.processor}, {numbers.format_plural(machine.threads, 'thread')}"
    )


def _audit(before: Snapshot, now: Snapshot, limits: Thresholds) -> Iterator[Verdict]:
    earlier, other = (
        snapshot_matching.index_models(before),
        snapshot_matching.describe_data_change(before, now),
    )
    for label, model in snapshot_matching.index_models(now).items():
        if label not in earlier or other:
            continue
        was, signs = set(earlier[label].signs), set(model.signs)
        new = sorted(signs - was)
        threshold = limits.of("audit", label)
        place = ("audit", label, "", "")
        if len(new) > threshold.amount:
            told = f"new signs that an attack failed: {', '.join(new)}"
            yield Verdict(*place, "regressed", f"{told}; beyond {_limit(threshold)}")
        elif signs < was:
            yield Verdict(*place, "improved", f"gone: {', '.join(sorted(was - signs))}")
        else:
            told = f"{numbers.format_plural(len(signs), 'kind')} of sign, "
            told += f"{len(new)} of them new" if new else "none of them new"
            yield Verdict(*place, "passed", told if signs else "no sign that an attack failed")


def _of_task(gate: str, task: AttackSnapshot, outcome: Outcome, sentence: str) -> Verdict:
    return Verdict(gate, task.model, task.attack, "", outcome, sentence)


def _limit(threshold: Threshold) -> str:
    return threshold.text.partition(":")[2]
