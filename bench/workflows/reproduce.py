"""Repeat a run from its manifest, and compare both runs example by example.

The run's folder holds the suite's text, the options and the environment. Data and the user's own
files are looked up at their former paths; changed files are reported.
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
from bench.suite.reader import parse_suite
from bench.suite.schema import Suite

OUTCOME = ("clean_correct", "attacked", "fooled", "violation")
"""Columns that decide how an example counts."""
MEASURED = (
    "confidence", "clean_confidence", "agreement", "linf", "l2", "l1", "l0", "distance",
)  # fmt: skip
"""Columns that may differ by rounding between devices or versions."""
NAMES = ("suite", "model", "attack", "norm", "goal", "eps", "cell")
"""Columns that identify the cell of a row."""
SHOWN = 5
"""Example ids shown at most."""
MACHINE = ("device", "device_name", "processor", "python", "platform", "cuda", "threads")
"""Entries of an environment that are compared, in addition to packages."""


class RepetitionPlan(NamedTuple):
    """What to run again, and the differences known beforehand."""

    suite: Suite
    options: RunOptions
    notes: list[str]


class CellComparison(NamedTuple):
    """The outcomes of one cell in both runs."""

    place: Mapping[str, Any]
    n: int
    """Examples in both runs."""
    otherwise: list[int]
    """Examples that count differently."""
    columns: list[str]
    """Columns that are not bitwise equal."""
    farthest: float
    """Largest difference of a distance or a confidence."""

    @property
    def phrase(self) -> str:
        """The comparison in a sentence."""
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
    """A run and its repetition, compared."""

    cells: list[CellComparison]
    apart: list[str]
    """A sentence for each cell whose status differs."""
    refusal: str
    """Why nothing was compared; empty otherwise."""

    def agree(self, bits: bool) -> bool:
        """Return whether both runs agree.

        Args:
            bits: Require bitwise equal records in addition to equal outcomes.

        Returns:
            Whether they do.
        """
        same = not any(cell.otherwise or (bits and cell.columns) for cell in self.cells)
        return same and not self.apart


def plan_repetition(
    folder: Path, base: Path | None, device: str | None, data_dir: Path, command: str
) -> RepetitionPlan:
    """Read suite and options of a run's last session.

    Args:
        folder: Folder of the run.
        base: Folder of the files that the suite names; None: as it was.
        device: Device to use; None: as it was.
        data_dir: Folder of the data sets.
        command: Command line, for the manifest of the repetition.

    Returns:
        What to run.

    Raises:
        SuiteError: There is no run, or a file of the suite is missing.
        RecordError: The run's provenance.json is damaged.
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
            "the run was made by an earlier version that kept no options: its number of examples "
            "and its device are used, and defaults for the rest"
        )
        asked = {"limit": about["data"]["n"]}
    options = RunOptions(
        device=device or session["environment"]["device"],
        limit=asked["limit"],
        batch_size=asked.get("batch_size"),
        copied=asked.get("copied", True),
        deterministic=asked.get("deterministic", False),
        shard=sharding.parse_shard(asked.get("share", "1/1")),
        data_dir=data_dir,
        chunk_examples=about["data"].get("chunk_examples"),
        larger_chunks=False,
        command=command,
    )
    return RepetitionPlan(suite, options, notes)


def check_output_folder(folder: Path, out: Path) -> None:
    """Check that the folder of a repetition can be used.

    Args:
        folder: Folder of the run.
        out: Folder of the repetition.

    Raises:
        SuiteError: Both are the same, or `out` holds a finished run.
    """
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


# ------------------------------------------------------------------ differences of the environment


def list_environment_differences(folder: Path, options: RunOptions) -> Iterator[str]:
    """List how the environment differs from that of a run's last session.

    Args:
        folder: Folder of the run.
        options: Options of the repetition.

    Yields:
        Sentences.

    Raises:
        SuiteError: The device is missing.
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
    """Return package -> version: of all packages if both sessions list them, else the main ones."""
    if session.get("requirements") and other.get("requirements"):
        pairs = (line.partition("==") for line in session["requirements"])
        return {name: version for name, _, version in pairs}
    return {
        name: version for name, version in session["environment"]["packages"].items() if version
    }


def list_identity_changes(first: RunResults, second: RunResults) -> Iterator[str]:
    """List models with another fingerprint, and cells with another identity.

    Args:
        first: The run.
        second: Its repetition.

    Yields:
        Sentences.
    """
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
        names = ", ".join(dict.fromkeys(other))
        yield f"other code, settings, data or model than then, so other cells: {names}"


# ----------------------------------------------------------------------- differences of the results


def compare_repetition(first: RunResults, second: RunResults) -> RunComparison:
    """Compare a repetition with its run, cell by cell.

    Args:
        first: The run.
        second: Its repetition.

    Returns:
        The comparison.
    """
    comparison = compare_runs.compare_runs(first, second)
    cells = (
        []
        if comparison.refusal
        else [_compare_cell(sides) for sides in compare_runs.pair_shared_cells(first, second)]
    )
    apart = [] if comparison.refusal else list(_list_apart(first, second))
    return RunComparison(cells, apart, comparison.refusal)


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
    """List cells whose status differs."""
    here, there = compare_runs.index_statuses(first), compare_runs.index_statuses(second)
    for key in dict.fromkeys([*here, *there]):
        cell = (here.get(key) or there[key])[0]
        sides = [run[key][1:] if key in run else ("absent", "") for run in (here, there)]
        if sides[0][0] != sides[1][0]:
            ended = [f"{status} ({reason})" if reason else status for status, reason in sides]
            change = f"{ended[0]} then, {ended[1]} now"
            yield f"{cell.model} · {cell.attack} at eps {cell.eps_text}: {change}"


def describe_cells(cells: Sequence[CellComparison]) -> Iterator[str]:
    """Describe the cells, one sentence for all eps of an attack with the same result.

    Args:
        cells: Cells of a comparison.

    Yields:
        Sentences.
    """
    groups: dict[tuple[str, str, str], list[str]] = {}
    for cell in cells:
        place = (str(cell.place["model"]), str(cell.place["attack"]), cell.phrase)
        groups.setdefault(place, []).append(str(cell.place["eps_text"]))
    for (model, attack, phrase), radii in groups.items():
        each = " each" if len(radii) > 1 else ""
        yield f"{model} · {attack} at eps {', '.join(radii)}: {phrase}{each}"
