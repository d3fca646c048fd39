"""Accelerate a model: find a module that gives the same gradients in less time.

An attack only proposes images, and the model itself judges them. So an attack may differentiate
another module as long as the two agree: with fused layers (`bench.engine.acceleration.layers`), in
another memory layout and, on request, in bfloat16. Every candidate is compared with the model in
each way in which attacks use it (with gradients and without; one row, a few, as many as a pass
holds) and dropped if it disagrees or fails. If none agrees, the model itself is attacked.
`bench.evaluation.crafting` compares the two again after each attack. Which layout and how many rows
a pass are fastest is decided by `bench.engine.acceleration.calibration`.
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
from bench.engine.acceleration import agreement, layers
from bench.engine.acceleration.calibration import LAYOUTS, Layout, calibrate
from bench.engine.float32_precision import allow_tf32
from bench.engine.functional.gradients import PassResult
from bench.engine.functional.logits import widen
from bench.engine.model_state import frozen

PROBED = 16
"""Images on which candidates are compared with the model, clean and noisy."""
SEVERAL = 5
"""Rows of the probe of a few rows."""
FULL = 1024
"""Most rows of a probe."""


class AcceleratedModel(NamedTuple):
    """What attacks differentiate in place of a model, and how it was chosen."""

    model: nn.Module
    rows: int
    layout: Layout
    exchanged: bool
    """Whether layers were fused."""
    precision: Precision
    timed: bool
    """Whether layout and rows were timed, now or earlier; if not, they follow a rule."""
    worth: float
    """Seconds of attack from which timing pays."""
    dropped: str
    """Why the first candidate was dropped; empty if none was."""

    def describe(self) -> str:
        """Describe what is attacked, how it was chosen and what was dropped.

        Returns:
            One clause for the log.
        """
        if not isinstance(self.model, AcceleratedNet):
            return f"the model itself is attacked, {self.rows} rows a pass: {self.dropped}"
        kind = "fused layers" if self.exchanged else "original layers"
        if self.timed:
            how = "timed now" if self.worth else "timed earlier on this machine"
        elif self.worth == math.inf:
            how = "by rule: nothing is timed while torch must be deterministic"
        else:
            how = f"by rule: timing pays only from {self.worth:.3g} s of attack"
        dropped = f"; another candidate was dropped: {self.dropped}" if self.dropped else ""
        return (
            f"an accelerated model is attacked, {kind}, {self.layout}, {self.rows} rows a pass, "
            f"{how}{dropped}"
        )

    def to_manifest(self) -> dict[str, Any]:
        """Return everything but the module, for the manifest.

        Returns:
            Plain values by name.
        """
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
    """Find the fastest accelerated model that agrees with a model.

    Args:
        model: The model.
        x: Images, (n, c, h, w), in [0, 1].
        rows: First guess of the rows a pass.
        precision: Arithmetic of the gradients.
        fixed: Whether `rows` is final.
        ahead: Seconds of attack that the choice is for.

    Returns:
        The accelerated model; the model itself if no candidate agrees.

    Raises:
        SuiteError: bfloat16 is requested and no candidate agrees.
    """
    try:
        with frozen(model), allow_tf32(precision == "tf32"):
            agreeing, exchanged, dropped = _agreeing_candidates(model, x[:PROBED], precision, rows)
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


def original_model(
    model: nn.Module, accelerated: AcceleratedModel, dropped: str
) -> AcceleratedModel:
    """Replace an accelerated model by the model itself.

    Args:
        model: The model.
        accelerated: What was attacked so far.
        dropped: Why it is replaced.

    Returns:
        The model with the same rows and precision.
    """
    return AcceleratedModel(
        model,
        accelerated.rows,
        "contiguous",
        False,
        accelerated.precision,
        False,
        math.inf,
        dropped,
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
                if isinstance(layer, nn.Conv2d | nn.Linear | layers.BlockGradientConv):
                    layer.to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits.

        Args:
            x: Images, (n, c, h, w), float32.

        Returns:
            Logits, (n, classes), float32.
        """
        if self.layout == "channels-last":
            x = x.contiguous(memory_format=torch.channels_last)
        if not self.low:
            return self.net(x)  # type: ignore[no-any-return]
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.net(x).float()  # type: ignore[no-any-return]


def _agreeing_candidates(
    model: nn.Module, x: Tensor, precision: Precision, rows: int
) -> tuple[dict[Layout, nn.Module], bool, str]:
    """Return the agreeing candidate of each layout, whether layers are fused, and why not."""
    if _hooked_everywhere():
        return {}, False, "hooks on all modules act on a copy's layers, too"
    try:
        probes = make_probes(model, x, rows)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # foreign code: a model may give no gradient
        return {}, False, f"the model itself raised {describe(error)}"
    dropped = ""
    convolves = any(isinstance(layer, nn.Conv2d) for layer in model.modules())
    for fuses in (True, False):
        agreeing: dict[Layout, nn.Module] = {}
        for layout in LAYOUTS if convolves else LAYOUTS[:1]:
            try:
                own = (
                    layers.fuse_layers(model, x.device.type == "cpu")
                    if fuses
                    else copy.deepcopy(model)
                )
                candidate = AcceleratedNet(own, layout, precision).eval().requires_grad_(False)
                why = find_disagreement(candidate, probes, precision)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # foreign code: a model need not support copying
                why = f"the copy failed, {describe(error)}"
            if why:
                dropped = dropped or why
            else:
                agreeing[layout] = candidate
        if agreeing:
            return agreeing, fuses, dropped
    return {}, False, dropped


class Probe(NamedTuple):
    """Images on which candidates are compared with a model, and the model's pass over them."""

    x: Tensor
    y: Tensor
    gradients: bool
    wanted: PassResult


def make_probes(model: nn.Module, x: Tensor, rows: int = 1) -> list[Probe]:
    """Run the model on clean and noisy images, with gradients and without.

    There is a probe of all images together, of `SEVERAL`, of one and of as many as a pass holds.

    Args:
        model: The model.
        x: Images, (n, c, h, w), in [0, 1].
        rows: Rows a pass.

    Returns:
        The probes; what the model raises is passed on.
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
    candidate: nn.Module, probes: Sequence[Probe], precision: Precision = "float32"
) -> str:
    """Compare a candidate with a model's probes.

    Args:
        candidate: The candidate.
        probes: Passes of the model.
        precision: Arithmetic of the gradients.

    Returns:
        How they differ, in one clause; empty if they agree. What the candidate raises is passed on.
    """
    for x, y, gradients, wanted in probes:
        got = agreement.probe_pass(candidate, x, y, gradients)
        if why := agreement.describe_difference(wanted, got, precision):
            return why if gradients else f"without gradients {why}"
    return ""


def _hooked_everywhere() -> bool:
    """Return whether global hooks other than bench's heartbeats are registered."""
    module = torch.nn.modules.module
    hooks = (*module._global_forward_pre_hooks.values(), *module._global_forward_hooks.values())
    return any(
        not isinstance(getattr(hook, "__self__", None), heartbeat.Heartbeat) for hook in hooks
    )
