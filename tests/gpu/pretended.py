"""Run attacks on a pretended GPU, with what happens in their steps noted apart."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.core import registry
from bench.core.contracts.attack import AttackSpec, EnsembleAttack
from bench.engine import cuda_graphs
from bench.engine.resident_rows import copy_changed
from gpu.fake_cuda import FakeCuda
from gpu.fake_tensors import Event, FakeDevice

EPS = {"linf": (0.2, 0.1), "l2": (2.0, 1.0), "l1": (10.0, 5.0), "l0": (16.0, 8.0),
       "patch": (5.0,), "rotation-translation": (2.0,)}  # fmt: skip
SHORT = {"steps": 9, "restarts": 2, "targets": 2, "queries": 3, "candidates": 3, "directions": 3,
         "angles": 2, "shifts": 2}  # fmt: skip
"""Parameters of short attacks; 9 steps are one more than between two looks of the host."""


class SmallNet(nn.Module):
    """A convolution and a matrix, whose weights are the same at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 7, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 10)
        )
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            scale = 2 / parameter[0].numel() ** 0.5
            parameter.data = scale * torch.randn(parameter.shape, generator=generator)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits


def make_spec(name: str, norm: Any, params: dict[str, Any] | None = None, **settings: Any) -> Any:
    """A short attack with two eps."""
    attack = registry.find("attacks", name)
    chosen = _shorten(attack.params, params or {})
    if isinstance(attack, EnsembleAttack):
        parts = [
            part._replace(params=_shorten(type(part.params), {}))
            for part in attack.parts(chosen, norm)
        ]
        attack = replace(attack, parts=lambda params, norm: parts)
    return AttackSpec(
        **{"name": name, "attack": attack, "params": chosen, "norm": norm, "eps": EPS[norm]}
        | settings
    )


def _shorten(kind: Any, params: dict[str, Any]) -> Any:
    known = {field.name for field in fields(kind)}
    if "targets" in known:  # each of which is a restart
        known.discard("restarts")
    return kind(**{key: value for key, value in SHORT.items() if key in known} | params)


class Machine:
    """A pretended GPU; events of steps are in `in_steps`, all others in `gpu.events`."""

    def __init__(self) -> None:
        self.gpu = FakeDevice()
        self.in_steps: list[Event] = []

    @contextmanager
    def run(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """Run what is inside on the GPU; yields what places a tensor there."""
        with (
            pytest.MonkeyPatch.context() as patch,
            FakeCuda(at=0).replace_module(),
            self.gpu.pretend(),
        ):
            patch.setattr(cuda_graphs, "capture_graph", self._capture)
            yield self.gpu.upload

    def _capture(self, step: Any, static: Any, number: int, memory: Any) -> Callable[[], None]:
        """In place of a graph: the steps themselves, in which nothing may wait or copy."""

        def launch() -> None:
            with self.gpu.note_apart() as (events, _):
                copy_changed(step(static, number), static)
            self.in_steps += events

        return launch
