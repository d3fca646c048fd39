"""Compute certificates of a suite's models and store them as data.

A suite with `certify` has each model bounded at every eps of its attacks in the norm of the bounds,
or smoothed. Certificates are per example: in records/, Parquet under another suffix than the
attacks' records, one file for each chunk of examples of one model and method, written whole or not
at all, its name ending in its own hash. Where a smaller eps is not certified a larger one is not
tried: the smaller region lies inside it, so what is certified shrinks with eps. Randomised
smoothing finds one radius per example, of the smoothed classifier.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bench.core import files
from bench.core.errors import RecordError, first_line
from bench.core.versions import CERTIFICATION_VERSION
from bench.evaluation import crafting
from bench.evaluation.certification import bounds, network, smoothing
from bench.evaluation.certification.layers import Node
from bench.evaluation.evaluator import Evaluator
from bench.evaluation.judge import judge
from bench.storage import schema
from bench.suite.plan import CertificationTask
from bench.suite.schema import CertificateEntry, SmoothingSettings, Suite

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA = 1
SMOOTHING_SCHEMA = 2
"""Of certificates by smoothing, which have other columns."""
SUFFIX = "certificates"
ANSWERS_AT_RANDOM = "it answers at random"
PROBE_IMAGES = 16
"""Images on which the layers must answer as the net does."""
DISTANCE_ROUNDING = 2.0**-24
"""What a distance measured in float32 between two images may fall short of the true one."""


# ---------------------------------------------------------------------------------------- planning


def plan_certification(suite: Suite, evaluator: Evaluator) -> list[CertificationTask]:
    """Plan what a suite wants certified.

    Args:
        suite: The checked suite.
        evaluator: Its models and data.

    Returns:
        One task for each model and method, with the reason if it cannot be certified; none
        without `certify`.
    """
    return [
        _plan_task(suite, evaluator, label, entry)
        for label in evaluator.models
        for entry in suite.certify
    ]


def _plan_task(
    suite: Suite, evaluator: Evaluator, label: str, entry: CertificateEntry
) -> CertificationTask:
    reason = _unfit_reason(evaluator, label)
    if entry.smoothing is not None:
        radii = {radius.value: radius.text for radius in entry.radii}
        identity = _smoothing_identity(evaluator, label, entry.smoothing)
    else:
        radii = {eps.value: eps.text for attack in suite.attacks if attack.norm == entry.norm
                 for eps in attack.eps if eps.value > 0}  # fmt: skip
        identity = _identity(evaluator, label, entry, tuple(sorted(radii)))
        norm = "L-inf" if entry.norm == "linf" else "L2"
        reason = reason or ("" if radii else f"no attack of the suite is in {norm}")
    return CertificationTask(
        model=label,
        method=entry.method,
        eps=tuple(sorted(radii)),
        eps_texts=tuple(radii[value] for value in sorted(radii)),
        identity=identity,
        reason=reason,
        norm=entry.norm,
        smoothing=entry.smoothing,
    )


def _unfit_reason(evaluator: Evaluator, label: str) -> str:
    """Say why a model cannot be certified at all; "" if it may be."""
    if evaluator.models[label].detector is not None:
        return "the model rejects images, and no method here bounds the score of a detector"
    return f"the model {evaluator.unfit[label]}" if label in evaluator.unfit else ""


def _identity(
    evaluator: Evaluator, label: str, entry: CertificateEntry, eps: tuple[float, ...]
) -> str:
    loaded = evaluator.models[label]
    about: tuple[object, ...] = (
        loaded.fingerprint,
        loaded.sketch,
        evaluator.data.fingerprint,
        entry.method,
        eps,
        SCHEMA,
        CERTIFICATION_VERSION,
    )
    if entry.norm != "linf":
        about = (*about, entry.norm)
    return hashlib.sha256(repr(about).encode()).hexdigest()[:16]


def _smoothing_identity(evaluator: Evaluator, label: str, settings: SmoothingSettings) -> str:
    """Of all that a radius depends on; the radii that are tabulated are not among it."""
    loaded = evaluator.models[label]
    about = (
        loaded.fingerprint,
        loaded.sketch,
        evaluator.data.fingerprint,
        "smoothing",
        dataclasses.astuple(settings),
        evaluator.seed,
        SMOOTHING_SCHEMA,
        CERTIFICATION_VERSION,
    )
    return hashlib.sha256(repr(about).encode()).hexdigest()[:16]


# ----------------------------------------------------------------------------------------- working


def pending_chunks(
    chunks: Sequence[tuple[int, int]], wanted: Sequence[CertificationTask], out: Path
) -> list[tuple[CertificationTask, int, int]]:
    """List the chunks that are not certified yet.

    Args:
        chunks: (first, last) of each chunk of the data.
        wanted: The planned tasks.
        out: The run's folder.

    Returns:
        (task, first, last) of each chunk without a file.

    Raises:
        RecordError: A file is damaged or newer than this bench.
    """
    done = {(about["identity"], about["first"]) for about, _ in read_certificates(out)}
    return [
        (task, first, last)
        for task in wanted
        for first, last in chunks
        if not task.reason and (task.identity, first) not in done
    ]


def check_readable(evaluator: Evaluator, task: CertificationTask) -> CertificationTask:
    """Check whether a model can be read as layers with bounds, or smoothed.

    Args:
        evaluator: Models and data.
        task: A planned task.

    Returns:
        The task, with the reason if its model cannot be certified.
    """
    if task.reason:
        return task
    if task.smoothing is not None:
        random = evaluator.models[task.model].random
        return dataclasses.replace(task, reason=ANSWERS_AT_RANDOM) if random else task
    try:
        _layers(evaluator, task.model)
    except network.UnreadableError as error:
        return dataclasses.replace(task, reason=error.problems[0])
    return task


class Certificates(NamedTuple):
    """Certificates of one chunk of examples."""

    about: dict[str, Any]
    """Schema, identity, first and last example, seconds of each eps; of smoothing, one number."""
    frame: pd.DataFrame
    """One row per example and eps; of smoothing, one per example."""


def certify_chunk(
    evaluator: Evaluator, task: CertificationTask, first: int, last: int
) -> Certificates:
    """Certify a chunk of examples.

    Args:
        evaluator: Models and data.
        task: A planned task without a reason against it.
        first: Id of the first example.
        last: Id after the last example.

    Returns:
        The certificates of the chunk.
    """
    if task.smoothing is not None:
        return _smooth_chunk(evaluator, task, task.smoothing, first, last)
    assert task.method != "smoothing"
    clean, net = evaluator.clean_pass(task.model), _layers(evaluator, task.model)
    labels = clean.label[first:last]
    x = evaluator.data.read(first, last).to(evaluator.device, torch.float64)
    alive = clean.pred[first:last] == labels
    right, columns, seconds = alive, [], []
    for eps in task.eps:
        started = time.perf_counter()
        margin = torch.full_like(labels, torch.nan, dtype=torch.float64)
        if alive.any():
            radius = crafting.allowed_distance(eps) + DISTANCE_ROUNDING
            inside = bounds.input_region(x[alive], radius, task.norm)
            with torch.no_grad():
                margin[alive] = bounds.certified_margins(net, inside, labels[alive], task.method)
        alive = margin > 0  # not a number is not above 0
        columns.append(margin)
        seconds.append(time.perf_counter() - started)
    frame = pd.concat(
        [_to_frame(task, value, margin, right, first) for value, margin
         in zip(task.eps, columns, strict=True)],
        ignore_index=True,
    )  # fmt: skip
    about = {"schema": SCHEMA, "identity": task.identity, "first": first, "last": last,
             "seconds": seconds}  # fmt: skip
    return Certificates(about, frame)


def _smooth_chunk(
    evaluator: Evaluator,
    task: CertificationTask,
    settings: SmoothingSettings,
    first: int,
    last: int,
) -> Certificates:
    """Certify the smoothed classifier of a model at a chunk of examples."""
    started = time.perf_counter()
    model, rows = evaluator.models[task.model].model, evaluator.pool.judge_rows(task.model)
    labels = evaluator.clean_pass(task.model).label[first:last]
    found = smoothing.certify_smoothed(
        lambda images: judge(model, images, rows).pred,
        evaluator.data.read(first, last).to(evaluator.device),
        torch.arange(first, last),
        settings,
        evaluator.seed,
        rows,
    )
    frame = pd.DataFrame(
        {
            "model": task.model,
            "sigma": settings.sigma,
            "example": np.arange(first, last),
            "label": labels.cpu().numpy(),
            "predicted": found.predicted,
            "count": found.successes,
            "draws": settings.n,
            "probability_low": found.probability_low,
            "radius": found.radius,
            "abstained": found.abstained,
        }
    )
    about = {"schema": SMOOTHING_SCHEMA, "identity": task.identity, "first": first, "last": last,
             "seconds": [time.perf_counter() - started]}  # fmt: skip
    return Certificates(about, frame)


def _to_frame(
    task: CertificationTask, eps: float, margin: Tensor, right: Tensor, first: int
) -> pd.DataFrame:
    """One row per example; `margin` is not a number where nothing was tried."""
    return pd.DataFrame(
        {
            "model": task.model,
            "method": task.method,
            "eps": eps,
            "example": np.arange(first, first + len(margin)),
            "clean_correct": right.cpu().numpy(),
            "margin": margin.cpu().numpy(),
            "certified": (margin > 0).cpu().numpy(),
        }
    )


def _layers(evaluator: Evaluator, model: str) -> tuple[Node, ...]:
    """The model's layers in float64, found to answer as the model does.

    Raises: chain.UnreadableError if they do not, or it has layers without bounds.
    """
    loaded = evaluator.models[model]
    if loaded.random:
        raise network.UnreadableError(ANSWERS_AT_RANDOM)
    sample = evaluator.data.read(0, min(evaluator.data.n, PROBE_IMAGES)).to(evaluator.device)
    return network.read_network_in_double(loaded.model, sample)


# ------------------------------------------------------------------------------------------- files


def write(folder: Path, certificates: Certificates) -> None:
    """Write certificates into the folder of a run.

    Args:
        folder: The run's folder.
        certificates: Certificates of one chunk.

    Raises:
        SuiteError: The disk is full or the folder cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    about, frame = certificates
    table = pa.Table.from_pandas(frame, preserve_index=False)
    table = table.replace_schema_metadata({"bench": json.dumps(about)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    content = sink.getvalue().to_pybytes()
    name = f"{about['identity']}-{about['first']:07d}-{_hash(content)}.{SUFFIX}"
    files.write_atomic(folder / "records" / name, content)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def is_smoothed(about: Mapping[str, Any]) -> bool:
    """Check whether certificates are of a smoothed classifier.

    Args:
        about: Their metadata.

    Returns:
        True if they were found by randomised smoothing.
    """
    return bool(about["schema"] == SMOOTHING_SCHEMA)


def read_certificates(folder: Path) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """Read all certificates of a run.

    Args:
        folder: The run's folder.

    Returns:
        For each file its metadata and one row per example and eps; of smoothing, one per example.

    Raises:
        RecordError: A file is damaged or newer than this bench.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = []
    for path in sorted((folder / "records").glob(f"*.{SUFFIX}")):
        try:
            content = path.read_bytes()
            if not path.stem.endswith(_hash(content)):
                raise ValueError("its hash is not the one in its name")
            schema.check_size(pq.read_metadata(pa.BufferReader(content)))
            table = pq.read_table(pa.BufferReader(content))
            about = json.loads((table.schema.metadata or {})[b"bench"])
            newer = about["schema"] > SMOOTHING_SCHEMA
            frame = _frame(about, table)
        except (
            pa.ArrowException, OSError, ValueError, KeyError, TypeError, RecursionError,
        ) as error:  # fmt: skip
            reason = first_line(error)
            sentence = f"{path}: damaged certificates ({reason}); bench run makes it again"
            raise RecordError(sentence) from error
        if newer:
            raise RecordError(
                f"{path}: certificates of schema {about['schema']}, this bench reads up to "
                f"{SMOOTHING_SCHEMA}; use the bench that wrote them"
            )
        found.append((about, frame))
    return found


def read_certified_ids(
    folder: Path, tasks: Sequence[CertificationTask]
) -> dict[tuple[str, str, float], set[int]]:
    """Read which examples a bound of the model certifies.

    Args:
        folder: The run's folder.
        tasks: The planned tasks; those of smoothing are ignored, being of another classifier.

    Returns:
        (model, norm, eps) -> ids of the examples that any method certifies.

    Raises:
        RecordError: As `read_certificates`.
    """
    found: dict[tuple[str, str, float], set[int]] = {}
    bounds = [task for task in tasks if task.smoothing is None]
    for about, frame in read_certificates(folder) if bounds else ():
        for task in bounds:  # several labels of one model have one identity
            if task.identity != about["identity"] or is_smoothed(about):
                continue
            for eps in task.eps:
                ids = found.setdefault((task.model, task.norm, eps), set())
                ids.update(frame["example"][frame["certified"] & (frame["eps"] == eps)].tolist())
    return found


def _frame(about: Mapping[str, Any], table: "pa.Table") -> pd.DataFrame:
    """The outcomes in a file, each column of its type, and as many as it tells of.

    Raises: ValueError, KeyError, TypeError, pa.ArrowException if it is not so.
    """
    import pyarrow as pa

    stored, seconds = table.replace_schema_metadata(None), about["seconds"]
    few = all(0 <= each <= schema.MAX_SECONDS for each in seconds)  # a float holds them
    if not isinstance(about["identity"], str) or not few:
        raise ValueError("no identity, or no seconds")
    types = {
        "model": pa.string(), "method": pa.string(), "eps": pa.float64(), "example": pa.int64(),
        "clean_correct": pa.bool_(), "margin": pa.float64(), "certified": pa.bool_(),
    }  # fmt: skip
    if is_smoothed(about):
        types = {
            "model": pa.string(), "sigma": pa.float64(), "example": pa.int64(),
            "label": pa.int64(), "predicted": pa.int64(), "count": pa.int64(),
            "draws": pa.int64(), "probability_low": pa.float64(), "radius": pa.float64(),
            "abstained": pa.bool_(),
        }  # fmt: skip
    held = pa.table({name: stored[name].cast(kind) for name, kind in types.items()})
    if any(held[name].null_count for name in types if name != "margin"):
        raise ValueError("an outcome that is none")
    if (about["last"] - about["first"]) * len(seconds) != held.num_rows:
        raise ValueError(f"{held.num_rows} outcomes, and other examples or eps are promised")
    frame: pd.DataFrame = held.to_pandas()
    if is_smoothed(about) and not np.isfinite(frame[["probability_low", "radius"]]).all(axis=None):
        raise ValueError("a radius that is not finite")
    return frame
