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
from bench.engine.acceleration import agreement, block_gradient, layers, mkldnn_layout
from bench.engine.acceleration.calibration import (
    BLOCKED,
    Layout,
    calibrate,
    choose_untimed,
    find_layouts,
)
from bench.engine.float32_precision import allow_tf32
from bench.engine.functional.gradients import PassResult
from bench.engine.model_state import eval_mode, frozen

PROBED = 16
"""Images on which candidates are compared with the model, clean and noisy."""
SEVERAL = 5
"""Rows of the probe of a few rows."""
FULL = 1024
"""Most rows of a probe."""
BRIEF = 64
"""Most rows of a brief one."""


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
    """Gradients of one image that an attack takes from which timing pays."""
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
            how = f"by rule: timing pays only from {self.worth:.0f} gradients of attack"
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
    *,
    brief: bool = False,
    most_rows: int = FULL,
) -> AcceleratedModel:
    """Find the fastest accelerated model that agrees with a model.

    Only the likeliest layout is built where layouts are not timed, and another one if it disagrees.

    Args:
        model: The model.
        x: Images, (n, c, h, w), in [0, 1].
        rows: First guess of the rows a pass.
        precision: Arithmetic of the gradients.
        fixed: Whether `rows` is final.
        ahead: Gradients of one image that the attack takes which the choice is for.
        brief: Compare in fewer passes, see `make_probes`.
        most_rows: Most rows that an attack passes at once.

    Returns:
        The accelerated model; the model itself if no candidate agrees.

    Raises:
        SuiteError: bfloat16 is requested and no candidate agrees.
    """
    try:
        with frozen(model), allow_tf32(precision == "tf32"):
            layouts = find_layouts(model, x, precision)
            chosen = choose_untimed(model, layouts, x, rows, precision, fixed, ahead)
            if chosen is not None:
                others = (each for each in layouts if each not in (chosen.layout, BLOCKED))
                layouts = (chosen.layout, *others)
            probed = min(rows, most_rows)
            agreeing, exchanged, dropped = _agreeing_candidates(
                model, x[:PROBED], precision, probed, layouts, chosen is not None, brief
            )
            if agreeing:
                if chosen is None:
                    chosen = calibrate(model, agreeing, x, rows, precision, fixed)
                elif chosen.layout not in agreeing:
                    other = next(iter(agreeing))
                    chosen = chosen._replace(layout=other, rows=rows, timed=False)
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


class AcceleratedChoice(NamedTuple):
    """How a model was accelerated, without any network; see `AcceleratedModel`."""

    accelerated: bool
    """False where the model itself is attacked."""
    facts: dict[str, Any]
    """All fields but the network."""
    device: torch.device


def describe_choice(accelerated: AcceleratedModel, device: torch.device) -> AcceleratedChoice:
    """Describe how a model was accelerated, to do it again without comparing.

    Args:
        accelerated: What `accelerate_model` found.
        device: Device of the model.

    Returns:
        The choice, which refers to no network.
    """
    facts = accelerated._asdict()
    net = facts.pop("model")
    return AcceleratedChoice(isinstance(net, AcceleratedNet), facts, device)


def rebuild_model(model: nn.Module, choice: AcceleratedChoice) -> AcceleratedModel | None:
    """Accelerate a model as it was accelerated before; no pass is made.

    Args:
        model: The model, with the fingerprint that it had.
        choice: How it was accelerated.

    Returns:
        The accelerated model; None if it cannot be built, or other hooks are registered.
    """
    if not choice.accelerated:
        return AcceleratedModel(model, **choice.facts)
    if _hooked_everywhere():
        return None
    layout, precision, fuses = (choice.facts[key] for key in ("layout", "precision", "exchanged"))
    try:
        with eval_mode(model):
            own = _build_candidate(model, layout, precision, fuses, choice.device)
    except KeyboardInterrupt:
        raise
    except BaseException:  # foreign code: a model need not support copying
        return None
    return None if own is None else AcceleratedModel(own, **choice.facts)


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
                if isinstance(layer, nn.Conv2d | nn.Linear | block_gradient.BlockGradientConv):
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
        if self.layout == BLOCKED:
            return mkldnn_layout.call_rounded(self.net, x)
        if not self.low:
            return self.net(x)  # type: ignore[no-any-return]
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.net(x).float()  # type: ignore[no-any-return]


def _agreeing_candidates(
    model: nn.Module,
    x: Tensor,
    precision: Precision,
    rows: int,
    layouts: Sequence[Layout],
    one: bool,
    brief: bool,
) -> tuple[dict[Layout, nn.Module], bool, str]:
    """Return the agreeing candidate of each layout, whether layers are fused, and why not.

    With `one`, only the first of the layouts in which one agrees.
    """
    if _hooked_everywhere():
        return {}, False, "hooks on all modules act on a copy's layers, too"
    try:
        probes = make_probes(model, x, rows, brief)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # foreign code: a model may give no gradient
        return {}, False, f"the model itself raised {describe(error)}"
    dropped = ""
    for fuses in (True, False):
        agreeing: dict[Layout, nn.Module] = {}
        for layout in layouts:
            if agreeing and one:
                break
            candidate, why = None, ""
            try:
                candidate = _build_candidate(model, layout, precision, fuses, x.device)
                if candidate is not None:
                    why = find_disagreement(candidate, probes, precision)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # foreign code: a model need not support copying
                why = f"the copy failed, {describe(error)}"
            if why:
                dropped = dropped or why
            elif candidate is not None:
                agreeing[layout] = candidate
        if agreeing:
            return agreeing, fuses, dropped
    return {}, False, dropped


def _build_candidate(
    model: nn.Module, layout: Layout, precision: Precision, fuses: bool, device: torch.device
) -> AcceleratedNet | None:
    """Copy a model, with fused layers or its own; what copying raises is passed on.

    None if nothing of it can be in the layout.
    """
    if layout == BLOCKED and not fuses:
        return None
    own = layers.fuse_layers(model, device.type == "cpu") if fuses else copy.deepcopy(model)
    if layout == BLOCKED and not mkldnn_layout.lay_out_convolutions(own):
        return None
    return AcceleratedNet(own, layout, precision).eval().requires_grad_(False)


class Probe(NamedTuple):
    """Images on which candidates are compared with a model, and the model's pass over them."""

    x: Tensor
    y: Tensor
    gradients: bool
    wanted: PassResult


def make_probes(model: nn.Module, x: Tensor, rows: int, brief: bool) -> list[Probe]:
    """Run the model on clean and noisy images, with gradients and without.

    There is a probe of all images together, of `SEVERAL`, of one and of as many as a pass holds.
    Brief probes leave out what is the least likely to differ: as many as a pass holds, up to
    `BRIEF`, and one image are passed with a gradient alone, `SEVERAL` without one.

    Args:
        model: The model.
        x: Images, (n, c, h, w), in [0, 1].
        rows: Rows a pass.
        brief: Whether to make few passes.

    Returns:
        The probes; what the model raises is passed on.
    """
    images = torch.cat([x, timing.noisy_images(x, len(x))])
    full = min(rows, BRIEF if brief else FULL)
    if brief:
        clean = x[: max(1, min(len(x), full // 2))]
        mixed = torch.cat([clean, timing.noisy_images(x, max(1, full - len(clean)))])
        passes = [(mixed, True), (images[:SEVERAL], False), (images[:1], True)]
        return [_make_probe(model, part, gradients) for part, gradients in passes]
    parts = [images, images[:SEVERAL], images[:1]]
    if full > len(images):
        parts.append(timing.noisy_images(x, full))
    probes = []
    for part in parts:
        without = _make_probe(model, part, False)
        y = without.wanted.logits.argmin(1)
        probes += [_make_probe(model, part, True, y), without]
    return probes


def count_probe_passes(n: int, rows: int) -> float:
    """Count the passes by which an accelerated model is compared with its model briefly.

    Args:
        n: Images.
        rows: Rows a pass.

    Returns:
        Gradients of one image, a forward pass counted as half of one: of the model and of one
        candidate.
    """
    return 2 * (max(2, min(rows, BRIEF)) + 1 + min(2 * n, SEVERAL) / 2)


def _make_probe(model: nn.Module, x: Tensor, gradients: bool, y: Tensor | None = None) -> Probe:
    """Run the model on images; the margin is that of `y`, or of the first class."""
    label = torch.zeros(len(x), dtype=torch.int64, device=x.device) if y is None else y
    return Probe(x, label, gradients, agreement.probe_pass(model, x, label, gradients))


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
