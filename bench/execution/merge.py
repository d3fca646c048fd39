"""Several folders of one run become one: the shares of `--shard I/N`, or two places' records.

Records are never made anew here: files are copied byte for byte, once it is sure that all folders
answer the same question with the same models on the same data, and that what two of them hold of
the same examples is the same to the last bit.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from bench.core import files, lock
from bench.core.errors import RecordError, SuiteError
from bench.evaluation import consistency
from bench.evaluation.certification import store
from bench.evaluation.evaluator import chunk_bounds
from bench.execution import manifest_builder, sharding
from bench.storage import fingerprint, images, manifest, reader, records, schema
from bench.suite.plan import Cell

_Place = tuple[str, int, int]
"""Cell, first and last example of a piece."""


class MergeResult(NamedTuple):
    """What was joined, and what is still missing."""

    folders: list[Path]
    pieces: int
    """Shards of cells that the merged folder holds."""
    wanted: int
    """Shards of cells that the whole run has."""
    missing: list[str]
    """The others, a phrase each."""


class _Source(NamedTuple):
    """A folder of the run, and what it says of itself."""

    folder: Path
    document: dict[str, Any]
    plan: list[Cell]
    files: dict[Path, list[schema.Piece]]

    def places(self, but: "_Source") -> set[_Place]:
        """Every piece that it holds in a file of its own, one that the other has not."""
        names = {path.name for path in but.files}
        return {
            piece[:3]
            for path, pieces in self.files.items()
            if path.name not in names
            for piece in pieces
        }


def merge_runs(given: Sequence[Path], out: Path) -> MergeResult:
    """Join the folders into `out`; one that holds shares stands for them, and what `out` holds
    already stays.

    Raises: SuiteError if there is nothing to join, or the folders do not belong together;
    RecordError naming what is damaged, or of what two of them say different things.
    """
    found = [_source(folder) for folder in _expanded([out, *given])]
    if not found:
        told = ", ".join(map(str, given))
        raise SuiteError(
            f"{told}: expected folders of runs, or of their shares, found no provenance.json; "
            "make them with bench run --shard I/N"
        )
    first = found[0]
    for other in found[1:]:
        if why := _apart(first, other):
            raise SuiteError(
                f"{first.folder} and {other.folder} do not belong together: {why}; merge runs of "
                "one suite on the same data and weights by the same bench"
            )
    for one, other in combinations(found, 2):
        _check_same(one, other)
        _check_models(one, other)
    with lock.hold_lock(out, lambda told: None):
        there = _copy(found, out)
        wanted = list(_wanted(first))
        undone = [(cell, place) for cell, place in wanted if place not in there]
        _copy_failures(found, out, {cell.identity for cell, _ in undone})
        manifest_builder.write_manifest(out, _joined(found))
    missing = [
        f"{cell.model} · {cell.attack} at eps {cell.eps_text}, examples {first} to {last - 1}"
        for cell, (_, first, last) in undone
    ]
    folders = [source.folder for source in found]
    return MergeResult(folders, len(wanted) - len(undone), len(wanted), missing)


def _expanded(given: Sequence[Path]) -> list[Path]:
    """Each folder of a run once, shares instead of the folder that holds them alone."""
    runs = [
        path
        for folder in given
        for path in (folder, *sharding.list_shard_folders(folder))
        if (path / manifest.FILE).is_file()
    ]
    return list({path.resolve(): path for path in runs}.values())


def _source(folder: Path) -> _Source:
    about, plan = manifest.read_manifest(folder)
    paths = sorted((folder / "records").glob("*.parquet"))
    return _Source(folder, about, plan, {path: reader.read_file_pieces(path) for path in paths})


# ----------------------------------------------------------------------------- belonging together


def _apart(one: _Source, other: _Source) -> str:
    """How two folders differ in what they ask; empty if they do not."""
    ours, theirs = _question(one), _question(other)
    for key in (*ours, *(key for key in theirs if key not in ours)):
        here, there = ours.get(key, "absent"), theirs.get(key, "absent")
        if here != there:
            return f"{key} is {here} in the first and {there} in the second"
    return ""


def _question(source: _Source) -> dict[str, object]:
    """What all folders of one run have in common, by the names that people know it by."""
    suite, data = source.document["suite"], source.document["data"]
    return {
        "the suite": suite["name"],
        "the seed": suite["seed"],
        "the number of examples": data["n"],
        "the data's fingerprint": data["fingerprint"],
        **{
            f"the fingerprint of {label}": model["fingerprint"]
            for label, model in source.document["models"].items()
        },
        **{
            f"the identity of {cell.model} · {cell.attack} in {cell.norm}, {cell.goal}, at eps "
            f"{cell.eps_text} (its settings, its code, its rows)": cell.identity
            for cell in source.plan
        },
        **{
            f"the identity of the {task['method']} certificates of {task['model']}":
            task["identity"] for task in source.document.get("certify", [])
        },
    }  # fmt: skip


def _check_models(one: _Source, other: _Source) -> None:
    """Raises: RecordError if a model said different things of the same clean images."""
    here, there = _clean_places(one), _clean_places(other)
    for (model, first), path in sorted(here.items()):
        if (model, first) not in there or path.name == there[model, first].name:
            continue
        ours, theirs = (_clean_answers(each, model) for each in (path, there[model, first]))
        both = ours.merge(theirs, on="example", suffixes=("", "_there"))
        differ = consistency.find_differences(
            *(
                torch.tensor(both[name].to_numpy())
                for suffix in ("", "_there")
                for name in (f"clean_pred{suffix}", f"clean_confidence{suffix}")
            )
        )
        if int(differ.sum()) > len(both) * consistency.MAX_DIFFERING_SHARE:
            row = both.iloc[int(differ.nonzero()[0])]
            raise RecordError(
                f"{one.folder} and {other.folder}: model '{model}' was not the same in both: "
                f"clean example {row['example']} was class {row['clean_pred']} at confidence "
                f"{row['clean_confidence']:.6g} in one and class {row['clean_pred_there']} at "
                f"{row['clean_confidence_there']:.6g} in the other; make one of them again"
            )


def _clean_answers(path: Path, model: str) -> pd.DataFrame:
    frame = reader.read_file(path)
    return frame[(frame["model"] == model).to_numpy()].drop_duplicates("example")


def _clean_places(source: _Source) -> dict[tuple[str, int], Path]:
    """(model, first example of a chunk) -> a file with that model's answers to those examples;
    without models whose answers depend on more than the image."""
    about = source.document["models"]
    loose = {
        label
        for label, model in about.items()
        if model.get("predictions", 1) > 1
        or any(f"({name}" in told for told in model["findings"] for name in ("random", "batch"))
    }
    models = {cell.identity: cell.model for cell in source.plan if cell.model not in loose}
    return {
        (models[piece.cell], piece.first): path
        for path, pieces in source.files.items()
        for piece in pieces
        if piece.cell in models
    }


def _check_same(one: _Source, other: _Source) -> None:
    """Raises: RecordError if the two hold different outcomes of the same examples."""
    # Files of one name have one hash, and so one content.
    common = one.places(but=other) & other.places(but=one)
    frames = [reader.read_records(source.folder).frame for source in (one, other)] if common else []
    for cell, first, last in sorted(common):
        ours, theirs = (
            frame[(frame["cell"] == cell) & frame["example"].between(first, last - 1)]
            for frame in frames
        )
        if fingerprint.records_hash(ours) != fingerprint.records_hash(theirs):
            raise RecordError(
                f"{one.folder} and {other.folder}: different outcomes of cell {cell}, examples "
                f"{first} to {last - 1}, which has one answer; keep one of the two folders"
            )
    held = {
        (about["identity"], about["first"]): frame
        for about, frame in store.read_certificates(one.folder)
    }
    for about, frame in store.read_certificates(other.folder):
        twin = held.get((about["identity"], about["first"]))
        if twin is not None and not twin.equals(frame):
            raise RecordError(
                f"{one.folder} and {other.folder}: different certificates {about['identity']}, "
                f"examples from {about['first']}; keep one of the two folders"
            )


# ---------------------------------------------------------------------------------------- joining


def _wanted(source: _Source) -> Iterator[tuple[Cell, _Place]]:
    """Every piece that the whole run has, each once."""
    data, seen = source.document["data"], set()
    if data.get("shape") is None:
        raise RecordError(f"{source.folder}: does not say how large its images are; run it again")
    for cell in source.plan:
        if not cell.reason and cell.identity not in seen:
            seen.add(cell.identity)
            for first, last in chunk_bounds(data["n"], tuple(data["shape"])):
                yield cell, (cell.identity, first, last)


def _copy(found: Sequence[_Source], out: Path) -> set[_Place]:
    """Copy every file that says something new; returns the pieces that `out` then holds."""
    there: set[_Place] = set()
    held: set[tuple[str, int]] = set()
    for source in found:
        for path, pieces in source.files.items():
            places = {piece[:3] for piece in pieces}
            if places <= there and path.parent != out / "records":
                continue
            shard = files.strip_hash(path)
            beside = [
                each
                for kind in (images.SUFFIX, images.ADVERSARIAL_SUFFIX)
                for each in path.parent.glob(f"{shard}*{kind}")
                if files.strip_hash(each) == shard
            ]
            for each in (*beside, path):
                _copy_file(each, out)
            there |= places
        for path in (source.folder / "records").glob(f"*.{store.SUFFIX}"):
            identity, first, _ = path.stem.rsplit("-", 2)
            if (identity, int(first)) not in held:
                _copy_file(path, out)
                held.add((identity, int(first)))
    clean = next(iter((found[0].folder / "records").glob(f"{images.CLEAN}*{images.SUFFIX}")), None)
    if clean is not None:
        _copy_file(clean, out)
    return there


def _copy_file(path: Path, out: Path) -> None:
    target = out / "records" / path.name
    if not target.exists():
        files.write_atomic(target, path.read_bytes())


def _copy_failures(found: Sequence[_Source], out: Path, undone: set[str]) -> None:
    """Keep why a cell failed, as long as it has not all its records from elsewhere."""
    reasons: dict[str, str] = {}
    for source in found:
        reasons |= reader.read_failures(source.folder)
    for cell, reason in reasons.items():
        if cell in undone:
            records.write_failure(out, cell, reason)
        else:
            records.delete_failure(out, cell)


def _joined(found: Sequence[_Source]) -> dict[str, Any]:
    """provenance.json of the whole: the same plan, all sessions in the order of their start, and
    of each model the probes that somebody made."""
    sessions: dict[tuple[str, str], Mapping[str, Any]] = {}
    probes: dict[str, Any] = {}
    for source in found:
        for session in source.document["sessions"]:
            sessions[session["started"], session["command"]] = session
        probes = {**source.document.get("probes", {}), **probes}
    ordered = [sessions[key] for key in sorted(sessions)]
    return {**found[0].document, "sessions": ordered, "probes": probes}
