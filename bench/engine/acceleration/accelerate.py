"""The attacked copy: a stand-in for a model that gives the same gradient sooner.

An attack only proposes images, the model itself judges them. So what an attack differentiates may
be another module, as long as it agrees: its layers exchanged (`bench.engine.acceleration.layers`),
its tensors laid out as the processor likes them, and, where the suite asks for it, its arithmetic
in bfloat16. Every stand-in is probed against the model first, in each way in which attacks will use
it (with gradients and without, one row, a few, as many as a pass holds), and dropped if it
disagrees or fails; where none agrees, the model itself is attacked. Nor is it believed later on:
`bench.evaluation.crafting` holds it against the model after each attack that it led. Which layout
and how many rows a pass are quickest is timed once for an architecture and a device, if the work
ahead is worth it, and remembered in the user's cache.
"""

import contextlib
import copy
import hashlib
import inspect
import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import platformdirs
import torch
from torch import Tensor, nn

from bench.core import files
from bench.core.contracts.types import Precision
from bench.core.errors import ContractError, SuiteError, describe
from bench.engine import device as provenance
from bench.engine import heartbeat, timing
from bench.engine.acceleration import agreement
from bench.engine.acceleration import layers as exchange
from bench.engine.functional.gradients import PassResult, gradient_pass
from bench.engine.functional.logits import widen
from bench.engine.functional.losses import make_objective
from bench.engine.model_state import allow_tf32, frozen, is_out_of_memory

Layout = Literal["contiguous", "channels-last"]
LAYOUTS: tuple[Layout, ...] = ("contiguous", "channels-last")
PROBED = 16
"""Images on which a stand-in is held against its model, clean and noisy."""
SEVERAL = 5
"""Rows of the probe between one and all."""
FULL = 1024
"""Rows of the probe at most: of a pass that holds more, so many are probed."""
WIDE = 32
"""Input channels of the widest convolution from which channels-last is the likelier winner."""
WORTH = 20
"""A calibration is made when the work ahead takes so many times as long."""
TIMINGS = 30
"""Passes that a calibration makes, about."""
BETTER = 0.95
"""Another number of rows must take at most this share of the time."""
LEAST_ROWS, MOST_ROWS = 4, 16384


class AcceleratedModel(NamedTuple):
    """What attacks differentiate in place of a model, and why it is what it is."""

    model: nn.Module
    rows: int
    layout: Layout
    exchanged: bool
    precision: Precision
    timed: bool
    """Whether layout and rows were timed, now or before, or taken by rule."""
    worth: float
    """Seconds of attack from which timing them pays."""
    dropped: str
    """Why the first stand-in that was dropped was; empty if none was."""

    def why(self) -> str:
        """What leads, how that was chosen and what was dropped, for people."""
        if not isinstance(self.model, AcceleratedNet):
            return f"the model itself leads, at {self.rows} rows a pass: {self.dropped}"
        layers = "its layers exchanged" if self.exchanged else "its layers as they are"
        if self.timed:
            how = "as timed now" if self.worth else "as timed before on this machine"
        elif self.worth == math.inf:
            how = "by rule: where torch must be deterministic no stopwatch decides"
        else:
            how = f"by rule: timing pays only from {self.worth:.3g} s of attack"
        dropped = f"; another copy was dropped: {self.dropped}" if self.dropped else ""
        return f"a copy leads, {layers}, {self.layout}, {self.rows} rows a pass, {how}{dropped}"

    def told(self) -> dict[str, Any]:
        """Everything but the module, for the provenance."""
        return {
            key: value for key, value in self._asdict().items() if key not in ("model", "worth")
        }


def accelerate_model(
    model: nn.Module,
    x: Tensor,
    rows: int,
    precision: Precision = "float32",
    fixed: bool = False,
    ahead: float = math.inf,
) -> AcceleratedModel:
    """The quickest stand-in that agrees with `model` on the images x (n, c, h, w).

    `rows` is a first guess, final if `fixed`; `ahead`, the seconds of attack that it is for.
    Raises: SuiteError if nothing that agrees computes in the precision asked for.
    """
    try:
        with frozen(model), allow_tf32(precision == "tf32"):
            agreeing, exchanged, dropped = _agreeing_candidates(model, x[:PROBED], precision, rows)
            if agreeing:
                layout, most, timed, worth = calibrate(
                    model, agreeing, x, rows, precision, fixed, ahead
                )
                stand_in = agreeing[layout]
                return AcceleratedModel(
                    stand_in, most, layout, exchanged, precision, timed, worth, dropped
                )
    except ContractError as error:
        changed = str(error).rpartition(": ")[2]
        dropped = f"answering changes the model itself ({changed}), which a copy would not see"
    if precision == "bfloat16":
        raise SuiteError(f'precision bfloat16: {dropped}; use precision = "float32"')
    return AcceleratedModel(model, rows, "contiguous", False, precision, False, math.inf, dropped)


def original_model(model: nn.Module, made: AcceleratedModel, dropped: str) -> AcceleratedModel:
    """The model in the place of the copy that was `made` of it, and `dropped` for this reason."""
    return AcceleratedModel(
        model, made.rows, "contiguous", False, made.precision, False, math.inf, dropped
    )


class AcceleratedNet(nn.Module):
    """A network in one layout and precision; float32 images in, float32 logits out."""

    def __init__(self, net: nn.Module, layout: Layout, precision: Precision) -> None:
        super().__init__()
        self.layout, self.low = layout, precision == "bfloat16"
        self.net = net
        if layout == "channels-last":
            self.net.to(memory_format=torch.channels_last)
        if self.low:
            for layer in self.net.modules():
                if isinstance(layer, nn.Conv2d | nn.Linear | exchange.BlockGradientConv):
                    layer.to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        if self.layout == "channels-last":
            x = x.contiguous(memory_format=torch.channels_last)
        if not self.low:
            return self.net(x)  # type: ignore[no-any-return]
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.net(x).float()  # type: ignore[no-any-return]


def _agreeing_candidates(
    model: nn.Module, x: Tensor, precision: Precision, rows: int
) -> tuple[dict[Layout, nn.Module], bool, str]:
    """Every layout in which a copy of the model agrees with it, whether its layers were exchanged,
    and why not."""
    if _hooked_everywhere():
        return {}, False, "hooks on all modules act on a copy's layers, too"
    try:
        asked = make_probes(model, x, rows)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a stranger's model may give no gradient
        return {}, False, f"the model itself raised {describe(error)}"
    dropped = ""
    convolves = any(isinstance(layer, nn.Conv2d) for layer in model.modules())
    for exchanges in (True, False):
        found: dict[Layout, nn.Module] = {}
        for layout in LAYOUTS if convolves else LAYOUTS[:1]:
            try:
                own = (
                    exchange.fuse_layers(model, x.device.type == "cpu")
                    if exchanges
                    else copy.deepcopy(model)
                )
                stand_in = AcceleratedNet(own, layout, precision).eval().requires_grad_(False)
                why = find_disagreement(stand_in, asked, precision)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a stranger's model need not be one to be copied
                why = f"the copy failed, {describe(error)}"
            if why:
                dropped = dropped or why
            else:
                found[layout] = stand_in
        if found:
            return found, exchanges, dropped
    return {}, False, dropped


class Probe(NamedTuple):
    """Images on which a stand-in is held against its model, and what the model showed there."""

    x: Tensor
    y: Tensor
    gradients: bool
    wanted: PassResult


def make_probes(model: nn.Module, x: Tensor, rows: int = 1) -> list[Probe]:
    """What the model shows on x (n, c, h, w), clean and noisy: on all together, SEVERAL, one alone
    and as many as a pass of `rows` holds, with gradients and without.

    Raises: whatever the model raises.
    """
    images = torch.cat([x, timing.noisy_images(x, len(x))])
    parts = [images, images[:SEVERAL], images[:1]]
    if (full := min(rows, FULL)) > len(images):
        parts.append(timing.noisy_images(x, full))
    with torch.no_grad():
        labels = [widen(model(part.clone())).argmin(1) for part in parts]
    return [
        Probe(part, y, gradients, agreement.probe_pass(model, part, y, gradients))
        for part, y in zip(parts, labels, strict=True)
        for gradients in (True, False)
    ]


def find_disagreement(
    stand_in: nn.Module, asked: Sequence[Probe], precision: Precision = "float32"
) -> str:
    """How the stand-in answers or leads otherwise than its model did; "" if it does not.

    Raises: whatever it raises.
    """
    for x, y, gradients, wanted in asked:
        got = agreement.probe_pass(stand_in, x, y, gradients)
        if why := agreement.describe_difference(wanted, got, precision):
            return why if gradients else f"without gradients {why}"
    return ""


def _hooked_everywhere() -> bool:
    """Whether torch calls anything but bench's signs of life around every module."""
    module = torch.nn.modules.module
    hooks = (*module._global_forward_pre_hooks.values(), *module._global_forward_hooks.values())
    return any(
        not isinstance(getattr(hook, "__self__", None), heartbeat.Heartbeat) for hook in hooks
    )


# ------------------------------------------------------------------------------------- calibration


def calibrate(
    model: nn.Module,
    agreeing: Mapping[Layout, nn.Module],
    x: Tensor,
    rows: int,
    precision: Precision,
    fixed: bool,
    ahead: float,
) -> tuple[Layout, int, bool, float]:
    """Layout, rows a pass, whether they were timed (remembered or now) or taken by rule, and the
    seconds of attack from which timing pays; none do where torch must be deterministic."""
    wide = max((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), default=0)
    likely: Layout = "channels-last" if wide >= WIDE else "contiguous"
    likely = likely if likely in agreeing else next(iter(agreeing))
    if torch.are_deterministic_algorithms_enabled():  # what was timed differs from run to run
        return likely, rows, False, math.inf
    key = _cache_key(model, x, precision, rows if fixed else 0, sorted(agreeing))
    known = recall(key)
    if known is not None and known[0] in agreeing:
        return known[0], rows if fixed else known[1], True, 0.0
    (first,) = _seconds_per_row([agreeing[likely]], x, rows, rounds=1)
    worth = WORTH * TIMINGS * rows * first
    if ahead < worth:
        return likely, rows, False, worth
    paces = dict(zip(agreeing, _seconds_per_row(list(agreeing.values()), x, rows), strict=True))
    layout = min(paces, key=lambda each: paces[each])
    if not fixed:
        rows = _best_rows(agreeing[layout], x, rows, paces[layout])
    store(key, layout, min(rows, MOST_ROWS))
    return layout, rows, True, worth


def _best_rows(net: nn.Module, x: Tensor, rows: int, pace: float) -> int:
    """Halve the rows while that is quicker, else double them while that is."""
    for factor in (0.5, 2.0):
        best = rows
        while LEAST_ROWS <= (other := int(best * factor)) <= MOST_ROWS:
            try:
                (seconds,) = _seconds_per_row([net], x, other)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                break
            if seconds > BETTER * pace:
                break
            best, pace = other, seconds
        if best != rows:
            return best
    return rows


def _seconds_per_row(
    nets: Sequence[nn.Module], x: Tensor, rows: int, rounds: int = 5
) -> list[float]:
    """Seconds that each net takes to look at one row, among `rows`: the best of several rounds in
    turns, because what else a machine does can only make a net look slower."""
    images = timing.noisy_images(x, rows)
    y = torch.zeros(rows, dtype=torch.int64, device=x.device)
    ascend = make_objective("cross-entropy", "untargeted")
    times: list[list[float]] = [[] for _ in nets]
    for _ in range(rounds + 1):  # the first one warms up
        for net, spent in zip(nets, times, strict=True):
            work = partial(gradient_pass, net, ascend, images, y, y)
            spent.append(timing.time_call(work, x.device)[1] / rows)
    return [min(spent[1:]) for spent in times]


def _cache_key(
    model: nn.Module, x: Tensor, precision: str, rows: int, layouts: list[Layout]
) -> str:
    """What a pace depends on: the architecture, not its weights; the machine; the versions."""
    device = provenance.device_name(x.device)
    layers = [(name, type(layer).__qualname__) for name, layer in model.named_modules()]
    shapes = [(name, tuple(getattr(v, "shape", ()))) for name, v in model.state_dict().items()]
    facts = [
        device, torch.get_num_threads(), torch.__version__, inspect.getsource(exchange),
        tuple(x.shape[1:]), precision, rows, layouts, layers, shapes,
    ]  # fmt: skip
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def cache_file() -> Path:
    """Where calibrations are remembered; deleting it makes them anew."""
    return platformdirs.user_cache_path("bench") / "calibrations.json"


def recall(key: str) -> tuple[Layout, int] | None:
    """Layout and rows of an earlier calibration; None if there was none, or it cannot be read."""
    try:
        layout, rows = json.loads(cache_file().read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    known = layout in LAYOUTS and isinstance(rows, int) and 1 <= rows <= MOST_ROWS
    return (layout, rows) if known else None


def store(key: str, layout: Layout, rows: int) -> None:
    """Remember a calibration; where that cannot be written, the next run makes it again."""
    try:
        known = json.loads(cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    content = {**(known if isinstance(known, dict) else {}), key: [layout, rows]}
    with contextlib.suppress(SuiteError):
        files.write_atomic(cache_file(), json.dumps(content, indent=1).encode())
