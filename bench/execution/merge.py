"""Merge of the folders of one run: the shards of `--shard I/N`, or records of two machines.

Files are copied byte for byte, after checks that all folders contain the same plan with the same
models on the same data, and that records of the same examples are identical.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from bench.core import files, lock
from bench.core.errors import RecordError, SuiteError
from bench.evaluation import chunk_sizes, consistency
from bench.evaluation.certification import store
from bench.execution import manifest_builder, sharding
from bench.execution.work import find_gaps
from bench.models.preflight import findings
from bench.storage import fingerprint, manifest, reader, records, schema
from bench.storage.images import ADVERSARIAL_SUFFIX, CLEAN, IMAGES_SUFFIX
from bench.suite.plan import Cell, CertificationTask

MARGIN_TOLERANCE = 1e-6
"""Largest relative difference of a margin, computed in float64, between two machines."""
_PieceKey = tuple[str, int, int]
"""Cell, first and last example of a piece."""


class MergeResult(NamedTuple):
    """Summary of a merge."""

    folders: list[Path]
    """Folders that were merged."""
    pieces: int
    """Chunks of cells that the merged folder contains."""
    wanted: int
    """Chunks of cells of the whole run."""
    missing: list[str]
    """The others, a phrase each."""


class _Source(NamedTuple):
    """A folder to be merged."""

    folder: Path
    manifest: dict[str, Any]
    plan: list[Cell]
    files: dict[Path, list[schema.Piece]]
    """Files of records, and the pieces that each contains."""

    def piece_keys(self, excluding: "_Source") -> set[_PieceKey]:
        """Keys of the pieces in files that the other folder does not contain."""
        names = {path.name for path in excluding.files}
        return {
            piece[:3]
            for path, pieces in self.files.items()
            if path.name not in names
            for piece in pieces
        }


def merge_runs(given: Sequence[Path], out: Path) -> MergeResult:
    """Merge folders of one run.

    Args:
        given: Folders of runs; one that contains shards is replaced by them.
        out: Folder of the whole run; records that it contains already remain.

    Returns:
        Summary of what was merged and what is missing.

    Raises:
        SuiteError: A given folder holds no run, or the folders belong to different runs.
        RecordError: A file is damaged, or two folders have different records of one chunk.
    """
    # A name with a typing error must not pass because `out` holds an earlier merge.
    if empty := [folder for folder in given if not _list_runs(folder)]:
        raise SuiteError(
            f"{', '.join(map(str, empty))}: expected the folder of a run, or of its shards, found "
            "no provenance.json; make one with bench run --shard I/N"
        )
    sources = [_read_source(folder) for folder in _expand_folders([out, *given])]
    first = sources[0]
    for other in sources[1:]:
        if why := _find_difference(first, other):
            raise SuiteError(
                f"{first.folder} and {other.folder} do not belong together: {why}; merge runs of "
                "one suite on the same data and weights by the same bench"
            )
    for one, other in combinations(sources, 2):
        _check_records(one, other)
        _check_models(one, other)
    with lock.hold_lock(out, lambda note: None):
        copied = _copy_files(sources, out)
        wanted = list(_list_chunks(first))
        gaps = [find_gaps(*chunk, copied.get(cell.identity, [])) for cell, chunk in wanted]
        undone = [(cell, gap) for (cell, _), some in zip(wanted, gaps, strict=True) for gap in some]
        _copy_failures(sources, out, {cell.identity for cell, _ in undone})
        manifest_builder.write_manifest(out, _merge_manifests(sources))
    missing = [
        f"{cell.model} · {cell.attack} at eps {cell.eps_text}, examples {first} to {last - 1}"
        for cell, (first, last) in undone
    ]
    return MergeResult([source.folder for source in sources], gaps.count([]), len(wanted), missing)


def _list_runs(folder: Path) -> list[Path]:
    """The folder and the folders of its shards, of which each contains a run."""
    paths = (folder, *sharding.list_shard_folders(folder))
    return [path for path in paths if (path / manifest.FILE).is_file()]


def _expand_folders(given: Sequence[Path]) -> list[Path]:
    """The given folders and the folders of their shards, each once, if they contain a run."""
    runs = [path for folder in given for path in _list_runs(folder)]
    return list({path.resolve(): path for path in runs}.values())


def _read_source(folder: Path) -> _Source:
    content, plan = manifest.read_manifest(folder)
    paths = sorted((folder / "records").glob("*.parquet"))
    return _Source(folder, content, plan, {path: reader.read_file_pieces(path) for path in paths})


# ----------------------------------------------------------------------------- compatibility


def _find_difference(one: _Source, other: _Source) -> str:
    """How the plans of two folders differ; "" if they do not."""
    ours, theirs = _summarize_plan(one), _summarize_plan(other)
    for key in (*ours, *(key for key in theirs if key not in ours)):
        here, there = ours.get(key, "absent"), theirs.get(key, "absent")
        if here != there:
            return f"{key} is {here} in the first and {there} in the second"
    return ""


def _summarize_plan(source: _Source) -> dict[str, object]:
    """What all folders of one run have in common, by names for people."""
    suite, data = source.manifest["suite"], source.manifest["data"]
    return {
        "the suite": suite["name"],
        "the seed": suite["seed"],
        "the number of examples": data["n"],
        "the data's fingerprint": data["fingerprint"],
        **{
            f"the fingerprint of {label}": model["fingerprint"]
            for label, model in source.manifest["models"].items()
        },
        **{
            f"the identity of {cell.model} · {cell.attack} in {cell.norm}, {cell.goal}, at eps "
            f"{cell.eps_text} (its settings, its code, its rows)": cell.identity
            for cell in source.plan
        },
        **{
            f"the identity of the {task.name} certificates of {task.model}": task.identity
            for task in map(CertificationTask.from_manifest, source.manifest.get("certify", []))
        },
    }


def _check_models(one: _Source, other: _Source) -> None:
    """Raise a RecordError if a model's answers to the same clean images differ."""
    here, there = _find_clean_files(one), _find_clean_files(other)
    for (model, first), path in sorted(here.items()):
        if (model, first) not in there or path.name == there[model, first].name:
            continue
        ours, theirs = (_read_clean_answers(each, model) for each in (path, there[model, first]))
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


def _read_clean_answers(path: Path, model: str) -> pd.DataFrame:
    frame = reader.read_file(path)
    return frame[(frame["model"] == model).to_numpy()].drop_duplicates("example")


def _find_clean_files(source: _Source) -> dict[tuple[str, int], Path]:
    """(model, first example of a chunk) -> a file with the model's answers to those examples.

    Models whose answers depend on more than the image are left out.
    """
    about = source.manifest["models"]
    inconsistent = {
        label
        for label, model in about.items()
        if model.get("predictions", 1) > 1
        or {"random", "batch-dependent"} & set(map(findings.read_name, model["findings"]))
    }
    models = {cell.identity: cell.model for cell in source.plan if cell.model not in inconsistent}
    return {
        (models[piece.cell], piece.first): path
        for path, pieces in source.files.items()
        for piece in pieces
        if piece.cell in models
    }


def _agree(ours: pd.DataFrame, theirs: pd.DataFrame, bits: bool) -> bool:
    """Whether two frames of the same examples have the same outcomes, or the same bits."""
    if bits:
        return fingerprint.records_hash(ours) == fingerprint.records_hash(theirs)
    columns = ["example", "clean_pred", "fooled", "violation"]
    first, second = (each.sort_values("example")[columns].astype(str) for each in (ours, theirs))
    return bool((first.to_numpy() == second.to_numpy()).all())


def _find_common(ours: Set[_PieceKey], theirs: Set[_PieceKey]) -> list[_PieceKey]:
    """The examples that pieces of both sides hold; a chunk may be divided otherwise in each."""
    by_cell: dict[str, list[_PieceKey]] = {}
    for key in theirs:
        by_cell.setdefault(key[0], []).append(key)
    return sorted(
        (cell, max(first, begin), min(last, end))
        for cell, first, last in ours
        for _, begin, end in by_cell.get(cell, [])
        if max(first, begin) < min(last, end)
    )


def _check_records(one: _Source, other: _Source) -> None:
    """Raise a RecordError if two folders have different outcomes of the same examples."""
    # Files of one name have one hash, and so one content.
    here, there = one.piece_keys(excluding=other), other.piece_keys(excluding=one)
    common = _find_common(here, there)
    frames = [reader.read_records(source.folder).frame for source in (one, other)] if common else []
    for cell, first, last in common:
        ours, theirs = (
            frame[(frame["cell"] == cell) & frame["example"].between(first, last - 1)]
            for frame in frames
        )
        # Other divisions of a chunk are other batches, so that the last bits may differ.
        same = {(cell, first, last)} <= here & there
        if not _agree(ours, theirs, bits=same):
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
        if twin is not None and not _are_same_certificates(twin, frame):
            raise RecordError(
                f"{one.folder} and {other.folder}: different certificates {about['identity']}, "
                f"examples from {about['first']}; keep one of the two folders"
            )


def _are_same_certificates(ours: pd.DataFrame, theirs: pd.DataFrame) -> bool:
    """Whether two folders certify the same; margins of two machines differ in their last bits."""
    if not ours.drop(columns="margin", errors="ignore").equals(
        theirs.drop(columns="margin", errors="ignore")
    ):
        return False
    return "margin" not in ours or np.allclose(
        ours["margin"], theirs["margin"], rtol=MARGIN_TOLERANCE, atol=0, equal_nan=True
    )


# ---------------------------------------------------------------------------------------- copying


def _list_chunks(source: _Source) -> Iterator[tuple[Cell, tuple[int, int]]]:
    """Every chunk of every cell of the whole run, once."""
    data, seen = source.manifest["data"], set()
    if data.get("shape") is None:
        raise RecordError(f"{source.folder}: does not say how large its images are; run it again")
    size = data.get("chunk_examples") or chunk_sizes.standard_size(tuple(data["shape"]))
    for cell in source.plan:
        if not cell.reason and cell.identity not in seen:
            seen.add(cell.identity)
            for chunk in chunk_sizes.chunk_bounds(data["n"], size):
                yield cell, chunk


def _copy_files(sources: Sequence[_Source], out: Path) -> dict[str, list[tuple[int, int]]]:
    """Copy every file with new records; returns the examples of each cell that `out` then has."""
    copied: dict[str, list[tuple[int, int]]] = {}
    held: set[tuple[str, int]] = set()
    for source in sources:
        for path, pieces in source.files.items():
            new = [_list_new(piece, copied.get(piece.cell, [])) for piece in pieces]
            if not any(new) and path.parent != out / "records":
                continue
            if any(gaps not in ([], [piece[1:3]]) for gaps, piece in zip(new, pieces, strict=True)):
                raise RecordError(
                    f"{path}: holds examples that another folder has, and others that it has not; "
                    f"finish the run in one of the folders, or leave out {source.folder}"
                )
            stem = files.strip_hash(path)
            images = [
                each
                for kind in (IMAGES_SUFFIX, ADVERSARIAL_SUFFIX)
                for each in path.parent.glob(f"{stem}*{kind}")
                if files.strip_hash(each) == stem
            ]
            for each in (*images, path):
                _copy_file(each, out)
            for piece in pieces:
                copied.setdefault(piece.cell, []).append((piece.first, piece.last))
        for path in (source.folder / "records").glob(f"*.{store.SUFFIX}"):
            identity, first, _ = path.stem.rsplit("-", 2)
            if (identity, int(first)) not in held:
                _copy_file(path, out)
                held.add((identity, int(first)))
    clean = next(
        iter((sources[0].folder / "records").glob(f"{CLEAN}*{IMAGES_SUFFIX}")),
        None,
    )
    if clean is not None:
        _copy_file(clean, out)
    return copied


def _list_new(piece: schema.Piece, held: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The examples of a piece that are not held yet, as stretches."""
    return find_gaps(piece.first, piece.last, held)


def _copy_file(path: Path, out: Path) -> None:
    target = out / "records" / path.name
    if not target.exists():
        files.write_atomic(target, path.read_bytes())


def _copy_failures(sources: Sequence[_Source], out: Path, undone: set[str]) -> None:
    """Copy the reasons of failed cells that do not have all their records."""
    reasons: dict[str, str] = {}
    for source in sources:
        reasons |= reader.read_failures(source.folder)
    for cell, reason in reasons.items():
        if cell in undone:
            records.write_failure(out, cell, reason)
        else:
            records.delete_failure(out, cell)


def _merge_manifests(sources: Sequence[_Source]) -> dict[str, Any]:
    """The manifest of the whole run: one plan, all sessions by their start, all probes."""
    sessions: dict[tuple[str, str], Mapping[str, Any]] = {}
    probes: dict[str, Any] = {}
    for source in sources:
        for session in source.manifest["sessions"]:
            sessions[session["started"], session["command"]] = session
        probes = {**source.manifest.get("probes", {}), **probes}
    ordered = [sessions[key] for key in sorted(sessions)]
    return {**sources[0].manifest, "sessions": ordered, "probes": probes}
