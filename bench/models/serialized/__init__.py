"""Models in files of their own: a torch.export program (.pt2) or a TorchScript one (.ts, .pt).

Neither needs the code that the model was made with. Both are read by torch's own readers, which can
run code that a file holds: `ModelEntry` lets only those files be named that the user trusts.
"""

import hashlib
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.core.errors import SuiteError, describe

if TYPE_CHECKING:  # names are looked up where nobody waits for torch
    from torch import fx, nn

SUFFIXES = (".pt2", ".ts", ".torchscript", ".pt")
UNBOUNDED = 2**31
"""Images at once that are as good as any number."""


def is_program_file(name: str) -> bool:
    """Whether the name of a model is that of a program's file."""
    return ":" not in name and name.endswith(SUFFIXES)


def load_program(path: Path) -> "nn.Module":
    """The program at `path` as a module on the CPU that maps images to whatever it gives out.

    Code in the file may run: call this only for a file that the user trusts.
    Raises: SuiteError if torch cannot read it, or if it cannot serve as a model.
    """
    import torch

    from bench.engine.opaque_model import OpaqueModel

    content = path.read_bytes()
    where, digest = f"program {path}", hashlib.sha256(content).hexdigest()
    exported = path.suffix == ".pt2"
    try:
        with warnings.catch_warnings():  # torch's readers warn of what is deprecated inside torch
            warnings.simplefilter("ignore")
            if exported:
                program = torch.export.load(io.BytesIO(content))
                return OpaqueModel(_graph(where, program), digest, *_sizes(where, program))
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


def _sizes(where: str, program: Any) -> "tuple[tuple[int, int], tuple[int | None, ...]]":
    """Least and most images that a torch.export program takes at once, and the sizes of one image,
    None where they are not fixed."""
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


def _graph(where: str, program: Any) -> "fx.GraphModule":
    """The graph of a torch.export program as a module, on whichever device its images are.

    Raises: SuiteError for a program that was exported in training mode.
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
