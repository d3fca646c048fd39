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

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.core.contracts.types import Precision
from bench.core.errors import ContractError, SuiteError, describe
from bench.engine import heartbeat, timing
from bench.engine.acceleration import agreement
from bench.engine.acceleration import layers as exchange
from bench.engine.acceleration.calibration import LAYOUTS, Layout, calibrate
from bench.engine.functional.gradients import PassResult
from bench.engine.functional.logits import widen
from bench.engine.model_state import allow_tf32, frozen

PROBED = 16
"""Images on which a stand-in is held against its model, clean and noisy."""
SEVERAL = 5
"""Rows of the probe between one and all."""
FULL = 1024
"""Rows of the probe at most: of a pass that holds more, so many are probed."""


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
            agreeing, exchanged, dropped = _agreeing(model, x[:PROBED], precision, rows)
            if agreeing:
                chosen = calibrate(model, agreeing, x, rows, precision, fixed, ahead)
                return AcceleratedModel(
                    agreeing[chosen.layout],
                    chosen.rows,
                    chosen.layout,
                    exchanged,
                    precision,
                    chosen.timed,
                    chosen.worth,
                    dropped,
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


def _agreeing(
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
