"""What there is, read from the files without running them: `bench list` does not wait for torch.

A built-in thing tells of itself in the two literals `summary` and `source` of its record; a suite
and a recipe in their TOML.
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
"""Inside the installed package the suites lie beside this file, in a checkout one folder above."""
RECIPES = _PACKAGE / "workflows" / "training" / "recipes"


class CatalogEntry(NamedTuple):
    """One thing, as a list shows it."""

    name: str
    summary: str
    source: str


def list_suites() -> list[str]:
    """Names of the suites that travel with the package."""
    return sorted(path.stem for path in SUITES.glob("*.toml"))


def find_suite(name: str) -> Path:
    """The file of a suite: a path, or a bare name looked up among the shipped ones.

    Raises: SuiteError if there is neither.
    """
    path = Path(name)
    if not path.is_file() and path.name == name and name in list_suites():
        path = SUITES / f"{name}.toml"
    if not path.exists():
        told = f"suite '{name}' is neither a file nor shipped; {nearest(name, list_suites())}"
        raise SuiteError(told)
    return path


def list_entries(kind: str) -> list[CatalogEntry]:
    """Everything built in of `kind`: attacks, models, datasets, suites or recipes; by name."""
    if kind == "suites":
        return [
            CatalogEntry(name, _toml(SUITES, name)["title"], f"{SUITES / name}.toml")
            for name in list_suites()
        ]
    if kind == "recipes":
        names = sorted(path.stem for path in RECIPES.glob("*.toml"))
        found = [(name, _toml(RECIPES, name)) for name in names]
        return [CatalogEntry(name, raw["title"], raw["source"]) for name, raw in found]
    entries = [_entry(kind, path) for path in (_PACKAGE / kind).glob("[!_]*.py")]
    adapters = [_adapter(path) for path in (_PACKAGE / kind / "adapters").glob("[!_]*.py")]
    return sorted([*(entry for entry in entries if entry is not None), *adapters])


def _toml(folder: Path, name: str) -> dict[str, str]:
    return tomllib.loads((folder / f"{name}.toml").read_text(encoding="utf-8"))


def _entry(kind: str, path: Path) -> CatalogEntry | None:
    """The entry of a file that ends in a record; None for a helper of such files."""
    record = _record(ast.parse(path.read_text(encoding="utf-8")), registry.RECORDS[kind])
    if record is None:
        return None
    told = {keyword.arg: keyword.value for keyword in record.keywords}
    return CatalogEntry(path.stem, *(ast.literal_eval(told[key]) for key in ("summary", "source")))


def _adapter(path: Path) -> CatalogEntry:
    """The entry of a library's adapter, whose summary is the first line of its docstring."""
    summary = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")
    return CatalogEntry(f"{path.stem}:", summary[0], f"{path.stem}:NAME")


def _record(module: ast.Module, name: str) -> ast.Call | None:
    """The call that `name` is assigned at the top of the module."""
    calls = (
        (to, node.value)
        for node in module.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
        for to in node.targets
    )
    return next((call for to, call in calls if isinstance(to, ast.Name) and to.id == name), None)
