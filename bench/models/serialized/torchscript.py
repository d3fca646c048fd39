"""What TorchScript wrote: a program in a language of its own, run by torch's interpreter.

Its pickles know tensors and the file's own classes, nothing of Python. But the language can write
files, print and load native code, and a class may have it run while it is loaded. So whatever asks
for that is refused before torch reads the file, and every operator that the forward reaches must be
one of `bench.models.serialized.operators`.
"""

import io
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from bench.core.errors import SuiteError
from bench.models.serialized.operators import computes

LANGUAGE = """
BroadcastSizes Constant CreateObject DictConstruct DictIndex Float GetAttr If ListConstruct
ListUnpack Loop NumToTensor RaiseException SetAttr TupleConstruct TupleIndex TupleSlice TupleUnpack
Uninitialized data device dtype is_cuda isinstance layout max min requires_grad shape tolist
unchecked_cast unchecked_unwrap_optional
"""
"""What may stand in a program beside ATen's operators."""
WHILE_LOADING = (b"__setstate__", b"torch.classes")
"""What would have something run before the program could be looked at."""


def is_one(names: list[str]) -> bool:
    """Whether an archive of these parts holds a TorchScript program."""
    return any("/code/" in name and name.endswith(".py") for name in names)


def read(content: bytes, where: str) -> nn.Module:
    """The program as a module, on the CPU.

    Raises: SuiteError, beginning with `where`, for a program that asks for more than arithmetic;
    RuntimeError for one that is damaged.
    """
    archive = torch._C.PyTorchFileReader(io.BytesIO(content))  # as torch itself will read it
    for name in archive.get_all_records():
        if name.endswith((".py", ".pkl")):
            part = archive.get_record(name)
            for word in WHILE_LOADING:
                if word in part:
                    raise SuiteError(_refused(where, word.decode()))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.load`", FutureWarning)
        program = torch.jit.load(io.BytesIO(content), map_location="cpu")
    for kind in sorted({*_kinds(program.inlined_graph)}):
        space, _, name = kind.partition("::")
        if not (
            name in LANGUAGE.split() if space == "prim" else space == "aten" and computes(name)
        ):
            raise SuiteError(_refused(where, kind))
    found: nn.Module = program
    return found


def _refused(where: str, what: str) -> str:
    return (
        f"{where} asks for {what}, which bench runs from no file; where you trust it, load it in a "
        "factory of your own (file.py:NAME)"
    )


def _kinds(block: Any) -> Iterator[str]:
    """The kinds of all nodes of a graph, those in branches and loops included."""
    for node in block.nodes():
        yield node.kind()
        for inner in node.blocks():
            yield from _kinds(inner)
