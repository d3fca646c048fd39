"""A run repeated from its own provenance, and held against itself example by example.

Everything that a run was made from is in its folder or named there: the suite's text, how it was
called, the environment. What is somewhere else (data, the user's own files) is looked for where it
was, and what of it has changed is said.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from bench.analysis import compare_runs
from bench.analysis.compare_runs import CellPair
from bench.analysis.results import RunResults
from bench.core.errors import SuiteError
from bench.engine import determinism
from bench.evaluation import loading
from bench.execution import sharding
from bench.execution.options import RunOptions
from bench.storage import environment, manifest
from bench.storage.schema import select_columns
from bench.suite.reader import parse_suite
from bench.suite.schema import Suite

OUTCOME = select_columns("outcome")
"""An example whose values in these columns are the same here counts the same."""
MEASURED = select_columns("measured")
NAMES = select_columns("cell")
SHOWN = 5
"""Examples that are named, at most."""
MACHINE = ("device", "device_name", "processor", "python", "platform", "cuda", "threads")
"""What of an environment is compared beside the packages."""


class RepetitionPlan(NamedTuple):
    """What is to be run again, and what is known to be otherwise before it is."""

    suite: Suite
    options: RunOptions
    notes: list[str]


class CellComparison(NamedTuple):
    """One cell of both runs."""

    place: Mapping[str, Any]
    n: int
    """Examples that both have."""
    otherwise: list[int]
    """Those that count otherwise."""
    columns: list[str]
    """Names of the columns that are not the same to the last bit, whatever they count."""
    farthest: float
    """Most that a distance or a confidence is off by; 0 where none is."""

    @property
    def phrase(self) -> str:
        """How the two are alike, for people."""
        if self.otherwise:
            ids = ", ".join(map(str, self.otherwise[:SHOWN]))
            more = ", ..." if len(self.otherwise) > SHOWN else ""
            return f"{len(self.otherwise)} of {self.n} outcomes differ: examples {ids}{more}"
        if self.columns:
            return (
                f"{self.n} outcomes identical; not to the last bit: {', '.join(self.columns)} "
                f"(distances and confidences by at most {self.farthest:.2g})"
            )
        return f"{self.n} outcomes identical to the last bit"


class RunComparison(NamedTuple):
    """A run and its repetition, side by side."""

    twins: list[CellComparison]
    apart: list[str]
    """A sentence on each model and attack that ended otherwise: failed, skipped, gone or new."""
    refusal: str
    """Why nothing was compared; empty if something was."""

    def agree(self, bits: bool) -> bool:
        """Whether all counts the same, and, if `bits`, is the same to the last bit."""
        same = not any(twin.otherwise or (bits and twin.columns) for twin in self.twins)
        return same and not self.apart


def plan_repetition(
    folder: Path, base: Path | None, device: str | None, data_dir: Path, command: str
) -> RepetitionPlan:
    """The suite and the options of the last session in `folder`; `base` is where the files lie that
    the suite names, where that is not where they were.

    Raises: SuiteError if there is no run, or such a file is missing; RecordError if its
    provenance.json is damaged.
    """
    about, _ = manifest.read_manifest(folder)
    session, where = about["sessions"][-1], f"{folder / manifest.FILE}: its suite"
    root = Path(about["suite"].get("base") or ".") if base is None else base
    files: dict[str, str] = about.get("files", {})
    missing = [name for name in files if not (root / name).is_file()]
    if missing:
        raise SuiteError(
            f"{where} names {', '.join(missing)}, not found in {root}; say with --base where "
            "such files lie now"
        )
    suite = parse_suite(about["suite"]["text"], where, root.resolve())
    now = environment.hash_files(root, files)
    notes = [
        f"{name} is not the file that it was (sha256 {files[name][:16]} then, {now[name][:16]} now)"
        for name in files
        if now[name] != files[name]
    ]
    asked = session.get("options")
    if asked is None:
        notes.append(
            "the run was made by a bench that kept no options: taken are its number of examples "
            "and its device, and the defaults for the rest"
        )
        asked = {"limit": about["data"]["n"]}
    options = RunOptions(
        device=device or session["environment"]["device"],
        limit=asked["limit"],
        batch_size=asked.get("batch_size"),
        copied=asked.get("copied", True),
        deterministic=asked.get("deterministic", False),
        share=sharding.parse_shard(asked.get("share", "1/1")),
        data_dir=data_dir,
        command=command,
    )
    return RepetitionPlan(suite, options, notes)


def check_output_folder(folder: Path, out: Path) -> None:
    """Raises: SuiteError unless `out` is another folder than the run's, and is new or holds a
    repetition that was interrupted."""
    if out.resolve() == folder.resolve():
        raise SuiteError(f"{out}: is the run itself; choose another folder with --out")
    if not (out / manifest.FILE).exists():
        return
    about, _ = manifest.read_manifest(out)
    if about["sessions"][-1]["finished"] is not None:
        raise SuiteError(
            f"{out}: holds a run that is finished, so nothing would run again; delete it or choose "
            "another folder with --out"
        )


# --------------------------------------------------------------------------- what differs before


def list_environment_differences(folder: Path, options: RunOptions) -> Iterator[str]:
    """How the environment of the last session in `folder` differs from this one, a sentence each.

    Raises: SuiteError if the device is not there.
    """
    before = manifest.read_manifest(folder)[0]["sessions"][-1]
    with determinism.enforce_determinism(options.deterministic):
        then, now = (
            before["environment"],
            environment.describe_environment(loading.select_device(options.device)),
        )
    after = {"environment": now, "requirements": environment.list_requirements()}
    for name in MACHINE:
        if then.get(name) != now.get(name):
            yield f"{name.replace('_', ' ')}: {then.get(name)} then, {now.get(name)} now"
    commits = [(each.get("git") or {}).get("commit") for each in (then, now)]
    if commits[0] != commits[1]:
        yield f"commit of bench: {commits[0]} then, {commits[1]} now"
    old, new = _versions(before, after), _versions(after, before)
    changed = [name for name in old if name in new and old[name] != new[name]]
    yield from (f"{name}: {old[name]} then, {new[name]} now" for name in changed)
    for side, here, there in (("then", old, new), ("now", new, old)):
        if only := [name for name in here if name not in there]:
            yield f"installed {side} alone: {', '.join(only)}"


def _versions(session: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, str]:
    """Package -> version: of everything, if both sessions know that much, else of the main ones."""
    if session.get("requirements") and other.get("requirements"):
        pairs = (line.partition("==") for line in session["requirements"])
        return {name: version for name, _, version in pairs}
    return {
        name: version for name, version in session["environment"]["packages"].items() if version
    }


def list_identity_changes(first: RunResults, second: RunResults) -> Iterator[str]:
    """What the two runs ask otherwise: models of another fingerprint, cells of another identity."""
    for label, model in first.provenance["models"].items():
        twin = second.provenance["models"].get(label)
        if twin is not None and twin["fingerprint"] != model["fingerprint"]:
            yield f"{label} is another model now: other weights or another architecture"
    here, there = compare_runs.index_statuses(first), compare_runs.index_statuses(second)
    other = [
        f"{cell.model} · {cell.attack}"
        for key, (cell, _, _) in here.items()
        if key in there and there[key][0].identity != cell.identity
    ]
    if other:
        told = ", ".join(dict.fromkeys(other))
        yield f"other code, settings, data or model than then, so other cells: {told}"


# --------------------------------------------------------------------------- what differs after


def compare_repetition(first: RunResults, second: RunResults) -> RunComparison:
    """The repetition beside the run, cell by cell."""
    found = compare_runs.compare_runs(first, second)
    twins = (
        []
        if found.refusal
        else [_compare_cell(sides) for sides in compare_runs.pair_shared_cells(first, second)]
    )
    return RunComparison(
        twins, [] if found.refusal else list(_list_apart(first, second)), found.refusal
    )


def _compare_cell(sides: CellPair) -> CellComparison:
    a, b = sides.first, sides.second
    # Text is compared as text: its categories are those of a whole run, not of a cell.
    texts = [name for name in a.columns if not pd.api.types.is_numeric_dtype(a[name])]
    a, b = (frame.astype(dict.fromkeys(texts, str)) for frame in (a, b))
    columns = [name for name in a.columns if name not in NAMES and not a[name].equals(b[name])]
    counted = pd.concat([a[name] != b[name] for name in OUTCOME], axis=1).any(axis=1)
    gaps = [(a[name] - b[name]).abs().max() for name in columns if name in MEASURED]
    farthest = float(pd.Series([0.0, *gaps]).max())  # where one has none, there is no distance
    return CellComparison(sides.place, len(a), a.index[counted].tolist(), columns, farthest)


def _list_apart(first: RunResults, second: RunResults) -> Iterator[str]:
    """Cells that did not end alike."""
    here, there = compare_runs.index_statuses(first), compare_runs.index_statuses(second)
    for key in dict.fromkeys([*here, *there]):
        cell = (here.get(key) or there[key])[0]
        sides = [run[key][1:] if key in run else ("absent", "") for run in (here, there)]
        if sides[0][0] != sides[1][0]:
            ended = [f"{status} ({reason})" if reason else status for status, reason in sides]
            told = f"{ended[0]} then, {ended[1]} now"
            yield f"{cell.model} · {cell.attack} at eps {cell.eps_text}: {told}"


def describe_cells(twins: Sequence[CellComparison]) -> Iterator[str]:
    """A sentence on each model and attack, those eps together that are alike in the same way."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for twin in twins:
        place = (str(twin.place["model"]), str(twin.place["attack"]), twin.phrase)
        groups.setdefault(place, []).append(str(twin.place["eps_text"]))
    for (model, attack, phrase), radii in groups.items():
        each = " each" if len(radii) > 1 else ""
        yield f"{model} · {attack} at eps {', '.join(radii)}: {phrase}{each}"
