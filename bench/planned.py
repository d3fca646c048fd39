"""The plan as `bench plan` shows it, kept so that only its first showing waits for the libraries.

Planning runs the attacks' files, which import torch and the libraries that attacks come from:
seconds, for a table made in milliseconds. The table depends on nothing but the suite's text,
bench's own files, the libraries' versions and Python's. It is kept in the user's cache folder as
plain JSON under a hash of all of these, and shown from there as long as none has changed: at once,
without torch. The first showing, and the first after a change, takes as long as importing takes.

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

from bench import catalogue, files, registry
from bench.checking import text_of
from bench.errors import SuiteError

if TYPE_CHECKING:
    from bench.entries import Suite

_PACKAGE = Path(__file__).parent


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


def folder() -> Path:
    """Where plans are kept; it may be deleted at any time."""
    return platformdirs.user_cache_path("bench") / "plans"


def read(name: str) -> Planned:
    """The plan of a suite, a path or a shipped name: as kept, or made now and kept.

    Raises: SuiteError with one sentence for each mistake in the suite.
    """
    path = catalogue.suite(name)
    # By the suite's place and not by the key: a plan that is out of date is replaced.
    place = folder() / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}.json"
    kept = _kept(place, _key(text_of(path, "a suite")))
    if kept is not None:
        return kept
    from bench import plan, suite  # here is where torch is imported

    checked = suite.read(name)
    tasks = plan.tasks(checked, plan.known_facts(checked))
    cells = [cell for task in tasks for cell in task.cells]
    lines = [Line(*(getattr(cell, field) for field in Line._fields)) for cell in cells]
    made = Planned(checked.title, checked.seed, lines)
    with contextlib.suppress(SuiteError):  # weights not trained yet, a folder not to be written
        if _of_bench_alone(checked):
            _keep(place, _key(checked.text), made)
    return made


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


def _key(text: str) -> str:
    """A hash of all that the plan of a suite of this text depends on."""
    installed = sorted(found.name for each in sys.path for found in Path(each).glob("*-info"))
    digest = hashlib.sha256(repr((text, sys.version, installed)).encode())
    for path in sorted(_PACKAGE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(repr((str(path), path.stat().st_size)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _seal(key: str, body: bytes) -> bytes:
    return hashlib.sha256(key.encode() + body).hexdigest().encode()


def _keep(place: Path, key: str, plan: Planned) -> None:
    body = json.dumps(plan, ensure_ascii=False).encode()
    files.write_whole(place, _seal(key, body) + b"\n" + body)


def _kept(place: Path, key: str) -> Planned | None:
    """The plan at `place`; None if there is none of this key, or it is not as it was written."""
    try:
        seal, _, body = place.read_bytes().partition(b"\n")
    except OSError:
        return None
    if seal != _seal(key, body):
        return None
    title, seed, lines = json.loads(body)
    return Planned(title, seed, [Line(*line) for line in lines])
