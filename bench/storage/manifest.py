"""Read provenance.json, the manifest of a run, and check it before anything uses it.

Runs are shared and published, so the file may come from elsewhere. Entries that readers index must
exist and have their type; entries that only newer versions write may be missing; unknown entries
are allowed.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Gt, Le, MaxLen, MinLen
from pydantic import ConfigDict, StringConstraints, TypeAdapter, ValidationError

from bench.core import sanitize
from bench.core.contracts.detector import Detector
from bench.core.contracts.types import Norm
from bench.core.errors import RecordError, SuiteError, first_line
from bench.storage import schema
from bench.suite import plan
from bench.suite.plan import Cell
from bench.suite.references import Figure

FILE = "provenance.json"
_Strict = ConfigDict(strict=True, allow_inf_nan=False)
_Examples = Annotated[int, Gt(0), Le(2**31)]


@dataclasses.dataclass(kw_only=True)
class _Suite:
    name: Annotated[str, StringConstraints(pattern=r"^\w[\w.-]*$")]
    """Part of file names."""
    title: str
    seed: int
    text: str
    base: str = ""


@dataclasses.dataclass(kw_only=True)
class _Data:
    name: str
    n: _Examples
    fingerprint: str
    classes: list[str] | None = None
    shape: list[int] | None = None
    chunk_examples: _Examples | None = None
    """Missing before it was chosen by the device."""


@dataclasses.dataclass(kw_only=True)
class _Model:
    fingerprint: str
    classes: int | None = None
    findings: list[str]
    detector: Detector | None = None


@dataclasses.dataclass(kw_only=True)
class _Environment:
    python: str
    packages: dict[str, str | None]
    device: str
    device_name: str
    processor: str | None = None
    threads: int | None = None
    git: dict[str, Any] | None = None


@dataclasses.dataclass(kw_only=True)
class _Options:
    device: str
    limit: Annotated[int, Gt(0)] | None
    batch_size: Annotated[int, Gt(0)] | None
    copied: bool
    deterministic: bool
    share: str


@dataclasses.dataclass(kw_only=True)
class _Session:
    started: str
    finished: str | None
    command: str
    environment: _Environment
    options: _Options | None = None
    requirements: list[str] = dataclasses.field(default_factory=list)
    loaded: list[str] = dataclasses.field(default_factory=lambda: ["torch"])
    parts: int = 1


@dataclasses.dataclass(kw_only=True)
class _Published:
    model: str
    attack: str
    source: str
    figure: Figure
    eps: list[float]
    values: list[float]
    note: str


@dataclasses.dataclass(kw_only=True)
class _Threat:
    norm: Norm
    eps: Annotated[float, Gt(0)]
    eps_text: str


@dataclasses.dataclass(kw_only=True)
class _Union:
    label: str
    threats: list[_Threat]


@dataclasses.dataclass(kw_only=True)
class _Document:
    __pydantic_config__ = _Strict
    schema: Literal[1]
    suite: _Suite
    data: _Data
    models: dict[str, _Model]
    cells: Annotated[list[Cell], MinLen(1)]
    crosschecks: list[Annotated[list[str], MinLen(2), MaxLen(2)]]
    sessions: Annotated[list[_Session], MinLen(1)]
    certify: list[plan.CertificationTask] = dataclasses.field(default_factory=list)
    corruption_baseline: str = ""
    published: list[_Published] = dataclasses.field(default_factory=list)
    unions: list[_Union] = dataclasses.field(default_factory=list)
    probes: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    files: dict[str, str] = dataclasses.field(default_factory=dict)


def describe_manifest() -> dict[str, Any]:
    """Describe the manifest as a JSON Schema, from the types that it is checked by.

    Returns:
        The schema, as plain values.
    """
    return _ADAPTER.json_schema(mode="validation")


def read_manifest(folder: Path) -> tuple[dict[str, Any], list[Cell]]:
    """Read the manifest of a run.

    Args:
        folder: Folder of the run.

    Returns:
        The document, with control characters escaped, and the cells in it.

    Raises:
        SuiteError: There is no run, or the file cannot be read.
        RecordError: The file is damaged or newer than this bench.
    """
    path = folder / FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise SuiteError(
            f"{folder}: expected the folder of a run, found no {FILE}; make one with bench run"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: not a valid file name
        reason = first_line(error)
        raise SuiteError(f"{path}: could not be read ({reason}); run the suite again") from error
    try:
        raw = sanitize.escape_nested(json.loads(content))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"no JSON of ours: {error}") from error
    version = raw.get("schema") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > schema.SCHEMA_VERSION:
        raise RecordError(
            f"{path}: schema {version}, this bench reads up to {schema.SCHEMA_VERSION}; "
            "use the bench that wrote it"
        )
    try:
        _ADAPTER.validate_json(json.dumps(raw))
        cells = [Cell(**cell) for cell in raw["cells"]]
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        at = ".".join(str(part)[:60] for part in first["loc"]) or "the whole"
        raise _damaged(path, f"{at}: {first['msg'].lower()}") from error
    except TypeError as error:  # a key that a cell does not have
        raise _damaged(path, str(error)) from error
    if contradiction := _find_contradiction(raw, cells):
        raise _damaged(path, contradiction)
    return raw, cells


def read_raw(folder: Path) -> dict[str, Any]:
    """Read the manifest of a run without checking it.

    Args:
        folder: Folder of a run, or of none.

    Returns:
        The table in the file; empty if there is none or it is damaged.
    """
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _find_contradiction(raw: dict[str, Any], cells: list[Cell]) -> str:
    """Name an entry that contradicts another; "" if there is none."""
    planned = {(cell.model, cell.attack, cell.eps) for cell in cells}
    for key, other in (("published", "values"), ("certify", "eps_texts")):
        for place, entry in enumerate(raw.get(key, [])):
            if len(entry["eps"]) != len(entry[other]):
                return f"{key}.{place}: expected as many {other} as eps"
    for place, entry in enumerate(raw.get("certify", [])):
        if (entry["method"] == "smoothing") != (entry.get("smoothing") is not None):
            return f"certify.{place}: expected settings of smoothing where it is the method"
    for place, entry in enumerate(raw.get("published", [])):
        if any((entry["model"], entry["attack"], eps) not in planned for eps in entry["eps"]):
            return f"published.{place}: expected figures of cells of the plan"
    return ""


def select_known_fields(kind: type, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Remove the keys of tables that a dataclass does not have: a newer version may write more.

    Args:
        kind: A dataclass.
        entries: Tables of the manifest.

    Returns:
        The tables with the fields of `kind` only.
    """
    names = {field.name for field in dataclasses.fields(kind)}
    return [{key: entry[key] for key in entry if key in names} for entry in entries]


_ADAPTER = TypeAdapter(_Document)


def _damaged(path: Path, why: str) -> RecordError:
    return RecordError(f"{path}: damaged ({' '.join(why.split())[:300]}); run the suite again")
