"""Hash Python code by its syntax trees, with every module that it imports from its own project.

Comments, docstrings and layout change no number, so they change no hash; a helper module that a
model's forward calls does, so it belongs to the model. Imports are followed without running
anything, wherever they are in a file (also inside functions), as far as the user's own modules. Of
installed packages the version counts; Python, torch and bench are not hashed here, as they have
versions elsewhere.
"""

import ast
import functools
import hashlib
import importlib.util
import site
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from bench.core import extensions, user_imports

STANDARD = frozenset(sys.stdlib_module_names)
UNCOUNTED = frozenset({"bench", "numpy", "torch", "torchvision", *STANDARD})
"""Modules whose versions are recorded in the manifest and belong to no hash of a file."""
_PACKAGE = Path(__file__).resolve().parents[1]
_BINARIES = (".so", ".pyd")


class Import(NamedTuple):
    """One import statement: dots before the module, the module, the names taken from it."""

    level: int
    module: str
    names: tuple[str, ...]


class Parsed(NamedTuple):
    """What the content of a file alone determines."""

    tree: str
    """Hash of its syntax tree."""
    imports: tuple[Import, ...]


# ------------------------------------------------------------------------------------ one file


def dump_tree(node: Any) -> str:
    """Write a syntax tree as text without positions, docstrings and version-specific fields.

    Args:
        node: A node, a list of nodes or a constant.

    Returns:
        The text.
    """
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
    """Return whether a statement is only text: a docstring or a comment written as one."""
    value = getattr(node, "value", None) if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


@functools.lru_cache(maxsize=1024)
def parse_source(content: bytes) -> Parsed:
    """Hash the syntax tree of a file and collect its imports.

    Args:
        content: Bytes of the file.

    Returns:
        Hash and imports; the hash of the bytes if they are not Python.
    """
    try:
        tree = ast.parse(content)
        text = dump_tree(tree)
    except (SyntaxError, ValueError, RecursionError):
        return Parsed(hashlib.sha256(content).hexdigest(), ())
    return Parsed(hashlib.sha256(text.encode()).hexdigest(), tuple(_imports(tree)))


@functools.lru_cache(maxsize=128)
def _functions(content: bytes) -> dict[tuple[str, int], list[str]]:
    """Collect the trees of a file's functions by name and first line."""
    definitions: dict[tuple[str, int], list[str]] = {}
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError, RecursionError):
        return definitions
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            first = [node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))]
            key = getattr(node, "name", "<lambda>"), min(first)
            definitions.setdefault(key, []).append(dump_tree(node))
    return definitions


@functools.lru_cache(maxsize=128)
def _count_definitions(content: bytes) -> Counter[str]:
    """Count how often a file defines each function, by its qualified name."""
    counts: Counter[str] = Counter()
    try:
        open_: list[tuple[str, ast.AST]] = [("", ast.parse(content))]
    except (SyntaxError, ValueError, RecursionError):
        return counts
    while open_:
        prefix, node = open_.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            counts[f"{prefix}{node.name}"] += 1
            prefix += node.name + ("." if isinstance(node, ast.ClassDef) else ".<locals>.")
        open_ += [(prefix, each) for each in ast.iter_child_nodes(node)]
    return counts


def is_defined_again(content: bytes, name: str) -> bool:
    """Return whether a file defines a function several times, as in both branches of an `if`.

    Args:
        content: Bytes of the file.
        name: Qualified name of the function.

    Returns:
        True if its name does not say which definition it is.
    """
    return _count_definitions(content)[name] > 1


def hash_function(content: bytes, name: str, line: int) -> str:
    """Hash the syntax tree of one function.

    Args:
        content: Bytes of the file.
        name: Name of the function, or "<lambda>".
        line: Line in which it starts.

    Returns:
        The hash; empty if no or several functions of that name start in the line.
    """
    trees = _functions(content).get((name, line), [])
    return hashlib.sha256(trees[0].encode()).hexdigest() if len(trees) == 1 else ""


def _imports(tree: ast.AST) -> Iterator[Import]:
    """Yield every import of a tree, also `import_module("name")`."""
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
    """Return whether a called expression is `import_module` or `__import__`."""
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in ("import_module", "__import__")


# ------------------------------------------------------------------------------------ its project


@functools.cache
def _installed() -> tuple[Path, ...]:
    """Return the folders of Python itself and of installed packages."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = [sysconfig.get_path(name) for name in names]
    folders += [*site.getsitepackages(), site.getusersitepackages()]
    return tuple({Path(folder).resolve() for folder in folders if folder})


@functools.lru_cache(maxsize=4096)
def is_own(path: Path) -> bool:
    """Return whether a file is the user's: not bench's, not Python's and not installed.

    Args:
        path: Path of the file.

    Returns:
        True for a file of the user's project, and for one of a package with extensions of bench.
    """
    path = path.resolve()
    if any(path.is_relative_to(root) for root in extensions.source_roots()):
        return True
    if not {"site-packages", "dist-packages"}.isdisjoint(path.parts):
        return False
    return not any(path.is_relative_to(folder) for folder in (_PACKAGE, *_installed()))


def is_of_bench(path: Path) -> bool:
    """Return whether a file belongs to bench.

    Args:
        path: Path of the file.

    Returns:
        True for a file of the package.
    """
    return path.resolve().is_relative_to(_PACKAGE)


def module_file(module: ModuleType | str | None) -> Path | None:
    """Return the file that a module was loaded from.

    Args:
        module: The module or its name.

    Returns:
        The path; None if the module is unknown or has no file.
    """
    module = sys.modules.get(module) if isinstance(module, str) else module
    file = getattr(module, "__file__", None)
    return Path(file) if isinstance(file, str) and Path(file).is_file() else None


def package_version(module: str) -> str:
    """Return the version of the installed package that a module belongs to.

    Args:
        module: Dotted name of the module.

    Returns:
        "distribution version"; empty if it is not installed.
    """
    return _version(module.partition(".")[0])


@functools.cache
def _version(top: str) -> str:
    try:
        return f"{top} {metadata.version(top)}"
    except metadata.PackageNotFoundError:
        names = metadata.packages_distributions().get(top, [])
        return ", ".join(f"{name} {metadata.version(name)}" for name in sorted(set(names)))


def find_closure(path: Path) -> tuple[dict[Path, bytes], frozenset[str]]:
    """Find a file and all of the user's files that it imports, directly or not.

    Args:
        path: Path of the file.

    Returns:
        Content by path, and "distribution version" of each installed package imported.
    """
    contents: dict[Path, bytes] = {}
    outside: set[str] = set()
    open_ = [path.resolve()]
    while open_:
        file = open_.pop()
        if file in contents or not is_own(file):
            continue
        try:
            contents[file] = file.read_bytes()
        except OSError:
            continue
        if file.suffix != ".py":
            continue
        open_ += _packages(file)
        for wanted in parse_source(contents[file]).imports:
            files = [*_resolved(file, wanted)]
            open_ += files
            top = wanted.module.partition(".")[0]
            if not wanted.level and top not in UNCOUNTED and not any(map(is_own, files)):
                outside.add(package_version(top))
    return contents, frozenset(outside - {""})


def hash_code(path: Path) -> str:
    """Hash the closure of a file, independently of its folder.

    Args:
        path: Path of the file.

    Returns:
        SHA-256 in hexadecimal.
    """
    files, outside = find_closure(path)
    lines = [f"{_name(file)} {parse_source(content).tree}" for file, content in files.items()]
    return hashlib.sha256("\n".join([*sorted(lines), *sorted(outside)]).encode()).hexdigest()


def hash_contents(path: Path) -> dict[Path, str]:
    """Hash the bytes of each file of a closure.

    Args:
        path: Path of the file.

    Returns:
        Hash by path.
    """
    files, _ = find_closure(path)
    return {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}


def is_unchanged(files: dict[Path, str]) -> bool:
    """Return whether files still have the content that `hash_contents` found.

    Args:
        files: Hash by path.

    Returns:
        False also if a file is missing.
    """
    try:
        now = (hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
        return all(was == new for was, new in zip(files.values(), now, strict=True))
    except OSError:
        return False


def forget_modules(files: dict[Path, str]) -> None:
    """Remove the modules of these files from Python's caches, so that they load again.

    Args:
        files: Hash by path, as `hash_contents` returns.
    """
    for name, module in [*sys.modules.items()]:
        file = module_file(module) if name != "__main__" else None
        if file is not None and file.resolve() in files:
            del sys.modules[name]
    user_imports.forget_modules(files)
    for file in files:  # compiled code is taken for current by the second and the size
        if file.suffix == ".py":
            try:
                Path(importlib.util.cache_from_source(file)).unlink(missing_ok=True)
            except (OSError, NotImplementedError):
                continue
    importlib.invalidate_caches()


def _name(file: Path) -> str:
    """Name a file in a hash: with its folder if it is an __init__.py."""
    return f"{file.parent.name}/{file.name}" if file.name == "__init__.py" else file.name


def _packages(file: Path) -> list[Path]:
    """List the __init__.py of every package that a file lies in: they run before it does."""
    return [*_chain(file.parent)]


def _chain(folder: Path) -> Iterator[Path]:
    """Yield the __init__.py files from a folder upwards."""
    while (init := folder / "__init__.py").is_file():
        yield init
        folder = folder.parent


def _resolved(file: Path, wanted: Import) -> Iterator[Path]:
    """Yield the files that an import in `file` loads."""
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
    """Yield the folders in which a top-level module is looked for.

    These are the folder it was loaded from, if it was; else the folder of the file, that of its
    package, and the first of Python's path that has it.
    """
    there = user_imports.find_module(top, file.parent)
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
    """Return whether a folder holds a module or package of this name."""
    return (folder / name).is_dir() or bool(_module(folder, name))


def _module(folder: Path, name: str) -> list[Path]:
    """Return the file of a module or package of this name in a folder, if there is one."""
    for path in (folder / name / "__init__.py", folder / f"{name}.py"):
        if path.is_file():
            return [path]
    try:
        return [path for path in folder.glob(f"{name}.*") if path.suffix in _BINARIES]
    except (OSError, ValueError):
        return []


def _below(folder: Path, wanted: Import) -> Iterator[Path]:
    """Yield the files of an import that starts in a folder."""
    for part in wanted.module.split(".") if wanted.module else []:
        yield from _module(folder, part)
        folder = folder / part
    for name in wanted.names:
        if name != "*":
            yield from _module(folder, name)
