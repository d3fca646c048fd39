"""What of two snapshots belongs together: the same examples, the same questions, the same cells."""

from typing import Any, NamedTuple

from bench.analysis.snapshot import AttackSnapshot, CellSnapshot, ModelSnapshot, Snapshot

NOTED = ("code",)
"""Settings whose change is noted and not in the way of a comparison."""


def index_models(snapshot: Snapshot) -> dict[str, ModelSnapshot]:
    return {model.model: model for model in snapshot.models}


def index_cells(snapshot: Snapshot) -> dict[tuple[str, str, float], CellSnapshot]:
    return {(cell.model, cell.attack, cell.eps): cell for cell in snapshot.cells}


def index_attacks(snapshot: Snapshot) -> dict[tuple[str, str], AttackSnapshot]:
    return {(task.model, task.attack): task for task in snapshot.tasks}


def describe_data_change(before: Snapshot, now: Snapshot) -> str:
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


def find_setting_changes(was: AttackSnapshot, task: AttackSnapshot) -> list[SettingChange]:
    """List the settings that differ, except those that are only noted."""
    names = sorted({*was.settings, *task.settings} - {*NOTED})
    pairs = [SettingChange(name, was.settings.get(name), task.settings.get(name)) for name in names]
    return [pair for pair in pairs if pair.before != pair.now]


def pair_finished_cells(
    before: Snapshot, now: Snapshot, task: AttackSnapshot
) -> list[tuple[CellSnapshot, CellSnapshot]]:
    """The finished cells of a task that both sides have, before and now, if they ask the same."""
    was = index_attacks(before).get((task.model, task.attack))
    if was is None or find_setting_changes(was, task) or describe_data_change(before, now):
        return []
    earlier = index_cells(before)
    sides = [
        (earlier[key], cell)
        for key, cell in index_cells(now).items()
        if key[:2] == (task.model, task.attack) and key in earlier
    ]
    return [(was, cell) for was, cell in sides if was.status == cell.status == "ok"]
