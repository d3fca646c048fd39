"""Measure the cost of a cell: passes of any model, and the time of a bare loop."""

import statistics
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.engine.device import is_gpu, read_memory, synchronize
from bench.engine.float32_precision import allow_tf32
from bench.engine.functional.gradients import gradient_pass
from bench.engine.functional.losses import make_objective
from bench.engine.model_state import eval_mode, is_out_of_memory
from bench.engine.opaque_model import OperatorBytes, contains_opaque_model

MIN_CALLS, MAX_CALLS = 2, 15
"""Timed calls of one function: two that agree are enough of one that takes long."""
STEADY = 0.1
"""Relative difference of the first two calls from which a third one decides."""


class PassCounts:
    """Number of rows that went forward through a model and of rows whose gradient came back."""

    def __init__(self) -> None:
        self.forwards = 0
        self.backwards = 0


@contextmanager
def count_passes(
    model: nn.Module, on_pass: Callable[[int], None] | None = None
) -> Iterator[PassCounts]:
    """Count every forward and backward pass of a model, in rows, by hooks.

    Args:
        model: The model.
        on_pass: Called with the rows of each pass, forward or backward.

    Yields:
        The counts, which go up.
    """
    passes = PassCounts()

    def on_forward(module: nn.Module, inputs: Any, output: Any) -> None:
        passes.forwards += len(output)
        if on_pass is not None:
            on_pass(len(output))
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(on_backward)

    def on_backward(gradient: Tensor) -> None:
        passes.backwards += len(gradient)
        if on_pass is not None:
            on_pass(len(gradient))

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
    """The same two in `busy_seconds`."""
    busy_gradient: float = 0.0

    def seconds(self, forwards: float, backwards: float) -> float:
        """Compute the time of a bare loop; every backward pass includes its forward pass.

        Args:
            forwards: Forward passes, in rows.
            backwards: Backward passes, in rows.

        Returns:
            Seconds.
        """
        return max(forwards - backwards, 0.0) * self.forward + backwards * self.gradient

    def busy_seconds(self, forwards: float, backwards: float) -> float:
        """Compute the same in `busy_seconds`.

        Args:
            forwards: Forward passes, in rows.
            backwards: Backward passes, in rows.

        Returns:
            Seconds.
        """
        own = Floor(self.busy_forward, self.busy_gradient)
        return own.seconds(forwards, backwards)


def measure_floor(model: nn.Module, x: Tensor, y: Tensor, rows: int, most_calls: int = 15) -> Floor:
    """Time bare passes of a model over noisy images, as the lower bound of an attack's time.

    Passes are in float32 without TF32, as an attack's are unless its precision says otherwise.
    The faster of `rows` and a quarter of them counts: the rows that suit an accelerated model need
    not suit the model. Images are noisy because attacked images are, and on a CPU noise costs up to
    a fifth more (max-pooling mispredicts branches).

    Args:
        model: The model.
        x: Images, (n, c, h, w), in [0, 1].
        y: Labels, (n,), int64.
        rows: Rows a pass.
        most_calls: Most calls of each kind that are timed, at least MIN_CALLS.

    Returns:
        Medians of several passes.
    """
    with eval_mode(model), allow_tf32(False):
        floors = [_time_passes(model, x, y, size, most_calls) for size in floor_sizes(rows)]
    return Floor(*map(min, zip(*floors, strict=True)))


def floor_sizes(rows: int) -> list[int]:
    """List the rows a pass of which the faster is a floor's pace.

    Args:
        rows: Rows a pass of the attack.

    Returns:
        A quarter of them, and all.
    """
    return sorted({rows, max(1, rows // 4)})


def count_floor_passes(rows: int, calls: int) -> float:
    """Count the passes by which a floor is timed.

    Args:
        rows: Rows a pass of the attack.
        calls: Timed calls of each kind.

    Returns:
        Gradients of one image, a forward pass counted as half of one.
    """
    return 1.5 * (calls + 1) * sum(floor_sizes(rows))  # one call warms up


def _time_passes(model: nn.Module, x: Tensor, y: Tensor, rows: int, most_calls: int) -> Floor:
    """Time a forward pass and a gradient over `rows` rows, per row."""
    images = noisy_images(x, rows)
    labels = y[torch.arange(rows, device=x.device) % len(x)]
    objective = make_objective("cross-entropy", "untargeted")

    def forward() -> None:
        with torch.no_grad():
            model(images)

    def gradient() -> None:
        gradient_pass(model, objective, images, labels, labels)

    there, busy_there = median_seconds(forward, x.device, most_calls=most_calls)
    try:
        back, busy_back = median_seconds(gradient, x.device, most_calls=most_calls)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        back, busy_back = there, busy_there  # no gradient, so no comparison
    return Floor(*(spent / rows for spent in (there, back, busy_there, busy_back)))


def noisy_images(x: Tensor, rows: int) -> Tensor:
    """Make images as attacks see them: repeated, with uniform noise in +-0.2.

    Args:
        x: Images, (n, c, h, w), in [0, 1].
        rows: Number of images.

    Returns:
        Images, (rows, c, h, w), in [0, 1].
    """
    repeated = x[torch.arange(rows, device=x.device) % len(x)]
    generator = torch.Generator().manual_seed(0)
    noise = (torch.rand(repeated.shape, generator=generator) - 0.5).to(x)
    return (repeated + 0.4 * noise).clamp(0, 1)


def median_seconds(
    work: Any, device: torch.device, most: float = 0.1, most_calls: int = MAX_CALLS
) -> tuple[float, float]:
    """Time a function after one warm-up call: 2 to 15 calls, as many as their variance needs.

    Args:
        work: Function without arguments.
        device: Device of the work.
        most: Seconds after which no further call is made of a function whose calls agree.
        most_calls: Most timed calls, at least MIN_CALLS.

    Returns:
        Median seconds and median `busy_seconds`.
    """
    work()
    times: list[float] = []
    worked: list[float] = []
    before = busy_seconds(device)
    while len(times) < MIN_CALLS or (len(times) < most_calls and _need_more(times, most)):
        times.append(time_call(work, device)[1])
        after = busy_seconds(device)
        worked.append(after - before)
        before = after
    return statistics.median(times), statistics.median(worked)


def _need_more(times: list[float], most: float) -> bool:
    """Return whether calls of these seconds are too few or too short to be told from chance."""
    if sum(times) < most:
        return True
    return len(times) == MIN_CALLS and max(times) > (1 + STEADY) * min(times)


def time_call(work: Any, device: torch.device) -> tuple[Any, float]:
    """Time one call, with the device's queue empty before and after.

    Args:
        work: Function without arguments.
        device: Device of the work.

    Returns:
        Its result, and seconds.
    """
    synchronize(device)
    started = time.perf_counter()
    result = work()
    synchronize(device)
    return result, time.perf_counter() - started


def busy_seconds(device: torch.device) -> float:
    """Return the processor time of this process; on a GPU, where others do the work, the clock.

    Other programs on the machine slow the clock down, not processor time.

    Args:
        device: Device of the work.

    Returns:
        Seconds from an arbitrary start.
    """
    return time.perf_counter() if is_gpu(device) else time.process_time()


CACHE_BYTES = 24 * 2**20
"""Bytes of activations that a CPU core's caches hold: the measured optimum is 128 to 256 rows of a
LeNet, 8 of a ResNet50 at 224x224."""


def rows_per_pass(model: nn.Module, x: Tensor) -> int:
    """Choose the number of rows a pass from the size of the model's activations.

    A rule and not a measurement, so that two runs on one machine make the same batches. The bytes
    of one row's activations, from a forward pass over x[:1], are compared with the cache (CPU) or a
    share of the free memory (a GPU; of all memory where torch must be deterministic).

    Args:
        model: The model.
        x: Images, (n, c, h, w), in [0, 1].

    Returns:
        A power of two.
    """
    with eval_mode(model), torch.no_grad():
        total = _activations(model, x[:1])
    if is_gpu(x.device):
        free, there = read_memory(x.device)
        same = torch.are_deterministic_algorithms_enabled()
        budget, most = (there if same else free) // 8, 8192
    else:
        budget, most = CACHE_BYTES, 256
    rows = max(1, budget // max(total, 1))
    return int(min(most, max(8, 2 ** (rows.bit_length() - 1))))


def _activations(model: nn.Module, x: Tensor) -> int:
    """Sum the bytes of all layers' outputs, of an opaque model of all operators' outputs.

    A container returns the tensor of its last layer, and an operation in place its input: each
    tensor counts once.
    """
    if contains_opaque_model(model):
        with OperatorBytes() as given:
            model(x)
        return int(given.bytes)
    total = 0
    counted: dict[int, weakref.ref[Tensor]] = {}

    def on_forward(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal total
        if not isinstance(output, Tensor):
            return
        known = counted.get(id(output))
        if known is None or known() is not output:  # an id is used again after a tensor was freed
            counted[id(output)] = weakref.ref(output)
            total += output.numel() * output.element_size()

    handles = [module.register_forward_hook(on_forward) for module in model.modules()]
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    return total
