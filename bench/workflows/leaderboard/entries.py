"""Store the entries of a leaderboard: a folder for each model.

It holds the card, the outcomes of every example (a snapshot, as a baseline), and the result of
running the model again.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Ge
from pydantic import TypeAdapter, ValidationError

from bench.analysis import snapshot_file
from bench.analysis.snapshot import CellSnapshot, Snapshot
from bench.analysis.snapshot_matching import NOTED
from bench.core.errors import RecordError, SuiteError, first_line
from bench.core.files import write_atomic
from bench.reporting.formats.numbers import format_plural
from bench.suite import catalog, plan
from bench.suite.identity import ModelFacts
from bench.suite.schema import Suite
from bench.workflows.leaderboard import model_card
from bench.workflows.leaderboard.model_card import ModelCard

CARD, OUTCOMES, RECHECK = "card.toml", "baseline.json", "recheck.json"
DEFAULT_SUITE = "leaderboard"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recheck:
    """The result of running a model again before it entered."""

    schema: Literal[1]
    examples: Annotated[int, Ge(1)]
    """Number of examples run again, the first of the suite."""
    compared: Annotated[int, Ge(1)]
    """Number of outcomes, over all cells and the clean pass."""
    differ: Annotated[int, Ge(0)]
    packages: dict[str, str | None]


class Entry(NamedTuple):
    """One model on the leaderboard."""

    card: ModelCard
    snapshot: Snapshot
    recheck: Recheck

    @property
    def signs(self) -> list[str]:
        """Audit symptoms of the model: kinds of evidence that an attack failed."""
        return self.snapshot.models[0].signs


def entry_folder(board: Path, card: ModelCard) -> Path:
    """Return the folder of a model's entry; names with the same folder denote one model.

    Args:
        board: Folder of the leaderboard.
        card: Card of the model.

    Returns:
        The folder, which need not exist.

    Raises:
        SuiteError: The name has no letter or digit.
    """
    stem = re.sub(r"[^a-z0-9]+", "-", card.name.lower()).strip("-")[:60]
    if not stem:
        raise SuiteError(f"card: name: expected a letter or digit, got {card.name!r}")
    return board / "entries" / stem


def check_place(folder: Path, card: ModelCard, claimed: Snapshot) -> None:
    """Check that a model takes no other one's place, and has no place under another name.

    Args:
        folder: Folder of its entry.
        card: Card of the model.
        claimed: Its outcomes.

    Raises:
        SuiteError: The entry there is of another model, or another entry is of this one, which
            would be ranked twice and count twice in the correction for all pairs.
        RecordError: An entry is damaged.
    """
    own = claimed.models[0].fingerprint
    for path in sorted(folder.parent.glob(f"*/{OUTCOMES}")):
        if path.parent != folder and snapshot_file.read_snapshot(path).models[0].fingerprint == own:
            raise SuiteError(
                f"{path.parent}: is the entry of this very model (fingerprint {own[:16]}); give "
                "its name to replace it, or delete that folder to enter the model under another"
            )
    if not (folder / OUTCOMES).exists():
        return
    there = snapshot_file.read_snapshot(folder / OUTCOMES).models[0].fingerprint
    if there != own:
        raise SuiteError(
            f"{folder}: expected no other model of the name '{card.name}', got one of fingerprint "
            f"{there[:16]}; choose another name with --name or in the card, or delete that folder "
            "to replace the entry"
        )


def write_entry(folder: Path, card: Path, snapshot: Snapshot, recheck: Recheck) -> None:
    """Write an entry: the card byte for byte, the outcomes and the recheck.

    Args:
        folder: Folder of the entry.
        card: File of the card.
        snapshot: Outcomes of the model.
        recheck: Result of running it again.

    Raises:
        SuiteError: A file cannot be written.
    """
    write_atomic(folder / CARD, card.read_bytes())
    snapshot_file.write_snapshot(snapshot, folder / OUTCOMES)
    text = json.dumps(dataclasses.asdict(recheck), indent=1, ensure_ascii=False)
    write_atomic(folder / RECHECK, f"{text}\n".encode())


def find_suite_name(board: Path) -> str:
    """Find the shipped suite that the entries of a leaderboard were run on.

    Args:
        board: Folder of the leaderboard.

    Returns:
        Name of the suite; "leaderboard" if there is no entry, or if its suite is not shipped.
    """
    for path in sorted((board / "entries").glob(f"*/{OUTCOMES}")):
        name = snapshot_file.read_snapshot(path).suite
        return name if name in catalog.list_suites() else DEFAULT_SUITE
    return DEFAULT_SUITE


def read_entries(board: Path, suite: Suite) -> list[Entry]:
    """Read all entries.

    Args:
        board: Folder of the leaderboard.
        suite: The threat model.

    Returns:
        Entries by the name of their folder.

    Raises:
        SuiteError: There is none, or one does not match the suite.
        RecordError: One is damaged, or of other examples than the rest.
    """
    folders = sorted(path.parent for path in (board / "entries").glob(f"*/{CARD}"))
    if not folders:
        raise SuiteError(
            f"{board}: expected entries/NAME/{CARD}, found none; "
            "bench leaderboard DIR --add RUN makes the first"
        )
    entries = [_entry(folder) for folder in folders]
    for folder, entry in zip(folders, entries, strict=True):
        problems = list_shortcomings(entry.snapshot, suite)
        if problems:
            raise SuiteError(*(f"{folder}: {problem}" for problem in problems))
        if entry.snapshot.data != entries[0].snapshot.data:
            raise RecordError(f"{folder}: other examples than those of {folders[0]}; add it again")
    return entries


def _entry(folder: Path) -> Entry:
    card = model_card.read_card(folder / CARD)
    snapshot = snapshot_file.read_snapshot(folder / OUTCOMES)
    if len(snapshot.models) != 1:
        got = len(snapshot.models)
        raise RecordError(f"{folder / OUTCOMES}: expected one model, got {got}; add it again")
    try:
        recheck = TypeAdapter(Recheck).validate_json((folder / RECHECK).read_bytes())
    except (OSError, ValidationError) as error:
        raise RecordError(
            f"{folder / RECHECK}: damaged ({first_line(error)}); add the model again"
        ) from error
    return Entry(card, snapshot, recheck)


# --------------------------------------------------------------------- comparison with the suite


def declared_settings(suite: Suite) -> dict[str, Mapping[str, Any]]:
    """Return the settings of each attack of a suite.

    Args:
        suite: The threat model.

    Returns:
        Label of an attack -> its settings, with defaults filled in.

    Raises:
        SuiteError: An attack is a transfer attack, which does not concern a single model.
    """
    facts = ModelFacts(None, None, model_fingerprint="any", data_fingerprint="any")
    settings = {}
    for entry in suite.attacks:
        if entry.source is not None:
            raise SuiteError(
                f"suite '{suite.name}': attack '{entry.label}' is crafted on another model; "
                "a leaderboard's attacks see the model that they attack"
            )
        settings[entry.label] = (
            plan.plan_task("", entry, facts, suite.seed, suite.sweep).cells[0].settings
        )
    return settings


def list_shortcomings(snapshot: Snapshot, suite: Suite) -> list[str]:
    """List how the outcomes of one model do not match the suite.

    Args:
        snapshot: Outcomes of the model.
        suite: The threat model.

    Returns:
        A sentence for each problem.
    """
    problems = []
    if suite.data.limit is not None and snapshot.data.n != suite.data.limit:
        problems.append(f"expected {suite.data.limit} examples, got {snapshot.data.n}")
    if snapshot.seed != suite.seed:
        problems.append(f"expected seed {suite.seed}, got {snapshot.seed}")
    asked = {task.attack: task.settings for task in snapshot.tasks}
    for label, wanted in declared_settings(suite).items():
        if label not in asked:
            problems.append(f"{label}: expected this attack, found none of that label")
            continue
        # The code of an attack may differ: entries that an earlier version made stay.
        problems += [
            f"{label}: {key}: expected {wanted.get(key)!r}, got {asked[label].get(key)!r}"
            for key in sorted({*wanted, *asked[label]} - {*NOTED})
            if wanted.get(key) != asked[label].get(key)
        ]
    cells = {(cell.attack, cell.eps): cell for cell in snapshot.cells}
    for attack in suite.attacks:
        for eps in attack.eps:
            if attack.label in asked and eps.value > 0:
                name = f"{attack.label}, eps {eps.text}"
                problems += _list_cell_problems(name, cells.get((attack.label, eps.value)))
    if problems and snapshot.suite != suite.name:  # a copy of another name may be the same threat
        problems.insert(
            0,
            f"expected a run of the suite {suite.name}, got one of {snapshot.suite}; name the "
            "suite of the leaderboard by --suite, or run the model on it",
        )
    return problems


def list_other_versions(snapshot: Snapshot, suite: Suite) -> list[str]:
    """List the attacks of a run that another version of bench made.

    A run is checked for this when it is submitted; entries that were admitted before stay.

    Args:
        snapshot: Outcomes of the model.
        suite: The threat model.

    Returns:
        A sentence for each attack.
    """
    declared = declared_settings(suite)
    codes = {
        task.attack: (task.settings.get("code"), declared[task.attack]["code"])
        for task in snapshot.tasks
        if task.attack in declared
    }
    return [
        f"{label}: expected the code of this bench ({now}), got {before}; run the suite again"
        for label, (before, now) in codes.items()
        if before != now
    ]


def _list_cell_problems(name: str, cell: CellSnapshot | None) -> list[str]:
    """List why a cell cannot be ranked."""
    if cell is None or cell.status != "ok":
        status = f"{cell.status}: {cell.reason}" if cell else "none"
        return [f"{name}: expected a finished cell, got {status}"]
    if cell.violations:
        count = format_plural(cell.violations, "image")
        return [f"{name}: {count} broke the threat model, where the attack could not succeed"]
    return []
