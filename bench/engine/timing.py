"""What a cell cost: passes counted on any model, and the floor that throughput is held against."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.engine.functional.gradients import gradient_pass
from bench.engine.functional.losses import make_objective
from bench.engine.model_state import eval_mode, is_out_of_memory
from bench.engine.opaque_model import OperatorBytes, contains_opaque_model


class PassCounts:
    """Rows that went forward through a model and rows whose gradient came back."""

    def __init__(self) -> None:
        self.forwards = 0
        self.backwards = 0


@contextmanager
def count_passes(model: nn.Module) -> Iterator[PassCounts]:
    """Counts every forward and backward pass of `model` while inside, whoever makes them."""
    passes = PassCounts()

    def on_forward(module: nn.Module, inputs: Any, output: Any) -> None:
        passes.forwards += len(output)
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(on_backward)

    def on_backward(gradient: Tensor) -> None:
        passes.backwards += len(gradient)

    handle = model.register_forward_hook(on_forward)
    try:
        yield passes
    finally:
        handle.remove()


class Floor(NamedTuple):
    """Seconds per row of a bare loop on the model, on noisy inputs."""

    forward: float
    gradient: float
    """One forward and one gradient with respect to the input."""
    busy_forward: float = 0.0
    """The same two in `busy` seconds."""
    busy_gradient: float = 0.0

    def seconds(self, forwards: float, backwards: float) -> float:
        """The time of a bare loop of so many row passes; every backward has its forward."""
        return max(forwards - backwards, 0.0) * self.forward + backwards * self.gradient

    def busy_seconds(self, forwards: float, backwards: float) -> float:
        """The same in `busy` seconds."""
        own = Floor(self.busy_forward, self.busy_gradient)
        return own.seconds(forwards, backwards)


def measure_floor(model: nn.Module, x: Tensor, y: Tensor, rows: int) -> Floor:
    """Time bare passes over noisy images made from x (n, c, h, w) and y (n,), medians of several.

    At `rows` rows a pass and at a quarter of them, the quicker counts: the rows that suit an
    attacked copy need not suit the model. Noisy, because attacked images are, and on a CPU noise
    costs up to a fifth more (max-pooling mispredicts branches).
    """
    sizes = sorted({rows, max(1, rows // 4)})
    with eval_mode(model):
        paces = [_time_passes(model, x, y, size) for size in sizes]
    return Floor(*map(min, zip(*paces, strict=True)))


def _time_passes(model: nn.Module, x: Tensor, y: Tensor, rows: int) -> Floor:
    """Seconds per row of a forward pass and of a gradient, among `rows`."""
    images = noisy_images(x, rows)
    labels = y[torch.arange(rows, device=x.device) % len(x)]
    ascend = make_objective("cross-entropy", "untargeted")

    def forward() -> None:
        with torch.no_grad():
            model(images)

    def gradient() -> None:
        gradient_pass(model, ascend, images, labels, labels)

    there, busy_there = median_seconds(forward, x.device)
    try:
        back, busy_back = median_seconds(gradient, x.device)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        back, busy_back = there, busy_there  # it has no gradient, so nothing is held against it
    return Floor(*(spent / rows for spent in (there, back, busy_there, busy_back)))


def noisy_images(x: Tensor, rows: int) -> Tensor:
    """`rows` images made from x (n, c, h, w) by uniform noise in +-0.2: what attacks look at."""
    repeated = x[torch.arange(rows, device=x.device) % len(x)]
    generator = torch.Generator().manual_seed(0)
    noise = (torch.rand(repeated.shape, generator=generator) - 0.5).to(x)
    return (repeated + 0.4 * noise).clamp(0, 1)


def median_seconds(work: Any, device: torch.device, most: float = 0.1) -> tuple[float, float]:
    """Median seconds of `work()` and median `busy` seconds, warmed up: of 3 to 15 calls, as many as
    `most` seconds allow."""
    work()
    times: list[float] = []
    worked: list[float] = []
    while len(times) < 3 or (sum(times) < most and len(times) < 15):
        before = busy_seconds(device)
        times.append(time_call(work, device)[1])
        worked.append(busy_seconds(device) - before)
    return statistics.median(times), statistics.median(worked)


def time_call(work: Any, device: torch.device) -> tuple[Any, float]:
    """The result of `work()` and the seconds it took, the device's queue drained on both sides."""
    synchronize(device)
    started = time.perf_counter()
    result = work()
    synchronize(device)
    return result, time.perf_counter() - started


def busy_seconds(device: torch.device) -> float:
    """Seconds that the processor has worked for this process; on a GPU, where the work is done
    elsewhere, the clock's. Other programs on the machine take from the clock, not from these."""
    return time.perf_counter() if device.type == "cuda" else time.process_time()


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


CACHE_BYTES = 24 * 2**20
"""About what a pass may touch before a CPU core's caches lose: measured optimum 128 to 256 rows
of a LeNet, 8 of a ResNet50 at 224x224."""


def rows_per_pass(model: nn.Module, x: Tensor) -> int:
    """How many rows a pass should hold: a power of two, from the model's own activations.

    A rule and not a stopwatch, so that two runs on one machine make the same batches: bytes that
    one row's activations take, measured by a forward pass over x[:1], against the cache (CPU) or
    a share of the free memory (CUDA); of all memory where torch must be deterministic.
    """
    with eval_mode(model), torch.no_grad():
        total = _activations(model, x[:1])
    if x.device.type == "cuda":
        free, there = torch.cuda.mem_get_info(x.device)
        same = torch.are_deterministic_algorithms_enabled()
        budget, most = (there if same else free) // 8, 8192
    else:
        budget, most = CACHE_BYTES, 256
    rows = max(1, budget // max(total, 1))
    return int(min(most, max(8, 2 ** (rows.bit_length() - 1))))


def _activations(model: nn.Module, x: Tensor) -> int:
    """Bytes that a pass over x gives on its way, layer by layer, of a program by every operator."""
    if contains_opaque_model(model):
        with OperatorBytes() as given:
            model(x)
        return int(given.bytes)
    total = 0

    def on_forward(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal total
        if isinstance(output, Tensor):
            total += output.numel() * output.element_size()

    handles = [module.register_forward_hook(on_forward) for module in model.modules()]
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    return total
