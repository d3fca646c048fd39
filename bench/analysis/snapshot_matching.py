"""What of two snapshots belongs together: the same examples, the same questions, the same cells."""

from typing import Any, NamedTuple

from bench.analysis.snapshot import Cell, Model, Snapshot, Task

NOTED = ("code",)
"""Settings whose change is noted and not in the way of a comparison."""


def models(snapshot: Snapshot) -> dict[str, Model]:
    return {model.model: model for model in snapshot.models}


def cells(snapshot: Snapshot) -> dict[tuple[str, str, float], Cell]:
    return {(cell.model, cell.attack, cell.eps): cell for cell in snapshot.cells}


def by_attack(snapshot: Snapshot) -> dict[tuple[str, str], Task]:
    return {(task.model, task.attack): task for task in snapshot.tasks}


def other_data(before: Snapshot, now: Snapshot) -> str:
    """Why the examples are not the same; empty if they are."""
    was, data = before.data, now.data
    if (was.n, was.fingerprint) == (data.n, data.fingerprint):
        return ""
    what = f"{was.n} examples of {was.name}"
    return f"other examples: the baseline has {what}, the run {data.n} of {data.name}" + (
        ", of other content" if (was.n, was.name) == (data.n, data.name) else ""
    )


class SettingChange(NamedTuple):
    """One setting of a task that two snapshots do not share."""

    name: str
    before: Any
    """None where it was not recorded."""
    now: Any


def changed(was: Task, task: Task) -> list[SettingChange]:
    """List the settings that differ, except those that are only noted."""
    names = sorted({*was.settings, *task.settings} - {*NOTED})
    pairs = [SettingChange(name, was.settings.get(name), task.settings.get(name)) for name in names]
    return [pair for pair in pairs if pair.before != pair.now]


def shared(before: Snapshot, now: Snapshot, task: Task) -> list[tuple[Cell, Cell]]:
    """The finished cells of a task that both sides have, before and now, if they ask the same."""
    was = by_attack(before).get((task.model, task.attack))
    if was is None or changed(was, task) or other_data(before, now):
        return []
    earlier = cells(before)
    sides = [
        (earlier[key], cell)
        for key, cell in cells(now).items()
        if key[:2] == (task.model, task.attack) and key in earlier
    ]
    return [(was, cell) for was, cell in sides if was.status == cell.status == "ok"]
