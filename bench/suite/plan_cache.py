"""The plan as `bench plan` shows it, kept so that only its first showing waits for the libraries.

Planning runs the attacks' files, which import torch and the libraries that attacks come from:
seconds, for a table made in milliseconds. The table depends on nothing but the suite's text,
bench's own files, the libraries' versions and Python's. It is kept in the user's cache folder as
plain JSON under a hash of all of these, and shown from there as long as none has changed: at once,
without torch. The first showing, and the first after a change, takes as long as importing takes.

How the data are read is shown, too: scale of the pixels, labels of the class folders. Data sets
that say which files they read are looked at again once one of those has changed.

A suite that names code or files outside bench is planned anew each time: those may change unseen.
So may a library that is edited in place, which is taken at the version that it claims.
"""

import contextlib
import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import platformdirs

from bench.core import files, registry, sanitize
from bench.core.errors import MissingDataError, SuiteError
from bench.core.validation import read_text
from bench.suite import catalog

if TYPE_CHECKING:
    from bench.suite.schema import Suite

_PACKAGE = Path(__file__).parents[1]


class Line(NamedTuple):
    """What is shown of a cell: fields of `plan.Cell`, by the same names."""

    model: str
    attack: str
    norm: str
    goal: str
    target: str
    eps_text: str
    passes: float | None
    gradients: float | None
    reason: str
    seed: int | None = None
    """None: the suite's."""


class Planned(NamedTuple):
    """What is shown of a suite."""

    title: str
    seed: int
    lines: list[Line]
    data: list[str] = []
    """How the data are read, in lines; empty if that was not asked."""


def folder() -> Path:
    """Where plans are kept; it may be deleted at any time."""
    return platformdirs.user_cache_path("bench") / "plans"


def read(name: str, data_dir: Path | None = None, limit: int | None = None) -> Planned:
    """The plan of a suite, a path or a shipped name: as kept, or made now and kept.

    Args:
        name: The suite.
        data_dir: Where data sets lie; the data are not looked at if None.
        limit: Most examples that a run is to take of them.

    Raises:
        SuiteError: With one sentence for each mistake in the suite, or one for data that cannot be
            used. Data that are not there are no mistake of a plan.
    """
    path = catalog.suite(name)
    # By the suite's place and not by the key: a plan that is out of date is replaced.
    place = folder() / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}.json"
    kept = _kept(place, _key(read_text(path, "a suite"), data_dir, limit))
    if kept is not None:
        return kept
    from bench.suite import plan, reader  # here is where torch is imported

    checked = reader.read(name)
    tasks = plan.tasks(checked, plan.known_facts(checked))
    cells = [cell for task in tasks for cell in task.cells]
    lines = [Line(*(getattr(cell, field) for field in Line._fields)) for cell in cells]
    seen = _Seen([], []) if data_dir is None else _data(checked, data_dir, limit)
    made = Planned(checked.title, checked.seed, lines, seen.lines)
    with contextlib.suppress(SuiteError):  # weights not trained yet, a folder not to be written
        if seen.files is not None and _of_bench_alone(checked):
            _keep(place, _key(checked.text, data_dir, limit), made, seen.files)
    return made


class _Seen(NamedTuple):
    """What is said of data, and what that depends on."""

    lines: list[str]
    files: list[Path] | None
    """None if it may depend on any file."""


def _data(suite: "Suite", data_dir: Path, limit: int | None) -> _Seen:
    """How the data of a suite are read, unless they are not at hand: nothing is downloaded.

    Raises: SuiteError if they cannot be used.
    """
    from bench.datasets import inputs
    from bench.evaluation import loading

    entry = suite.data
    found = registry.find("datasets", entry.name, suite.base)
    reads = getattr(found, "reads", None)
    files_read = None if reads is None else list(reads(entry.split, data_dir))
    absent = [path for path in files_read or [] if not path.is_file()]
    if absent:
        return _Seen([f"data: {entry.name}, not looked at: {absent[0]} is not there"], files_read)
    try:
        data = loading.load_data(entry, suite.base, data_dir, limit)
    except MissingDataError as error:
        return _Seen([sanitize.escape_controls(f"data: not looked at: {error}")], files_read)
    told = [
        f"data: {data.name}, {data.n} images of {inputs.size(data.shape)}, "
        f"fingerprint {data.fingerprint[:16]}"
    ]
    told += [f"  {key}: {text}" for key, text in data.mapping.items()]
    return _Seen([sanitize.escape_controls(line) for line in told], files_read)


def _of_bench_alone(suite: "Suite") -> bool:
    """Whether the suite names nothing but what is bench's own and so in the key.

    Raises: SuiteError if an attack lacks a file.
    """
    named = [("datasets", suite.data.name)]
    named += [("models", model.name) for model in suite.models]
    named += [("attacks", attack.name) for attack in suite.attacks]
    if not all(registry.built_in(kind, name) for kind, name in named):
        return False
    read = [path for entry in suite.attacks for path in entry.attack.reads(entry.params)]
    # A relative path starts from the working folder, which is not in the key.
    return all(path.is_relative_to(_PACKAGE) for path in read)


# --------------------------------------------------------------------------------------- the cache


def _key(text: str, data_dir: Path | None, limit: int | None) -> str:
    """A hash of all that the plan of a suite of this text depends on, but for files of data."""
    installed = sorted(found.name for each in sys.path for found in Path(each).glob("*-info"))
    digest = hashlib.sha256(repr((text, str(data_dir), limit, sys.version, installed)).encode())
    for path in sorted(_PACKAGE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(repr((str(path), path.stat().st_size)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _seal(key: str, body: bytes) -> bytes:
    return hashlib.sha256(key.encode() + body).hexdigest().encode()


def _keep(place: Path, key: str, plan: Planned, read: list[Path]) -> None:
    body = json.dumps([*plan, [[str(path), *_state(path)] for path in read]], ensure_ascii=False)
    files.write_atomic(place, _seal(key, body.encode()) + b"\n" + body.encode())


def _state(path: Path) -> list[int]:
    """By what one sees that a file is another than it was; empty if it is not there."""
    try:
        found = path.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]


def _kept(place: Path, key: str) -> Planned | None:
    """The plan at `place`; None if there is none of this key, or it is not as it was written, or
    data that it tells of are not."""
    try:
        seal, _, body = place.read_bytes().partition(b"\n")
    except OSError:
        return None
    if seal != _seal(key, body):
        return None
    title, seed, lines, data, read = json.loads(body)
    if any(_state(Path(path)) != state for path, *state in read):
        return None
    return Planned(title, seed, [Line(*line) for line in lines], data)
