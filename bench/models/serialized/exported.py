"""What torch.export wrote, read as the data it is: a list of ATen operators and their tensors.

torch's own reader evaluates expressions, unpickles objects and looks up functions by the names that
a file gives. This one reads the graph's JSON and the raw tensors, knows the operators of
`bench.models.serialized.operators`, and runs them in their order. Sizes that were symbols while the
program was exported are simply measured. All three layouts that torch has written since 2.6 are
read.
Source: https://docs.pytorch.org/docs/stable/export.html
"""

import io
import json
import math
import operator
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bench.core.errors import SuiteError
from bench.models.serialized.graph_steps import Exported, Here, Step, Value
from bench.models.serialized.operators import computes

GRAPH, OLD_GRAPH = "models/model.json", "serialized_exported_program.json"
DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16,
    7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip
"""torch.export's numbers of the types that an image classifier computes with."""
LAYOUTS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
ON_NUMBERS: dict[str, Callable[..., Any]] = {
    **{
        f"_operator.{name}": getattr(operator, name)
        for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pos", "pow", "eq",
                     "ne", "lt", "le", "gt", "ge", "and_", "or_", "getitem")
    },
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc")},
    "torch.sym_int": int,
    "torch.sym_float": float,
    "torch.sym_not": operator.not_,
    "torch.sym_max": max,
    "torch.sym_min": min,
}  # fmt: skip
"""What is computed with sizes."""


def is_one(archive: zipfile.ZipFile) -> bool:
    """Whether the archive holds an exported program."""
    return _graph(archive) is not None


def _graph(archive: zipfile.ZipFile) -> str | None:
    names = archive.namelist()
    return next((name for name in names if name == OLD_GRAPH or name.endswith(f"/{GRAPH}")), None)


def read(archive: zipfile.ZipFile, where: str) -> nn.Module:
    """The program as a module.

    Raises: SuiteError, beginning with `where`, for a program of more than one input or output, one
    that learns while it answers, or one that asks for more than arithmetic; anything else for one
    that is damaged.
    """
    at = _graph(archive)
    assert at is not None
    module = json.loads(archive.read(at))["graph_module"]
    graph, signature = module["graph"], module["signature"]
    state, constants = _tensors(archive, at)
    tensors: dict[str, Tensor] = {}
    sources, given = {}, []
    for spec in signature["input_specs"]:
        ((kind, said),) = spec.items()
        if kind == "user_input":
            given.append(said["arg"]["as_tensor"]["name"])
        elif kind in ("parameter", "buffer", "tensor_constant"):
            name = said[f"{kind}_name"]
            held = state[name] if name in state else constants[name]
            learned = kind == "parameter" and held.is_floating_point()
            tensors[name] = nn.Parameter(held.detach()) if learned else held
            sources[said["arg"]["name"]] = name
        else:
            raise SuiteError(f"{where} takes {kind[:100]} as an input, which is no data")
    kinds = [kind for spec in signature["output_specs"] for kind in spec]
    outside, nodes = {*given, *sources}, graph["nodes"]
    if any("mutation" in kind for kind in kinds) or any(_learns(node, outside) for node in nodes):
        raise SuiteError(f"{where} changes its own tensors as it answers: export model.eval()")
    if len(given) != 1 or kinds != ["user_output"]:
        raise SuiteError(
            f"{where}: expected images alone in and logits alone out, got {len(given)} inputs and "
            f"{len(kinds)} outputs"
        )
    meta = graph["tensor_values"][given[0]]
    (output,) = graph["outputs"]
    sizes = tuple(size.get("as_int") for size in meta["sizes"])
    last = output["as_tensor"]["name"]
    steps = [*_steps(where, nodes, last, outside)]
    return Exported(steps, tensors, sources, given[0], last, sizes)


def _learns(node: Mapping[str, Any], outside: set[str]) -> bool:
    """Whether a node changes one of the values that come from `outside` the graph."""
    given = {each["name"]: each["arg"] for each in node["inputs"]}
    first = given.get("self", {}).get("as_tensor", {}).get("name")
    in_place = node["target"].partition("aten.")[2].partition(".")[0].endswith("_")
    keeps_statistics = "as_tensor" in given.get("running_mean", {})
    training = given.get("training", given.get("train", {})).get("as_bool", False)
    return (in_place and first in outside) or (keeps_statistics and training)


# ----------------------------------------------------------------------------------------- tensors


def _tensors(archive: zipfile.ZipFile, at: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters with buffers, and constants, of the program whose graph lies at `at`."""
    if at == OLD_GRAPH:
        return (
            _pickled(archive.read("serialized_state_dict.pt")),
            _pickled(archive.read("serialized_constants.pt")),
        )
    data = f"{at.removesuffix(GRAPH)}data"
    return _held(archive, f"{data}/weights", "weights"), _held(
        archive, f"{data}/constants", "constants"
    )


def _held(archive: zipfile.ZipFile, folder: str, kind: str) -> dict[str, Tensor]:
    if f"{folder}/model.pt" in archive.namelist():  # as torch 2.8 did
        return _pickled(archive.read(f"{folder}/model.pt"))
    listed = json.loads(archive.read(f"{folder}/model_{kind}_config.json"))["config"]
    return {
        name: _tensor(archive.read(f"{folder}/{about['path_name']}"), about)
        for name, about in listed.items()
    }


def _pickled(content: bytes) -> dict[str, Tensor]:
    """Tensors by name; nothing else is unpickled."""
    if not content:
        return {}
    held = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return {name: value for name, value in held.items() if isinstance(value, Tensor)}


def _tensor(content: bytes, about: Mapping[str, Any]) -> Tensor:
    """One tensor of raw bytes, dense however it lay; raises ValueError if it claims more bytes."""
    if about["use_pickle"]:
        pickled: Tensor = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return pickled.detach()
    meta = about["tensor_meta"]
    dtype = DTYPES[meta["dtype"]]
    shape, strides = ([size["as_int"] for size in meta[key]] for key in ("sizes", "strides"))
    flat = (
        torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0).to(dtype)
    )
    if min(shape, default=0) < 0 or math.prod(shape) > len(flat):
        raise ValueError(f"a tensor {tuple(shape)} in {len(content)} bytes")
    return flat.as_strided(shape, strides, meta["storage_offset"]["as_int"]).contiguous()


# ------------------------------------------------------------------------------------------- steps


def _steps(where: str, nodes: list[Any], output: str, known: set[str]) -> Iterator[Step]:
    """The graph's nodes in their order; every value is forgotten after the step that reads it last.

    Tensors and the images, `known`, are kept.
    """
    made = [_step(where, node) for node in nodes]
    kept, after = {output, *known}, []
    for step in reversed(made):
        read = {*_names((step.args, tuple(step.settings.values()), _values(step.gives)))}
        after.append(tuple(read - kept))
        kept |= read
    for step, last in zip(made, reversed(after), strict=True):
        yield step._replace(last=last)


def _names(value: Any) -> Iterator[str]:
    """Names of all values in nested tuples and lists."""
    if isinstance(value, Value):
        yield value.name
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _names(each)


def _values(gives: Any) -> Any:
    if isinstance(gives, list):
        return [_values(each) for each in gives]
    return Value(gives) if gives else None


def _step(where: str, node: Mapping[str, Any]) -> Step:
    target = node["target"]
    given = [(each["name"], _argument(where, each["arg"])) for each in node["inputs"]]
    gives = [_result(each) for each in node["outputs"]]
    returned = gives[0] if len(gives) == 1 else (gives or None)
    if target in ON_NUMBERS:
        return Step(ON_NUMBERS[target], tuple(value for _, value in given), {}, returned, ())
    space, _, rest = target.partition("torch.ops.aten.")
    name, _, overload = rest.partition(".")
    packet = getattr(torch.ops.aten, name, None) if not space and computes(name) else None
    call = getattr(packet, overload or "default", None)
    if not isinstance(call, torch._ops.OpOverload):  # nor anything else that a name leads to
        raise SuiteError(
            f"{where} asks for {target[:100]}, which bench runs from no file; where you trust it, "
            "load it in a factory of your own (file.py:NAME)"
        )
    return Step(call, (), dict(given), returned, ())


def _result(output: Mapping[str, Any]) -> Any:
    """Where a node's output goes: a name, or a list of them."""
    ((kind, said),) = output.items()
    if kind == "as_tensor":
        return said["name"]
    if kind == "as_tensors":
        return [each["name"] for each in said]
    return said["as_name"] if kind.startswith("as_sym_") else None


def _argument(where: str, said: Mapping[str, Any]) -> Any:
    """What a node is given: a number, a name of a value, a list of either, or a torch constant."""
    ((kind, value),) = said.items()
    if kind == "as_none":
        return None
    if kind in ("as_int", "as_float", "as_bool", "as_string", "as_ints", "as_floats", "as_bools"):
        return value
    if kind == "as_tensor":
        return Value(value["name"])
    if kind in ("as_tensors", "as_nested_tensors"):
        return [_argument(where, {"as_tensors" if isinstance(each, list) else "as_tensor": each})
                for each in value]  # fmt: skip
    if kind in ("as_sym_int", "as_sym_float", "as_sym_bool", "as_optional_tensor"):
        ((inner, named),) = value.items()
        return Value(named) if inner == "as_name" else _argument(where, value)
    if kind in ("as_sym_ints", "as_sym_floats", "as_sym_bools", "as_optional_tensors"):
        return [_argument(where, {kind[:-1]: each}) for each in value]
    if kind == "as_scalar_type":
        return DTYPES[value]
    if kind == "as_memory_format":
        return LAYOUTS[value]
    if kind == "as_layout" and value == 7:
        return torch.strided
    if kind == "as_device":
        return Here()
    what = kind.removeprefix("as_")[:100]
    raise SuiteError(f"{where} holds {what}, which bench reads from no file")
