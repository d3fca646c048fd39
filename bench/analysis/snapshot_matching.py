"""Match the models, attacks and cells of two snapshots, if data and settings are the same."""

from typing import Any, NamedTuple

from bench.analysis.snapshot import AttackSnapshot, CellSnapshot, ModelSnapshot, Snapshot

NOTED = ("code",)
"""Settings whose change is reported, but does not prevent a comparison."""


def index_models(snapshot: Snapshot) -> dict[str, ModelSnapshot]:
    """Index the models of a snapshot.

    Args:
        snapshot: Of a run.

    Returns:
        Label -> model.
    """
    return {model.model: model for model in snapshot.models}


def index_cells(snapshot: Snapshot) -> dict[tuple[str, str, float], CellSnapshot]:
    """Index the cells of a snapshot.

    Args:
        snapshot: Of a run.

    Returns:
        (model, attack, eps) -> cell.
    """
    return {(cell.model, cell.attack, cell.eps): cell for cell in snapshot.cells}


def index_attacks(snapshot: Snapshot) -> dict[tuple[str, str], AttackSnapshot]:
    """Index the attacks of a snapshot.

    Args:
        snapshot: Of a run.

    Returns:
        (model, attack) -> the attack on the model.
    """
    return {(task.model, task.attack): task for task in snapshot.tasks}


def describe_data_change(before: Snapshot, now: Snapshot) -> str:
    """Say how the examples of two snapshots differ.

    Args:
        before: The baseline.
        now: The run.

    Returns:
        A phrase; empty if the examples are the same.
    """
    was, data = before.data, now.data
    if (was.n, was.fingerprint) == (data.n, data.fingerprint):
        return ""
    what = f"{was.n} examples of {was.name}"
    return f"other examples: the baseline has {what}, the run {data.n} of {data.name}" + (
        ", of other content" if (was.n, was.name) == (data.n, data.name) else ""
    )


class SettingChange(NamedTuple):
    """A setting of an attack that differs between two snapshots."""

    name: str
    before: Any
    """None if it was not recorded."""
    now: Any


def find_setting_changes(was: AttackSnapshot, task: AttackSnapshot) -> list[SettingChange]:
    """List the settings that differ, except those of NOTED.

    Args:
        was: An attack in the baseline.
        task: The same attack in the run.

    Returns:
        Changes, sorted by name.
    """
    names = sorted({*was.settings, *task.settings} - {*NOTED})
    pairs = [SettingChange(name, was.settings.get(name), task.settings.get(name)) for name in names]
    return [pair for pair in pairs if pair.before != pair.now]


def pair_finished_cells(
    before: Snapshot, now: Snapshot, task: AttackSnapshot
) -> list[tuple[CellSnapshot, CellSnapshot]]:
    """Pair the finished cells of one attack.

    Args:
        before: The baseline.
        now: The run.
        task: The attack in the run.

    Returns:
        (before, now) for each eps that both finished; empty if data or settings differ.
    """
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
