"""Time which memory layout and how many rows a pass are fastest, once per architecture and device.

The result is stored in the user's cache folder, so that later runs on the same machine need not
time again. What all of it is worth is stated in results/speed.
"""

import contextlib
import hashlib
import inspect
import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import platformdirs
import torch
from torch import Tensor, nn

from bench.core import files
from bench.core.contracts.types import Precision
from bench.core.errors import SuiteError
from bench.engine import timing
from bench.engine.acceleration import block_gradient, layers, mkldnn_layout
from bench.engine.device import device_name
from bench.engine.functional.gradients import gradient_pass
from bench.engine.functional.losses import make_objective
from bench.engine.model_state import is_out_of_memory

Layout = Literal["contiguous", "channels-last", "mkldnn"]
LAYOUTS: tuple[Layout, ...] = ("contiguous", "channels-last")
"""Layouts of every device."""
BLOCKED: Layout = "mkldnn"
"""The layout of `bench.engine.acceleration.mkldnn_layout`, never chosen without timing it."""
WIDE = 32
"""Input channels of the widest convolution from which channels-last is the likelier winner."""
WORTH = 20
"""A calibration is made when the attack ahead takes so many times as many passes."""
TIMINGS = 30
"""Approximate number of passes of a calibration, of `rows` images each."""
LAYOUT_ROUNDS = 4
"""Timed passes of each layout."""
BETTER = 0.95
"""Another number of rows must take at most this share of the time."""
LEAST_ROWS, MOST_ROWS = 4, 16384
SOURCES = layers, block_gradient, mkldnn_layout
"""Modules whose code decides how fast an accelerated model is."""


class Calibration(NamedTuple):
    """Layout and rows that were chosen, and how."""

    layout: Layout
    rows: int
    timed: bool
    """Whether they were timed, now or earlier; if not, they follow a rule."""
    worth: float
    """Gradients of one image that an attack takes from which timing pays: 0 if it was done earlier,
    infinite where torch must be deterministic."""


def find_layouts(model: nn.Module, x: Tensor, precision: Precision) -> tuple[Layout, ...]:
    """List the layouts that may suit a model, the likeliest first, but for `BLOCKED`.

    Args:
        model: The attacked model.
        x: Images, (n, c, h, w).
        precision: Arithmetic of the gradients.

    Returns:
        Those of every device for a convolving model, channels-last first where a convolution is
        wide; then `BLOCKED` on a CPU in float32.
    """
    widths = [m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    if not widths:
        return LAYOUTS[:1]
    usual = LAYOUTS[::-1] if max(widths) >= WIDE else LAYOUTS
    on_cpu = x.device.type == "cpu" and precision == "float32"
    return (*usual, BLOCKED) if on_cpu and mkldnn_layout.is_supported() else usual


def choose_untimed(
    model: nn.Module,
    layouts: Sequence[Layout],
    x: Tensor,
    rows: int,
    precision: Precision,
    fixed: bool,
    ahead: float,
) -> Calibration | None:
    """Choose the layout and the rows a pass without calling the model.

    Args:
        model: The attacked model.
        layouts: Those that may suit it, the likeliest first.
        x: Images, (n, c, h, w), in [0, 1].
        rows: First guess of the rows a pass.
        precision: Arithmetic of the gradients.
        fixed: Whether `rows` is final.
        ahead: Gradients of one image that the attack takes which the choice is for.

    Returns:
        What was timed earlier, or the likeliest layout where that is not worth timing or torch must
        be deterministic, because timings differ from run to run. None if it has to be timed.
    """
    if torch.are_deterministic_algorithms_enabled():
        return Calibration(layouts[0], rows, False, math.inf)
    known = recall(_cache_key(model, x, precision, rows if fixed else 0, sorted(layouts)))
    if known is not None and known[0] in layouts:
        return Calibration(known[0], rows if fixed else known[1], True, 0.0)
    if is_worth_timing(rows, ahead):
        return None
    return Calibration(layouts[0], rows, False, WORTH * TIMINGS * rows)


def is_worth_timing(rows: int, ahead: float) -> bool:
    """Check whether an attack is so long that timing layouts and rows pays.

    Args:
        rows: First guess of the rows a pass.
        ahead: Gradients of one image that the attack takes.

    Returns:
        True if it takes WORTH times as many as timing does.
    """
    return ahead >= WORTH * TIMINGS * rows


def calibrate(
    model: nn.Module,
    candidates: Mapping[Layout, nn.Module],
    x: Tensor,
    rows: int,
    precision: Precision,
    fixed: bool,
) -> Calibration:
    """Time the layouts and the rows a pass, and store what is fastest.

    Args:
        model: The attacked model.
        candidates: Accelerated model for each layout in which one agrees with `model`.
        x: Images, (n, c, h, w), in [0, 1].
        rows: First guess of the rows a pass.
        precision: Arithmetic of the gradients.
        fixed: Whether `rows` is final.

    Returns:
        The choice.
    """
    times = _seconds_per_row(list(candidates.values()), x, rows, LAYOUT_ROUNDS)
    seconds = dict(zip(candidates, times, strict=True))
    layout = min(seconds, key=lambda each: seconds[each])
    worth = WORTH * TIMINGS * rows
    if not fixed:
        rows = _best_rows(candidates[layout], x, rows, seconds[layout])
    layouts = sorted(find_layouts(model, x, precision))
    key = _cache_key(model, x, precision, rows if fixed else 0, layouts)
    store(key, layout, min(rows, MOST_ROWS))
    return Calibration(layout, rows, True, worth)


def _best_rows(net: nn.Module, x: Tensor, rows: int, seconds: float) -> int:
    """Halve the rows while that is faster, else double them while that is."""
    for factor in (0.5, 2.0):
        best = rows
        while LEAST_ROWS <= (other := int(best * factor)) <= MOST_ROWS:
            try:
                (needed,) = _seconds_per_row([net], x, other)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                break
            if needed > BETTER * seconds:
                break
            best, seconds = other, needed
        if best != rows:
            return best
    return rows


def _seconds_per_row(
    nets: Sequence[nn.Module], x: Tensor, rows: int, rounds: int = 5
) -> list[float]:
    """Time a gradient pass of each net over `rows` rows, in seconds per row.

    The nets take turns, and the best of several rounds counts, because other work on the machine
    can only make a net look slower. One thread is timed in processor time, which other programs on
    its core do not use up; that of several threads is no measure of how well they share the work.
    """
    alone = torch.get_num_threads() == 1
    images = timing.noisy_images(x, rows)
    y = torch.zeros(rows, dtype=torch.int64, device=x.device)
    objective = make_objective("cross-entropy", "untargeted")
    times: list[list[float]] = [[] for _ in nets]
    for _ in range(rounds + 1):  # the first one warms up
        for net, spent in zip(nets, times, strict=True):
            work = partial(gradient_pass, net, objective, images, y, y)
            before = timing.busy_seconds(x.device)
            seconds = timing.time_call(work, x.device)[1]
            busy = timing.busy_seconds(x.device) - before
            spent.append((busy if alone else seconds) / rows)
    return [min(spent[1:]) for spent in times]


def _cache_key(
    model: nn.Module, x: Tensor, precision: str, rows: int, layouts: list[Layout]
) -> str:
    """Hash what the speed depends on: architecture (not weights), machine and versions."""
    layer_types = [(name, type(layer).__qualname__) for name, layer in model.named_modules()]
    shapes = [(name, tuple(getattr(v, "shape", ()))) for name, v in model.state_dict().items()]
    facts = [
        device_name(x.device), torch.get_num_threads(), torch.__version__,
        [inspect.getsource(each) for each in SOURCES], tuple(x.shape[1:]), precision,
        rows, layouts, layer_types, shapes,
    ]  # fmt: skip
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def cache_file() -> Path:
    """Return the path of the file of stored calibrations; deleting it forces new timings.

    Returns:
        A JSON file in the user's cache folder.
    """
    return platformdirs.user_cache_path("bench") / "calibrations.json"


def recall(key: str) -> tuple[Layout, int] | None:
    """Look up a stored calibration.

    Args:
        key: Hash of architecture, machine and versions.

    Returns:
        Layout and rows; None if there is no readable entry.
    """
    try:
        layout, rows = json.loads(cache_file().read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    known = layout in (*LAYOUTS, BLOCKED) and isinstance(rows, int) and 1 <= rows <= MOST_ROWS
    return (layout, rows) if known else None


def store(key: str, layout: Layout, rows: int) -> None:
    """Store a calibration; if the file cannot be written, the next run times again.

    Args:
        key: Hash of architecture, machine and versions.
        layout: The fastest layout.
        rows: The fastest number of rows a pass.
    """
    try:
        known = json.loads(cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    content = {**(known if isinstance(known, dict) else {}), key: [layout, rows]}
    with contextlib.suppress(SuiteError):
        files.write_atomic(cache_file(), json.dumps(content, indent=1).encode())
