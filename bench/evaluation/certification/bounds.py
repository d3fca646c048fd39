"""Bound a net's margins over an L-inf ball from below, so that no attack can break them.

The region is the ball around an image inside the box [0, 1]. For every class k but the label y a
number m_k is computed with z_y - z_k >= m_k at every image of the region; all m_k > 0 is a proof
that the label is predicted in all of it. Two methods:

- ibp, interval bound propagation: centre c and radius r of each layer's values; an affine layer
  maps them to W c + b and |W| r, ReLU and max-pooling map both ends. The affine layers behind the
  last other one are folded into z_y - z_k (Gowal et al. 2018, https://arxiv.org/abs/1810.12715).
- crown: z_y - z_k is propagated back, layer by layer, as a linear form a x + b that lies below it
  (Zhang et al. 2018, https://arxiv.org/abs/1811.00866). Between its bounds l < 0 < u ReLU lies
  below u (x - l) / (u - l) and above s x, with s = 1 if u >= -l, else 0. The largest x_j of a
  window lies above the x_j of the largest l_j; and below m + (x_i - l_i) (u_i - m) / (u_i - l_i),
  where i has the largest u_i, and m is the larger of l_i and the second largest u_j: a line that
  is m at l_i and u_i at u_i, and no other entry exceeds m. Values before ReLU are bounded the same
  way where a layer has no more than MAX_REFINED of them that matter, by intervals elsewhere; bounds
  of both kinds are intersected, so that crown is nowhere looser than ibp (as CROWN-IBP, Zhang et
  al. 2020, https://arxiv.org/abs/1906.06316).

Rounding. Bounds are computed in float64 for the net of real numbers with the float32
weights. What the net computes in float32 differs from that by at most `rounding_error`, a running
a-priori bound: k products summed in any order are off by at most g(k) = k u / (1 - k u) times the
sum of their magnitudes, u = 2^-24 (Higham 2002, section 3.1). It is subtracted from every margin:
a certificate holds for the float32 net as it is judged, wherever products are summed in IEEE
float32: on a CPU, and on a GPU without TF32 and without Winograd convolutions. The rounding of the
bounds themselves, in float64, is 2^29 times finer than what is subtracted and is not bounded
separately; nor is underflow.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from bench.core.contracts.types import CertificationMethod
from bench.evaluation.certification.layers import Layer, Pool, Relu

MAX_REFINED = 128
"""Most values of one example before a ReLU or a pooling, of those that matter, that crown bounds
individually: four times as many took three times as long on LeNet and certified nothing more."""
CHUNK_BYTES = 2**20
"""Bytes of one layer's linear forms at once: more would not stay in a processor's cache."""


class Bounds(NamedTuple):
    """low <= value <= high for every example and entry, (n, *shape) each."""

    low: Tensor
    high: Tensor

    def select(self, rows: slice) -> "Bounds":
        """Select the bounds of some examples.

        Args:
            rows: Which of the n examples.

        Returns:
            Their bounds.
        """
        return Bounds(self.low[rows], self.high[rows])


def input_region(x: Tensor, eps: float) -> Bounds:
    """Bound the images of an L-inf ball inside the box.

    Args:
        x: Centres (n, c, h, w) in [0, 1].
        eps: Radius.

    Returns:
        Bounds (n, c, h, w).
    """
    return Bounds((x - eps).clamp_min(0), (x + eps).clamp_max(1))


class Activations(NamedTuple):
    """Bounds and linear relaxations of the values in a net whose input is in a region."""

    bounds: list[Bounds]
    """Of each layer's input, and of the logits behind the last."""
    lines: dict[int, "_ReluLines | _PoolLines"]
    """Of each ReLU and pooling by its index, for crown."""

    def select(self, example: int) -> "Activations":
        """Select the bounds and lines of one example.

        Args:
            example: Its row.

        Returns:
            Those of n = 1 example.
        """
        row = slice(example, example + 1)
        lines = {k: each.select(example) for k, each in self.lines.items()}
        return Activations([each.select(row) for each in self.bounds], lines)


def margin_bounds(
    layers: Sequence[Layer], inside: Bounds, labels: Tensor, method: CertificationMethod
) -> Tensor:
    """Bound the margins m_k to every other class from below.

    Args:
        layers: The net, in order.
        inside: Bounds of its input, (n, *shape) each.
        labels: Labels (n,).
        method: "ibp" or "crown"; "ibp" is differentiable with respect to the parameters.

    Returns:
        m_k for each class k but the label, in ascending k, (n, classes - 1).
    """
    return _margins(layers, _bound_activations(layers, inside, method), labels, method)


def certified_margins(
    layers: Sequence[Layer], inside: Bounds, labels: Tensor, method: CertificationMethod
) -> Tensor:
    """Bound each example's smallest margin from below, float32 rounding subtracted.

    Examples that intervals certify are not bounded by crown again.

    Args:
        layers: The net in float64, in order.
        inside: Bounds of its input, (n, *shape) each.
        labels: Labels (n,).
        method: "ibp" or "crown".

    Returns:
        Margins (n,): above 0, the float32 net predicts the label everywhere in the region.
    """
    least = _certificates(layers, inside, labels, "ibp")
    if method == "crown":
        for example in (least <= 0).nonzero()[:, 0].tolist():
            row = slice(example, example + 1)
            found = _certificates(layers, inside.select(row), labels[row], method)
            least[row] = torch.maximum(least[row], found)
    return least


def _certificates(
    layers: Sequence[Layer], inside: Bounds, labels: Tensor, method: CertificationMethod
) -> Tensor:
    known = _bound_activations(layers, inside, method)
    found = _margins(layers, known, labels, method)
    off = rounding_error(layers, known.bounds)
    slack = _dot(_differences(off, labels).abs(), off)
    return (found - slack).amin(1)


def _margins(
    layers: Sequence[Layer], known: Activations, labels: Tensor, method: CertificationMethod
) -> Tensor:
    forms = _differences(known.bounds[-1].low, labels)
    last = max((k + 1 for k, layer in enumerate(layers) if _is_nonlinear(layer)), default=0)
    found = _lower(layers, known, forms, down_to=last)
    if method == "crown":
        found = torch.maximum(found, _lower(layers, known, forms))
    return found


def rounding_error(layers: Sequence[Layer], bounds: Sequence[Bounds]) -> Tensor:
    """Bound how far the logits of a float32 net are off those of real numbers.

    Source: Higham 2002, section 3.1; see the module's docstring.

    Args:
        layers: The net, in order.
        bounds: Bounds of each layer's input.

    Returns:
        Errors (n, classes).
    """
    off = torch.zeros_like(bounds[0].low)
    for layer, (low, high) in zip(layers, bounds, strict=False):
        if isinstance(layer, Relu):
            off = torch.where(high + off <= 0, 0.0, off)  # the output is 0 regardless of rounding
            continue
        if isinstance(layer, Pool):
            off = _pooled(layer, off)
            continue
        size = torch.maximum(low.abs(), high.abs()) + off
        added = getattr(layer, "summed", None)
        added = layer.shift if added is None else added
        terms = (layer.terms + 1) * 2.0**-24
        summed = layer.map(size, absolute=True)
        summed = summed if added is None else summed + added.abs()
        off = layer.map(off, absolute=True) + terms / (1 - terms) * summed
    return off


# --------------------------------------------------------------------------------------- intervals


def _is_nonlinear(layer: Layer) -> bool:
    return isinstance(layer, Relu | Pool)


def _bound_activations(
    layers: Sequence[Layer], inside: Bounds, method: CertificationMethod
) -> Activations:
    """Bound the values in the net layer by layer, with lines for crown."""
    known = Activations([inside], {})
    for k, layer in enumerate(layers):
        # Behind the first nonlinear layer intervals are no longer exact.
        if (
            method == "crown"
            and known.lines
            and _is_nonlinear(layer)
            and not _is_nonlinear(layers[k - 1])
        ):
            known.bounds[k] = _refine(layers[:k], known)
        known.bounds.append(propagate_interval(layer, known.bounds[k]))
        if isinstance(layer, Relu) and method == "crown":
            known.lines[k] = _relu_lines(known.bounds[k])
        elif isinstance(layer, Pool) and method == "crown":
            known.lines[k] = _pool_lines(layer, known.bounds[k])
    return known


def propagate_interval(layer: Layer, known: Bounds) -> Bounds:
    """Bound a layer's output by intervals.

    Args:
        layer: The layer.
        known: Bounds of its input, (n, *shape) each.

    Returns:
        Bounds of its output.
    """
    low, high = known
    if isinstance(layer, Relu):
        return Bounds(low.relu(), high.relu())
    if isinstance(layer, Pool):
        return Bounds(_pooled(layer, low), _pooled(layer, high))
    centre, radius = layer.map((low + high) / 2), layer.map((high - low) / 2, absolute=True)
    centre = centre if layer.shift is None else centre + layer.shift
    return Bounds(centre - radius, centre + radius)


def _pooled(layer: Pool, x: Tensor) -> Tensor:
    return functional.max_pool2d(x, layer.kernel, layer.stride, layer.padding)


# -------------------------------------------------------------- linear forms, propagated backwards


def _differences(logits: Tensor, labels: Tensor) -> Tensor:
    """The forms z_y - z_k for every k but y, (n, classes - 1, classes)."""
    n, classes = logits.shape
    others = torch.arange(classes, device=labels.device) != labels[:, None]
    every = torch.eye(classes, dtype=logits.dtype, device=logits.device)
    rows, k = others.nonzero(as_tuple=True)
    return (every[labels[rows]] - every[k]).view(n, classes - 1, classes)


def _refine(layers: Sequence[Layer], known: Activations) -> Bounds:
    """Intersect the last bounds of the output of `layers` with those by crown.

    Only entries that may be of either sign matter to a ReLU.
    """
    low, high = (side.clone() for side in known.bounds[-1])
    widest = max(each.low[0].numel() for each in known.bounds)
    size = max(1, CHUNK_BYTES // (2 * 8 * widest))
    for example in range(len(low)):
        alone = known.select(example)
        flat_low, flat_high = low[example].view(-1), high[example].view(-1)
        at = ((flat_low < 0) & (flat_high > 0)).nonzero()[:, 0]
        if not 0 < len(at) <= MAX_REFINED:
            continue
        for some in at.split(size):
            forms = flat_low.new_zeros(1, 2 * len(some), len(flat_low))
            rows = torch.arange(len(some), device=at.device)
            forms[0, rows, some], forms[0, len(some) + rows, some] = 1.0, -1.0
            least = _lower(layers, alone, forms.view(*forms.shape[:2], *low.shape[1:]))[0]
            flat_low[some] = torch.maximum(flat_low[some], least[: len(some)])
            flat_high[some] = torch.minimum(flat_high[some], -least[len(some) :])
    return Bounds(low, high)


def _lower(layers: Sequence[Layer], known: Activations, forms: Tensor, down_to: int = 0) -> Tensor:
    """Bound each form on the layers' output from below, (n, forms).

    Forms (n, forms, *output) are propagated back to the input of the layer `down_to`.
    """
    least = forms.new_zeros(forms.shape[:2])
    for k in range(len(layers) - 1, down_to - 1, -1):
        layer = layers[k]
        if isinstance(layer, Relu | Pool):
            forms, added = known.lines[k].propagate_back(forms)
            least = least + added
            continue
        if layer.shift is not None:
            least = least + (forms * layer.shift).flatten(2).sum(2)
        rows = layer.back(forms.flatten(0, 1))
        forms = rows.view(*forms.shape[:2], *rows.shape[1:])
    low, high = known.bounds[down_to]
    return least + _dot(forms, (low + high) / 2) - _dot(forms.abs(), (high - low) / 2)


def _dot(forms: Tensor, values: Tensor) -> Tensor:
    """Evaluate forms (n, forms, *shape) at values (n, *shape): (n, forms)."""
    return (forms.flatten(2) @ values.flatten(1)[:, :, None])[:, :, 0]


class _ReluLines(NamedTuple):
    """Lines below and above ReLU between its bounds, for every example and entry."""

    lower: Tensor
    """Slope of the line below, through 0."""
    upper: Tensor
    """Slope of the line above."""
    start: Tensor
    """Value of the line above at 0."""

    def select(self, example: int) -> "_ReluLines":
        return _ReluLines(*(each[example : example + 1] for each in self))

    def propagate_back(self, forms: Tensor) -> tuple[Tensor, Tensor]:
        """Propagate forms back: forms on the input below those given, and constants to add."""
        rises, falls = forms.clamp_min(0), forms.clamp_max(0)
        constant = _dot(falls, self.start)
        return rises.mul_(self.lower[:, None]).addcmul_(falls, self.upper[:, None]), constant


def _relu_lines(known: Bounds) -> _ReluLines:
    low, high = known
    across = (low < 0) & (high > 0)
    on = (low >= 0).to(low.dtype)  # for a value of 0 alone both slopes are right
    upper = torch.where(across, high / torch.where(across, high - low, 1.0), on)
    lower = torch.where(across, (high >= -low).to(low.dtype), on)
    return _ReluLines(lower, upper, torch.where(across, -low * upper, 0.0))


class _PoolLines(NamedTuple):
    """The line below and the line above the largest of each window, both of one entry."""

    shape: tuple[int, ...]
    surest: Tensor
    """Flat index in its channel of the entry that the line below follows, slope 1."""
    first: Tensor
    """Of the entry that the line above follows."""
    slope: Tensor
    start: Tensor
    """Value of the line above where that entry is 0."""

    def select(self, example: int) -> "_PoolLines":
        return _PoolLines(self.shape, *(each[example : example + 1] for each in self[1:]))

    def propagate_back(self, forms: Tensor) -> tuple[Tensor, Tensor]:
        """Propagate forms back, as `_ReluLines.propagate_back`."""
        rises, falls = forms.clamp_min(0).flatten(3), forms.clamp_max(0).flatten(3)
        channels, high, wide = self.shape
        below = forms.new_zeros(*forms.shape[:2], channels, high * wide)
        below.scatter_add_(3, self.surest[:, None].expand_as(rises), rises)
        constant = _dot(falls, self.start)
        below.scatter_add_(3, self.first[:, None].expand_as(falls), falls * self.slope[:, None])
        return below.view(*forms.shape[:2], *self.shape), constant


def _pool_lines(layer: Pool, known: Bounds) -> _PoolLines:
    low, high = known
    window = layer.kernel, layer.stride, layer.padding
    _, surest = functional.max_pool2d(low, *window, return_indices=True)
    top, first = (
        each.flatten(2) for each in functional.max_pool2d(high, *window, return_indices=True)
    )
    least = low.flatten(2).gather(2, first)
    there = torch.maximum(least, _second_largest(layer, high).flatten(2))  # m of the docstring
    width = top - least
    slope = torch.where(width > 0, (top - there) / torch.where(width > 0, width, 1.0), 0.0)
    return _PoolLines(layer.shape, surest.flatten(2), first, slope, there - slope * least)


def _second_largest(layer: Pool, x: Tensor) -> Tensor:
    """Return the second largest of each window, minus infinity where it has one entry."""
    (high, wide), (down, across) = layer.kernel, layer.stride
    rows, columns = layer.padding
    padded = functional.pad(x, (columns, columns, rows, rows), value=-torch.inf)
    windows = padded.unfold(2, high, down).unfold(3, wide, across).flatten(4)
    if windows.shape[4] == 1:
        return torch.full_like(windows[..., 0], -torch.inf)
    return windows.topk(2, dim=4).values[..., 1]
