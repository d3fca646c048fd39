"""Judge validity, throughput and audit: everything that a check compares except accuracies."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bench.analysis import snapshot_matching
from bench.analysis.snapshot import AttackSnapshot, ModelSnapshot, Snapshot
from bench.evaluation.audit.symptoms import SYMPTOMS
from bench.reporting.formats import numbers
from bench.suite.thresholds import Threshold, Thresholds
from bench.workflows.gate.proof import describe_allowance
from bench.workflows.gate.verdicts import Outcome, Verdict

LEAST_SECONDS, LEAST_SHARE = 2.0, 0.85
"""Least processor time, and least ratio of processor time to wall time, of a throughput that is
judged. Measured: alone on a core, one attack's ratio varied by a factor of 1.07 over 2 s and of 1.2
over 0.05 s. With six other programs on two cores it varied by 1.5 over any time, and the ratio of
processor time was far below this one."""


def judge_quality(before: Snapshot, now: Snapshot, limits: Thresholds) -> Iterator[Verdict]:
    """Judge the validity of every attack on a model, and every model's throughput and audit.

    Args:
        before: Snapshot of the baseline.
        now: Snapshot of the run.
        limits: Thresholds.

    Yields:
        Verdicts.
    """
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
    threshold = limits.find("violations", task.model, (task.attack, task.family))
    sentence = f"{was} → {count} images that break their threat model"
    if count - was > threshold.amount:
        yield _of_task("validity", task, "regressed", f"{sentence}, {_allow_more(threshold)}")
    elif count < was:
        yield _of_task("validity", task, "improved", sentence)
    else:
        yield _of_task("validity", task, "passed", sentence if count else "no violation")


def _throughput(before: Snapshot, now: Snapshot, model: str, limits: Thresholds) -> Verdict:
    """Compare the time of all attacks on a model with the time at the baseline's floor ratios.

    So a long attack weighs more than a short one, and another mixture of attacks is no slowdown.
    """
    timed = [pair for pair in _list_timed(before, now) if pair.now.model == model]
    place = ("throughput", model, "", "")
    if why := _explain_untimed(before, now, timed):
        return Verdict(*place, "not judged", why)
    seconds = sum(pair.now.seconds for pair in timed)
    factor = seconds / sum(pair.now.seconds * pair.was_ratio / pair.ratio for pair in timed)
    sentence = (
        f"{numbers.format_factor(factor)} the baseline's time per pass of a bare loop, "
        f"{numbers.format_seconds(seconds)} in all: {1 / factor - 1:+.0%} examples per second"
    )
    threshold = limits.find("examples_per_second", model)
    least = 1 - float(threshold.amount) / 100
    if 1 / factor < least:
        limit = f"more than the {describe_allowance(threshold)} allowed"
        return Verdict(*place, "regressed", f"{sentence}, {limit}")
    return Verdict(*place, "improved" if least * (1 / factor) > 1 else "passed", sentence)


class _Timed(NamedTuple):
    """An attack on a model that both sides timed over the same cells."""

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
    """Return why the throughput cannot be judged; empty if it can."""
    if not timed:
        return "no attack was timed both times over the same cells"
    if before.machine != now.machine:
        machines = f"{describe_machine(before)} before, {describe_machine(now)} now"
        return f"timed on another machine: {machines}"
    sides = [pair.was.seconds for pair in timed], [pair.now.seconds for pair in timed]
    short = min(map(sum, sides))
    if short < LEAST_SECONDS:
        least = numbers.format_seconds(LEAST_SECONDS)
        return f"too short to judge: {numbers.format_seconds(short)} of {least}"
    for side, tasks in (("baseline", [p.was for p in timed]), ("run", [p.now for p in timed])):
        clock = sum(task.clock_seconds for task in tasks)
        share = sum(task.seconds for task in tasks) / clock if clock else 1.0
        if share < LEAST_SHARE:
            return f"the {side} had the processor for {share:.0%} of its time"
    return ""


def describe_machine(snapshot: Snapshot) -> str:
    """Name device, processor and number of threads of a run.

    Args:
        snapshot: Of the run.

    Returns:
        The three, separated by commas.
    """
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
        was, symptoms = set(earlier[label].signs), set(model.signs)
        new = sorted(symptoms - was)
        unchecked = sorted((was - symptoms) & set(model.unchecked))
        unaudited = _list_unaudited(now, label)
        threshold = limits.find("audit", label)
        place = ("audit", label, "", "")
        if len(new) > threshold.amount:
            sentence = f"new symptoms of a failed attack: {', '.join(new)}"
            yield Verdict(*place, "regressed", f"{sentence}; {_allow_more(threshold)}")
        elif unchecked:  # not gone, as far as anybody knows
            sentence = f"symptoms of the baseline that were not checked: {', '.join(unchecked)}"
            yield Verdict(*place, "not compared", sentence)
        elif symptoms < was and unaudited:  # perhaps they were of the attack that crashed
            sentence = f"symptoms of the baseline not found: {', '.join(sorted(was - symptoms))}"
            yield Verdict(*place, "not compared", f"{sentence}; {_name_unaudited(unaudited)}")
        elif symptoms < was:
            yield Verdict(*place, "improved", f"gone: {', '.join(sorted(was - symptoms))}")
        elif {*SYMPTOMS} <= {*model.unchecked}:
            yield Verdict(*place, "not judged", "nothing could be audited")
        else:
            yield Verdict(*place, "passed", _describe_symptoms(model, new, unaudited))


def _describe_symptoms(model: ModelSnapshot, new: Sequence[str], unaudited: Sequence[str]) -> str:
    """Say which symptoms the audit of a run found, and what it did not audit."""
    sentence = "no symptom" if unaudited else "no symptom of a failed attack"
    if model.signs:
        known = f"{len(new)} of them new" if new else "none of them new"
        sentence = f"{numbers.format_plural(len(model.signs), 'symptom')}, {known}"
    if model.unchecked:
        sentence += f"; {len(model.unchecked)} not checked"
    if unaudited:
        sentence += f"; {_name_unaudited(unaudited)}"
    return sentence


def _name_unaudited(attacks: Sequence[str]) -> str:
    return f"not audited, as no cell is finished: {', '.join(attacks)}"


def _list_unaudited(now: Snapshot, model: str) -> list[str]:
    """List the attacks on a model of which no cell is finished and one should be."""
    planned = [cell for cell in now.cells if cell.model == model and cell.status != "skipped"]
    done = {cell.attack for cell in planned if cell.status == "ok"}
    return [name for name in dict.fromkeys(cell.attack for cell in planned) if name not in done]


def _of_task(gate: str, task: AttackSnapshot, outcome: Outcome, sentence: str) -> Verdict:
    return Verdict(gate, task.model, task.attack, "", outcome, sentence)


def _allow_more(threshold: Threshold) -> str:
    """Say how many more of something a threshold allows."""
    amount = describe_allowance(threshold)
    return "no more are allowed" if amount == "0" else f"at most {amount} more allowed"
