"""An exported program as a module: its operators one after another, on tensors of its own."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Value(NamedTuple):
    """The name under which an earlier step's result, a tensor of the program or its input lies."""

    name: str


class Here(NamedTuple):
    """The device that the images lie on, whichever the program was exported on."""


class Step(NamedTuple):
    """One operator applied."""

    call: Callable[..., Any]
    args: tuple[Any, ...]
    settings: Mapping[str, Any]
    gives: Any
    """A name, nested lists of names as the result is nested, or None where nobody reads it."""
    last: tuple[str, ...]
    """Values that no later step reads."""


class Exported(nn.Module):
    """A program's steps as a module: images (n, c, h, w) in, what the program gives out.

    Its parameters and buffers carry the program's own names. Of a program that was exported for
    one number of images, any number is asked for in pieces of that size, the last one filled up
    with its last image.
    """

    def __init__(
        self,
        steps: list[Step],
        tensors: Mapping[str, Tensor],
        sources: Mapping[str, str],
        images: str,
        output: str,
        sizes: tuple[int | None, ...],
    ) -> None:
        super().__init__()
        self.steps, self.sources = steps, dict(sources)
        self.images, self.output, self.sizes = images, output, sizes
        self.held = nn.Module()
        for name, tensor in tensors.items():
            _placed(self.held, name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        rows, wanted = self.sizes[0], self.sizes[1:]
        if len(wanted) != x.dim() - 1 or any(
            each not in (None, size) for each, size in zip(wanted, x.shape[1:], strict=True)
        ):
            raise ValueError(f"the program was exported for images {wanted}")
        if rows is None or rows == len(x):
            return self._run(x)
        pieces = [torch.cat([part, *[part[-1:]] * (rows - len(part))]) for part in x.split(rows)]
        return torch.cat([self._run(piece) for piece in pieces])[: len(x)]

    def _run(self, x: Tensor) -> Tensor:
        values: dict[str, Any] = {self.images: x}
        for name, source in self.sources.items():
            parent, _, key = source.rpartition(".")
            values[name] = getattr(self.held.get_submodule(parent), key)
        for step in self.steps:
            args = [_found(each, values, x.device) for each in step.args]
            settings = {key: _found(v, values, x.device) for key, v in step.settings.items()}
            _give(values, step.gives, step.call(*args, **settings))
            for name in step.last:
                del values[name]
        found: Tensor = values[self.output]
        return found

    def extra_repr(self) -> str:
        return f"{len(self.steps)} steps"


def _found(value: Any, values: Mapping[str, Any], device: torch.device) -> Any:
    if isinstance(value, Value):
        return values[value.name]
    if isinstance(value, list):
        return [_found(each, values, device) for each in value]
    return device if isinstance(value, Here) else value


def _give(values: dict[str, Any], gives: Any, result: Any) -> None:
    if isinstance(gives, list):
        for each, part in zip(gives, result, strict=True):
            _give(values, each, part)
    elif gives:
        values[gives] = result


def _placed(root: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a parameter or buffer under a dotted name, with modules in between."""
    *path, last = name.split(".")
    module = root
    for key in path:
        if key not in dict(module.named_children()):
            module.add_module(key, nn.Module())
        module = module.get_submodule(key)
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(last, tensor)
    else:
        module.register_buffer(last, tensor)
