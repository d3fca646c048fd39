"""Collect what functions and classes compute with besides their code.

A file may compute a value when it is imported, choose between two definitions of one name, or a
program may set a value later: the file is the same, the answers are not. Collected are the global
values that functions read, directly or by what they call, default arguments, closures, values of
classes, and environment variables that are read by name.
"""

import dataclasses
import dis
import enum
import functools
import os
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

from bench.core import source_hash

_HOLDERS = ("__func__", "func", "fget", "fset", "__wrapped__")
"""Attributes of descriptors and decorators that hold a function."""
_DESCRIPTORS = (staticmethod, classmethod, property, functools.cached_property,
                types.MemberDescriptorType, types.GetSetDescriptorType)  # fmt: skip
"""What a class's file states: values of these types hold nothing but the functions in it."""
_ENVIRONMENT = frozenset({"environ", "environb", "getenv", "getenvb"})


def read_global_variables(function: types.FunctionType) -> dict[str, Any]:
    """Return the global variables that a function reads, also in functions inside it.

    Args:
        function: Any function of Python.

    Returns:
        Value by name, of those that exist.
    """
    names = sorted(_names(function.__code__, "LOAD_GLOBAL"))
    return {name: function.__globals__[name] for name in names if name in function.__globals__}


def read_bound(function: types.FunctionType) -> list[Any]:
    """Return what a function is bound to.

    Args:
        function: Any function of Python.

    Returns:
        Default arguments, those of keywords, closure, and attributes that were set on the function
        if there are any; empty if there is nothing.
    """
    names, cells = function.__code__.co_freevars, function.__closure__ or ()
    closure = {name: _cell_content(cell) for name, cell in zip(names, cells, strict=True)}
    closure.pop("__class__", None)
    attributes = {name: each for name, each in vars(function).items() if not name.startswith("_")}
    given = [function.__defaults__, function.__kwdefaults__, closure]
    given += [attributes] if attributes else []
    return given if any(given) else []


def read_class(kind: type) -> dict[str, Any]:
    """Return what a program may have set on a class whose file is described.

    Args:
        kind: The class; its bases are not looked at.

    Returns:
        Name -> a value, a method that is not the one of the file under this name, or what the
        functions of the class are bound to.
    """
    bound = {name: given for name, each in _named_functions(kind) if (given := read_bound(each))}
    if issubclass(kind, enum.Enum):
        return bound | {name: each.value for name, each in kind.__members__.items()}
    set_ = {
        name: value
        for name, value in vars(kind).items()
        if not name.startswith(("__", "_abc_")) and _may_be_set(kind, name, value)
    }
    return bound | _field_defaults(kind) | set_


def list_functions(kind: type) -> list[types.FunctionType]:
    """List the functions of a class, also those of its properties and static methods.

    Args:
        kind: The class; its bases are not looked at.

    Returns:
        The functions, and those that they wrap.
    """
    return [each for _, each in _named_functions(kind)]


def read_values(functions: Sequence[types.FunctionType]) -> dict[str, list[Any]]:
    """Collect the global values that functions read, directly or by what they call.

    Functions, classes and modules of the user are followed, as their files are hashed already; of
    these, what they are bound to and which of several definitions they are counts. Variables that
    one of the functions assigns are left out, as every pass changes them, and so are the folders
    that a file lies in.

    Args:
        functions: Functions of the user; others are ignored.

    Returns:
        File and name -> the values.
    """
    values: dict[str, list[Any]] = {}
    assigned, seen, open_ = set[str](), set[int](), [*functions]
    while open_:
        function = open_.pop()
        if id(function) in seen or not _is_of_user(function):
            continue
        seen.add(id(function))
        file = Path(function.__code__.co_filename)
        assigned |= {f"{file.name}:{name}" for name in _names(function.__code__, "STORE_GLOBAL")}
        if which := _which_definition(function):
            values[f"{file.name}:{function.__qualname__} as"] = [which]
        for name, value in _read_names(function):
            key, own_name = f"{file.name}:{name}", name.rpartition(".")[2]
            if _is_followed(value, own_name):
                kinds = _classes_of_user(value) if isinstance(value, type) else []
                found = [read_class(each) for each in kinds] if kinds else [read_bound(value)]
                about = [_find_origin(value, file), *found]
                values.setdefault(f"{key}()", []).extend(each for each in about if each)
                open_ += [each for kind in kinds for each in list_functions(kind)]
                open_ += [] if kinds else [value]
            elif _counts(value, file):
                values.setdefault(key, []).append(value)
    return {name: value for name, value in values.items() if value and name not in assigned}


def read_module(module: types.ModuleType) -> dict[str, Any]:
    """Return the values of a module that a model holds, such as its configuration.

    Args:
        module: A module of the user.

    Returns:
        Public variables that are no functions, classes or modules.
    """
    code = types.FunctionType | types.BuiltinFunctionType | types.ModuleType | type
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, code)
    }


# ------------------------------------------------------------------------------- single functions


def _is_of_user(function: types.FunctionType) -> bool:
    file = Path(function.__code__.co_filename)
    return file.is_file() and source_hash.is_own(file)


def _which_definition(function: types.FunctionType) -> str:
    """Hash the tree of a function that its file defines several times; else ""."""
    code = function.__code__
    content = Path(code.co_filename).read_bytes()
    if not source_hash.is_defined_again(content, code.co_qualname):
        return ""
    return source_hash.hash_function(content, code.co_name, code.co_firstlineno)


def _codes(code: types.CodeType) -> list[types.CodeType]:
    """List the code of a function and of the functions inside it."""
    inside = [each for each in code.co_consts if isinstance(each, types.CodeType)]
    return [code, *(each for one in inside for each in _codes(one))]


def _names(code: types.CodeType, instruction: str) -> set[str]:
    """Collect the variables that an instruction names, also in functions inside."""
    return {
        step.argval
        for each in _codes(code)
        for step in dis.get_instructions(each)
        if step.opname == instruction
    }


def _cell_content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


# ------------------------------------------------------------------------------------------ reading


def _read_names(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield the global variables that a function reads, and those of the modules among them."""
    codes = _codes(function.__code__)
    attributes = {each for code in codes for each in code.co_names} | {"__getattr__"}
    open_, seen = [*read_global_variables(function).items()], set[int]()
    while open_:
        name, value = open_.pop()
        yield name, value
        if isinstance(value, types.ModuleType) and _is_own_module(value) and id(value) not in seen:
            seen.add(id(value))
            inside = sorted(attributes & {*vars(value)})
            open_ += [(f"{name}.{each}", vars(value)[each]) for each in inside]
    if attributes & _ENVIRONMENT:
        named = {each for code in codes for each in code.co_consts if isinstance(each, str)}
        yield from ((f"environ.{key}", os.environ[key]) for key in sorted(named & {*os.environ}))


def _is_own_module(module: types.ModuleType) -> bool:
    """Return whether a module is the user's; a folder without __init__.py is one as well."""
    file = source_hash.module_file(module)
    folders = [Path(each) for each in getattr(module, "__path__", [])]
    return source_hash.is_own(file) if file is not None else any(map(source_hash.is_own, folders))


def _is_followed(value: Any, name: str) -> bool:
    """Return whether a value is code of the user under its own name."""
    if isinstance(value, types.FunctionType):
        return value.__name__ == name and _is_of_user(value)
    return isinstance(value, type) and value.__name__ == name and bool(_classes_of_user(value))


def _classes_of_user(kind: type) -> list[type]:
    """List the classes of the user that a class is made of: itself, bases, and their types."""
    kinds = dict.fromkeys([*kind.__mro__, *type(kind).mro(type(kind))])
    files = {each: source_hash.module_file(each.__module__) for each in kinds}
    return [each for each, file in files.items() if file is not None and source_hash.is_own(file)]


def _find_origin(value: Any, file: Path) -> list[str]:
    """Name a function or class of another file, and bases of the user's, as it may have others."""
    kinds = _classes_of_user(value) if isinstance(value, type) else []
    own = source_hash.module_file(value.__module__) or file
    elsewhere = not own.samefile(file)
    names = [f"{each.__module__.rpartition('.')[2]}:{each.__qualname__}" for each in kinds]
    names = names if kinds else [f"{own.name}:{value.__qualname__}"]
    return names if elsewhere or len(kinds) > 1 else []


def _counts(value: Any, file: Path) -> bool:
    """Return whether a value belongs to what functions in a file compute."""
    of_process = (os.environ, getattr(os, "environb", None), sys.argv, sys.path, sys.modules)
    if isinstance(value, types.ModuleType) or any(value is each for each in of_process):
        return False
    if isinstance(value, types.FunctionType) and not _is_of_user(value):
        return bool(value.__closure__)  # a library may have wrapped a function of the user
    if isinstance(value, type):
        return bool(_classes_of_user(value))
    if isinstance(value, str | PurePath) and value and PurePath(value).is_absolute():
        return not file.is_relative_to(value)
    return True


# ------------------------------------------------------------------------------------------ classes


def _named_functions(kind: type) -> Iterator[tuple[str, types.FunctionType]]:
    for name, each in vars(kind).items():
        for number, function in enumerate(_held_functions(each)):
            yield (f"{name}.{number}" if number else name), function


def _held_functions(value: Any) -> list[types.FunctionType]:
    """List a function, or those in a descriptor or under decorators, the outermost first."""
    found: list[types.FunctionType] = []
    open_, seen = [value], set[int]()
    while open_:
        each = open_.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, types.FunctionType):
            found.append(each)
        elif type(each).__module__ not in ("builtins", "functools") or isinstance(each, type):
            continue
        open_ += [part for name in _HOLDERS if (part := getattr(each, name, None)) is not None]
    return found


def _may_be_set(kind: type, name: str, value: Any) -> bool:
    """Return whether an attribute of a class is more than what its file states under its name."""
    if isinstance(value, types.FunctionType):
        return value.__qualname__ != f"{kind.__qualname__}.{name}"
    if isinstance(value, type):
        return bool(_classes_of_user(value))
    return not isinstance(value, _DESCRIPTORS)


def _field_defaults(kind: type) -> dict[str, Any]:
    """Return the defaults of a dataclass that are no attributes of the class."""
    if not dataclasses.is_dataclass(kind):
        return {}
    found = {}
    for field in dataclasses.fields(kind):
        for part in ("default", "default_factory"):
            value = getattr(field, part)
            if value is not dataclasses.MISSING and field.name not in vars(kind):
                found[f"{field.name}.{part}"] = value
    return found
