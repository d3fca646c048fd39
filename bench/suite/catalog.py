"""List what is built in, from source text without imports: `bench list` does not wait for torch.

Records of attacks, models and data sets contain the literals `summary` and `source`; suites and
recipes state them in their TOML. Extensions of installed packages are imported.
"""

import ast
import tomllib
from pathlib import Path
from typing import NamedTuple

from bench.core import registry
from bench.core.errors import SuiteError, nearest

_PACKAGE = Path(__file__).parents[1]
SUITES = next(
    (folder for folder in (_PACKAGE / "suites", _PACKAGE.parent / "suites") if folder.is_dir()),
    _PACKAGE / "suites",
)
"""In an installed package the suites are inside it, in a checkout beside it."""
RECIPES = _PACKAGE / "workflows" / "training" / "recipes"


class CatalogEntry(NamedTuple):
    """One line of `bench list`."""

    name: str
    summary: str
    source: str
    origin: str = "bench"
    """The distribution and its version, for an extension."""


def list_suites() -> list[str]:
    """List the shipped suites.

    Returns:
        Their names, sorted.
    """
    return sorted(path.stem for path in SUITES.glob("*.toml"))


def find_suite(name: str) -> Path:
    """Find the file of a suite.

    Args:
        name: Path, or bare name of a shipped suite.

    Returns:
        Path of the file.

    Raises:
        SuiteError: There is neither.
    """
    path = Path(name)
    if not path.is_file() and path.name == name and name in list_suites():
        path = SUITES / f"{name}.toml"
    if not path.exists():
        known = nearest(name, list_suites())
        raise SuiteError(f"suite '{name}' is neither a file nor shipped; {known}")
    return path


def read_starter() -> str:
    """Read the commented suite that a user starts from.

    Returns:
        Its text.
    """
    return (_PACKAGE / "suite" / "starter.toml").read_text(encoding="utf-8")


def list_entries(kind: str) -> list[CatalogEntry]:
    """List everything built in of a kind.

    Args:
        kind: "attacks", "models", "datasets", "suites" or "recipes".

    Returns:
        Entries sorted by name.
    """
    if kind == "suites":
        return [
            CatalogEntry(name, _toml(SUITES, name)["title"], f"{SUITES / name}.toml")
            for name in list_suites()
        ]
    if kind == "recipes":
        names = sorted(path.stem for path in RECIPES.glob("*.toml"))
        recipes = [(name, _toml(RECIPES, name)) for name in names]
        return [CatalogEntry(name, raw["title"], raw["source"]) for name, raw in recipes]
    entries = [_entry(kind, path) for path in (_PACKAGE / kind).glob("[!_]*.py")]
    adapters = [_adapter(path) for path in (_PACKAGE / kind / "adapters").glob("[!_]*.py")]
    return sorted([*(entry for entry in entries if entry is not None), *adapters])


def list_extensions(kind: str) -> tuple[list[CatalogEntry], list[str]]:
    """List the attacks, models or data sets that installed packages offer.

    Args:
        kind: "attacks", "models" or "datasets".

    Returns:
        Entries sorted by name, and a sentence for each extension that cannot be used.
    """
    found = registry.discover(kind)
    entries, problems = [], [*found.problems]
    for name, extension in found.usable.items():
        try:
            record = registry.load_extension(extension)
        except SuiteError as error:
            problems += error.problems
        else:
            entries.append(CatalogEntry(name, record.summary, record.source, extension.origin))
    return entries, problems


def list_library(kind: str, library: str) -> list[CatalogEntry]:
    """List what the adapter of a library offers.

    Args:
        kind: "attacks", "models" or "datasets".
        library: The library, with or without a colon.

    Returns:
        Entries sorted by name.

    Raises:
        SuiteError: There is no such adapter, the library is not installed, or it has no list.
    """
    library = library.removesuffix(":")
    if kind not in registry.RECORDS:
        raise SuiteError(f"{kind} come from no library: leave '{library}' out")
    names = registry.adapter_names(kind, library)
    if names is None:
        raise SuiteError(f"{kind} of '{library}:' have no list; see `bench list {kind}`")
    found = [(name, registry.find(kind, f"{library}:{name}")) for name in names]
    # A missing library's attacks are placeholders, and so is one without a name.
    for record in [record for _, record in found] or [registry.find(kind, f"{library}:")]:
        if reason := getattr(record, "unavailable", ""):
            raise SuiteError(reason)
    return [CatalogEntry(f"{library}:{name}", each.summary, each.source) for name, each in found]


def _toml(folder: Path, name: str) -> dict[str, str]:
    return tomllib.loads((folder / f"{name}.toml").read_text(encoding="utf-8"))


def _entry(kind: str, path: Path) -> CatalogEntry | None:
    """Return the entry of a file with a record; None for a helper module."""
    record = _record(ast.parse(path.read_text(encoding="utf-8")), registry.RECORDS[kind])
    if record is None:
        return None
    values = {keyword.arg: keyword.value for keyword in record.keywords}
    return CatalogEntry(
        path.stem, *(ast.literal_eval(values[key]) for key in ("summary", "source"))
    )


def _adapter(path: Path) -> CatalogEntry:
    """Return the entry of a library's adapter; its summary is the docstring's first line."""
    summary = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")
    return CatalogEntry(f"{path.stem}:", summary[0], f"{path.stem}:NAME")


def _record(module: ast.Module, name: str) -> ast.Call | None:
    """Return the call that is assigned to `name` at the top of a module."""
    calls = (
        (to, node.value)
        for node in module.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
        for to in node.targets
    )
    return next((call for to, call in calls if isinstance(to, ast.Name) and to.id == name), None)
