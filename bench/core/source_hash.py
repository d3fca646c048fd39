"""Hash Python code by its syntax trees, with every module that it imports from its own project.

A comment, a docstring or another layout changes no number, so none of them changes a hash; a helper
module that a model's forward calls does change it, so it belongs to the model. Imports are followed
without running anything: wherever they stand in a file, inside functions too, as far as modules of
the user's own. Of what is installed, the version counts; of Python, torch and bench nothing does:
those have versions elsewhere.
"""

import ast
import functools
import hashlib
import importlib.util
import site
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

STANDARD = frozenset(sys.stdlib_module_names)
UNCOUNTED = frozenset({"bench", "numpy", "torch", "torchvision", *STANDARD})
"""Modules whose versions are kept in the provenance and belong to no hash of a file."""
_PACKAGE = Path(__file__).resolve().parents[1]
_BINARIES = (".so", ".pyd")


class Import(NamedTuple):
    """One import statement: dots before the module, the module, the names taken from it."""

    level: int
    module: str
    names: tuple[str, ...]


class Parsed(NamedTuple):
    """What is known of a file by its content alone."""

    tree: str
    """Hash of its syntax tree."""
    imports: tuple[Import, ...]


# ------------------------------------------------------------------------------------ one file


def dump_tree(node: Any) -> str:
    """A syntax tree as text without positions, docstrings and what Python's versions add to it."""
    if isinstance(node, ast.AST):
        fields = []
        for name, value in ast.iter_fields(node):
            if name in ("ctx", "kind", "type_comment") or value is None or value == []:
                continue
            if name == "body" and isinstance(value, list):
                value = [each for each in value if not _is_bare_text(each)]
            fields.append(f"{name}={dump_tree(value)}")
        return f"{type(node).__name__}({','.join(fields)})"
    if isinstance(node, list):
        return f"[{','.join(map(dump_tree, node))}]"
    return f"{type(node).__name__}:{node!r}"


def _is_bare_text(node: Any) -> bool:
    """Whether a statement is no more than a text: a docstring, or a comment written as one."""
    value = getattr(node, "value", None) if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


@functools.lru_cache(maxsize=1024)
def parse_source(content: bytes) -> Parsed:
    """The hash of a file's syntax tree and its imports; of bytes that are no Python, their hash."""
    try:
        tree = ast.parse(content)
        text = dump_tree(tree)
    except (SyntaxError, ValueError, RecursionError):
        return Parsed(hashlib.sha256(content).hexdigest(), ())
    return Parsed(hashlib.sha256(text.encode()).hexdigest(), tuple(_imports(tree)))


@functools.lru_cache(maxsize=128)
def _functions(content: bytes) -> dict[tuple[str, int], list[str]]:
    """The trees of a file's functions, by name and first line."""
    found: dict[tuple[str, int], list[str]] = {}
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError):
        return found
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            first = [node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))]
            key = getattr(node, "name", "<lambda>"), min(first)
            found.setdefault(key, []).append(dump_tree(node))
    return found


def hash_function(content: bytes, name: str, line: int) -> str:
    """The syntax tree of the function of this name that starts in a line; "" if several do."""
    trees = _functions(content).get((name, line), [])
    return hashlib.sha256(trees[0].encode()).hexdigest() if len(trees) == 1 else ""


def _imports(tree: ast.AST) -> Iterator[Import]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(0, alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names)
            yield Import(node.level, node.module or "", names)
        elif isinstance(node, ast.Call) and node.args and _is_importing(node.func):
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                dots = len(first.value) - len(first.value.lstrip("."))
                yield Import(dots, first.value.lstrip("."), ())


def _is_importing(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in ("import_module", "__import__")


# ------------------------------------------------------------------------------------ its project


@functools.cache
def _installed() -> tuple[Path, ...]:
    """Folders of Python itself and of what is installed."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    found = [sysconfig.get_path(name) for name in names]
    found += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple({Path(folder).resolve() for folder in found if folder})


@functools.lru_cache(maxsize=4096)
def is_own(path: Path) -> bool:
    """Whether a file is the user's own: not bench's, not Python's, and not installed."""
    path = path.resolve()
    if not {"site-packages", "dist-packages"}.isdisjoint(path.parts):
        return False
    return not any(path.is_relative_to(folder) for folder in (_PACKAGE, *_installed()))


def is_of_bench(path: Path) -> bool:
    """Whether a file is one of bench itself."""
    return path.resolve().is_relative_to(_PACKAGE)


def module_file(module: ModuleType | str | None) -> Path | None:
    """The file that a module was loaded from, given itself or by name; None if there is none."""
    module = sys.modules.get(module) if isinstance(module, str) else module
    file = getattr(module, "__file__", None)
    return Path(file) if isinstance(file, str) and Path(file).is_file() else None


def package_version(module: str) -> str:
    """ "distribution version" of the installed package that a module belongs to; "" of none."""
    return _version(module.partition(".")[0])


@functools.cache
def _version(top: str) -> str:
    try:
        return f"{top} {metadata.version(top)}"
    except metadata.PackageNotFoundError:
        names = metadata.packages_distributions().get(top, [])
        return ", ".join(f"{name} {metadata.version(name)}" for name in sorted(set(names)))


def find_closure(path: Path) -> tuple[dict[Path, bytes], frozenset[str]]:
    """The content of a file and of each of the user's files that it imports, and theirs, by path;
    and the versions of installed packages that they import."""
    found: dict[Path, bytes] = {}
    outside: set[str] = set()
    open_ = [path.resolve()]
    while open_:
        file = open_.pop()
        if file in found or not is_own(file):
            continue
        try:
            found[file] = file.read_bytes()
        except OSError:
            continue
        if file.suffix != ".py":
            continue
        open_ += _packages(file)
        for wanted in parse_source(found[file]).imports:
            files = [*_resolved(file, wanted)]
            open_ += files
            top = wanted.module.partition(".")[0]
            if not wanted.level and top not in UNCOUNTED and not any(map(is_own, files)):
                outside.add(package_version(top))
    return found, frozenset(outside - {""})


def hash_code(path: Path) -> str:
    """A hash of a file's closure; the same for the same code wherever it lies."""
    files, outside = find_closure(path)
    lines = [f"{_name(file)} {parse_source(content).tree}" for file, content in files.items()]
    return hashlib.sha256("\n".join([*sorted(lines), *sorted(outside)]).encode()).hexdigest()


def hash_contents(path: Path) -> dict[Path, str]:
    """A hash of the bytes of each file of a closure, by path."""
    files, _ = find_closure(path)
    return {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}


def is_unchanged(files: dict[Path, str]) -> bool:
    """Whether files still hold what `contents` found."""
    try:
        now = (hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
        return all(was == new for was, new in zip(files.values(), now, strict=True))
    except OSError:
        return False


def forget_modules(files: dict[Path, str]) -> None:
    """Let Python read these files anew: what was imported from them is imported again."""
    for name, module in [*sys.modules.items()]:
        file = module_file(module) if name != "__main__" else None
        if file is not None and file.resolve() in files:
            del sys.modules[name]
    for file in files:  # compiled code is taken for current by the second and the size
        if file.suffix == ".py":
            try:
                Path(importlib.util.cache_from_source(file)).unlink(missing_ok=True)
            except (OSError, NotImplementedError):
                continue
    importlib.invalidate_caches()


def _name(file: Path) -> str:
    return f"{file.parent.name}/{file.name}" if file.name == "__init__.py" else file.name


def _packages(file: Path) -> list[Path]:
    """The __init__.py of every package that a file lies in: they run before it does."""
    return [*_chain(file.parent)]


def _chain(folder: Path) -> Iterator[Path]:
    while (init := folder / "__init__.py").is_file():
        yield init
        folder = folder.parent


def _resolved(file: Path, wanted: Import) -> Iterator[Path]:
    """The files that an import in `file` loads."""
    if wanted.level:
        folder = file.parent
        for _ in range(wanted.level - 1):
            folder = folder.parent
        yield from _below(folder, wanted)
        return
    top = wanted.module.partition(".")[0]
    if not top:
        return
    for root in _roots(file, top):
        yield from _below(root, wanted)


def _roots(file: Path, top: str) -> Iterator[Path]:
    """The folders in which a module may be looked for: where it was loaded from, if it was; else
    beside the file, beside its package, and the first of Python's path that has it."""
    there = sys.modules.get(top)
    if there is not None:
        folders = [Path(each).parent for each in getattr(there, "__path__", [])]
        own = module_file(there)
        yield from folders or ([own.parent] if own else [])
        return
    packages = _packages(file)
    beside = [file.parent, *([packages[-1].parent.parent] if packages else [])]
    yield from (folder for folder in beside if _has(folder, top))
    first = (Path(each or ".").resolve() for each in sys.path)
    yield from [next((folder for folder in first if _has(folder, top)), file.parent)]


def _has(folder: Path, name: str) -> bool:
    return (folder / name).is_dir() or bool(_module(folder, name))


def _module(folder: Path, name: str) -> list[Path]:
    """The file of a module or package of this name in a folder, if there is one."""
    for path in (folder / name / "__init__.py", folder / f"{name}.py"):
        if path.is_file():
            return [path]
    try:
        return [path for path in folder.glob(f"{name}.*") if path.suffix in _BINARIES]
    except (OSError, ValueError):
        return []


def _below(folder: Path, wanted: Import) -> Iterator[Path]:
    for part in wanted.module.split(".") if wanted.module else []:
        yield from _module(folder, part)
        folder = folder / part
    for name in wanted.names:
        if name != "*":
            yield from _module(folder, name)
