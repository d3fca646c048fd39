"""Load models from serialized programs: torch.export (.pt2) or TorchScript (.ts, .pt).

Neither needs the code that the model was made with. torch's readers can run code that a file
contains, so `ModelEntry` accepts such a file only where the user declares it trusted.
"""

import hashlib
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.core import registry
from bench.core.errors import SuiteError, describe

if TYPE_CHECKING:  # commands that only look at names must not import torch
    from torch import fx, nn

SUFFIXES = (".pt2", ".ts", ".torchscript", ".pt")
UNBOUNDED = 2**31
"""Batch size that means no limit."""


def is_program_file(name: str) -> bool:
    """Return whether a model's name is the path of a serialized program.

    Args:
        name: Name in a suite.

    Returns:
        True for a path that ends in one of SUFFIXES; its folders may have colons in their names.
    """
    return name.endswith(SUFFIXES) and not registry.names_library("models", name)


def load_program(path: Path) -> "nn.Module":
    """Load a serialized program, whose code may run: only for a file that the user trusts.

    Args:
        path: The file.

    Returns:
        A module on the CPU that maps images to the program's output.

    Raises:
        SuiteError: torch cannot read the file, or the program cannot serve as a model.
    """
    import torch

    from bench.engine.opaque_model import OpaqueModel

    content = path.read_bytes()
    where, digest = f"program {path}", hashlib.sha256(content).hexdigest()
    exported = path.suffix == ".pt2"
    try:
        with warnings.catch_warnings():  # of what is deprecated inside torch
            warnings.simplefilter("ignore")
            if exported:
                program = torch.export.load(io.BytesIO(content))
                return OpaqueModel(
                    _load_graph(where, program), digest, *_read_sizes(where, program)
                )
            return OpaqueModel(torch.jit.load(io.BytesIO(content), map_location="cpu"), digest)
    except SuiteError:
        raise
    except Exception as error:  # a reader can raise anything on damaged bytes
        kind = "torch.export" if exported else "TorchScript"
        raise SuiteError(
            f"{where}: expected a program of {kind}, got a file that torch cannot read as one "
            f"({describe(error)}); for a state_dict, name the architecture and give the file as "
            "its weights"
        ) from error


def _read_sizes(where: str, program: Any) -> "tuple[tuple[int, int], tuple[int | None, ...]]":
    """Return the range of the batch size and the shape of one image; None where a size is free."""
    names = program.graph_signature.user_inputs
    if len(names) != 1:
        raise SuiteError(f"{where}: expected images as the only input, got {len(names)} inputs")
    (images,) = (node for node in program.graph.nodes if node.name == names[0])
    n, *shape = images.meta["val"].shape
    if isinstance(n, int):
        rows = n, n
    else:
        known = program.range_constraints.get(n.node.expr)  # none of a multiple of another size
        rows = 1, UNBOUNDED
        if known is not None:
            rows = max(1, int(known.lower)), int(min(known.upper, UNBOUNDED))
    return rows, tuple(size if isinstance(size, int) else None for size in shape)


def _load_graph(where: str, program: Any) -> "fx.GraphModule":
    """Return the graph of a torch.export program as a module that runs on its input's device.

    Raises:
        SuiteError: The program was exported in training mode.
    """
    import torch

    net: fx.GraphModule = program.module()
    for node in net.graph.nodes:
        changes = getattr(getattr(node.target, "_schema", None), "is_mutable", False)
        if changes and any(getattr(first, "op", "") == "get_attr" for first in node.args[:1]):
            raise SuiteError(
                f"{where} changes its own tensors when it is called; export it after model.eval()"
            )
    # Constants are plain attributes, which `Module.to` would leave on the device of the export.
    for name, value in program.constants.items():
        owner, _, key = name.rpartition(".")
        module = net.get_submodule(owner)
        if isinstance(value, torch.Tensor) and key in vars(module):
            module.register_buffer(key, vars(module).pop(key), persistent=False)
    # That device is also written in the graph, wherever it makes or converts a tensor.
    images = next(node for node in net.graph.nodes if node.op == "placeholder")
    with net.graph.inserting_after(images):
        device = net.graph.call_function(getattr, (images, "device"))
    for node in net.graph.nodes:
        node.args = tuple(device if isinstance(v, torch.device) else v for v in node.args)
        node.kwargs = {
            key: device if isinstance(v, torch.device) else v for key, v in node.kwargs.items()
        }
    net.recompile()
    return net
