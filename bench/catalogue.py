"""What there is, read from the files without running them: `bench list` does not wait for torch.

A built-in thing tells of itself in the two literals `summary` and `source` of its record; a suite
and a recipe in their TOML.
"""

import ast
import tomllib
from pathlib import Path
from typing import NamedTuple

from bench import registry
from bench.errors import SuiteError, nearest

_PACKAGE = Path(__file__).parent
SUITES = next(
    (folder for folder in (_PACKAGE / "suites", _PACKAGE.parent / "suites") if folder.is_dir()),
    _PACKAGE / "suites",
)
"""Inside the installed package the suites lie beside this file, in a checkout one folder above."""
RECIPES = _PACKAGE / "training"


class Line(NamedTuple):
    """One thing, as a list shows it."""

    name: str
    summary: str
    source: str


def suites() -> list[str]:
    """Names of the suites that travel with the package."""
    return sorted(path.stem for path in SUITES.glob("*.toml"))


def suite(name: str) -> Path:
    """The file of a suite: a path, or a bare name looked up among the shipped ones.

    Raises: SuiteError if there is neither.
    """
    path = Path(name)
    if not path.is_file() and path.name == name and name in suites():
        path = SUITES / f"{name}.toml"
    if not path.exists():
        told = f"suite '{name}' is neither a file nor shipped; {nearest(name, suites())}"
        raise SuiteError(told)
    return path


def lines(kind: str) -> list[Line]:
    """Everything built in of `kind`: attacks, models, datasets, suites or recipes; by name."""
    if kind == "suites":
        return [
            Line(name, _toml(SUITES, name)["title"], f"{SUITES / name}.toml") for name in suites()
        ]
    if kind == "recipes":
        names = sorted(path.stem for path in RECIPES.glob("*.toml"))
        found = [(name, _toml(RECIPES, name)) for name in names]
        return [Line(name, raw["title"], raw["source"]) for name, raw in found]
    files = sorted((_PACKAGE / kind).glob("*.py"))
    return sorted(_line(kind, path) for path in files if path.stem != "__init__")


def _toml(folder: Path, name: str) -> dict[str, str]:
    return tomllib.loads((folder / f"{name}.toml").read_text(encoding="utf-8"))


def _line(kind: str, path: Path) -> Line:
    """Of an adapter, which has no record, the first line of its docstring."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    record = _record(module, registry.RECORDS[kind])
    if record is None:
        first = (ast.get_docstring(module) or "").partition("\n")[0]
        return Line(f"{path.stem}:", first, f"{path.stem}:NAME")
    told = {keyword.arg: keyword.value for keyword in record.keywords}
    return Line(path.stem, *(ast.literal_eval(told[key]) for key in ("summary", "source")))


def _record(module: ast.Module, name: str) -> ast.Call | None:
    """The call that `name` is assigned at the top of the module."""
    calls = (
        (to, node.value)
        for node in module.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
        for to in node.targets
    )
    return next((call for to, call in calls if isinstance(to, ast.Name) and to.id == name), None)
