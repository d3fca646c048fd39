"""Bound a net's margins over a ball from below, so that no attack can break them.

The region is the L-inf or L2 ball around an image inside the box [0, 1]. For every class k but the
label y a number m_k is computed with z_y - z_k >= m_k at every image of the region; all m_k > 0 is
a proof that the label is predicted in all of it. The net is a directed acyclic graph of layers with
sums and concatenations (`layers.Node`). Two methods:

- ibp, interval bound propagation: centre c and radius r of each layer's values; an affine layer
  maps them to W c + b and |W| r, ReLU and max-pooling map both ends, a sum adds the ends. The
  affine layers behind the last other ones are folded into z_y - z_k (Gowal et al. 2018,
  https://arxiv.org/abs/1810.12715).
- crown: z_y - z_k is propagated back, node by node, as a linear form a x + b that lies below it
  (Zhang et al. 2018, https://arxiv.org/abs/1811.00866). At a value that several nodes read, the
  forms of all its readers are added before it is propagated further, so that branches may cancel
  (Xu et al. 2020, https://arxiv.org/abs/2002.12920). Between its bounds l < 0 < u ReLU lies below
  u (x - l) / (u - l) and above s x, with s = 1 if u >= -l, else 0. The largest x_j of a
  window lies above the x_j of the largest l_j; and below m + (x_i - l_i) (u_i - m) / (u_i - l_i),
  where i has the largest u_i, and m is the larger of l_i and the second largest u_j: a line that
  is m at l_i and u_i at u_i, and no other entry exceeds m. Values before ReLU are bounded the same
  way where a layer has no more than MAX_REFINED of them that matter, by intervals elsewhere; bounds
  of both kinds are intersected, so that crown is nowhere looser than ibp (as CROWN-IBP, Zhang et
  al. 2020, https://arxiv.org/abs/1906.06316).

On the image, a form a x is at least a c - |a| r over the box of the region and at least
a x_0 - eps ||a||_2 over the L2 ball around x_0 (the dual norm; Zhang et al. 2018, theorem 3.2). The
larger of both holds. Values that are affine in the image are bounded by ||a||_2 in both methods.

Rounding. Bounds are computed in float64 for the net of real numbers with the float32
weights. What the net computes in float32 differs from that by at most `rounding_error`, a running
a-priori bound: k products summed in any order are off by at most g(k) = k u / (1 - k u) times the
sum of their magnitudes, u = 2^-24 (Higham 2002, section 3.1); a sum of k branches by g(k - 1) times
theirs. It is subtracted from every margin: a certificate holds for the float32 net as it is judged,
wherever products are summed in IEEE float32: on a CPU, and on a GPU without TF32 and without
Winograd convolutions. The rounding of the bounds themselves, in float64, is 2^29 times finer than
what is subtracted and is not bounded separately; nor is underflow.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from bench.core.contracts.types import BallNorm, BoundMethod
from bench.evaluation.certification.layers import (
    Affine,
    Concat,
    Flat,
    Layer,
    Node,
    Pool,
    Relu,
    Scale,
    Sum,
)
from bench.evaluation.certification.relaxation import (
    PoolLines,
    ReluLines,
    evaluate_forms,
    relax_pool,
    relax_relu,
)

MAX_REFINED = 128
"""Most values of one example before a ReLU or a pooling, of those that matter, that crown bounds
individually: four times as many took three times as long on LeNet and certified nothing more."""
CHUNK_BYTES = 2**20
"""Bytes of one layer's linear forms at once: more would not stay in a processor's cache."""
MAX_BYTES = 2**30
"""Most bytes of all bounds of a batch of examples, and of one layer's forms of their classes."""


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


class Region(NamedTuple):
    """Images between `low` and `high` and, where it has a centre, in an L2 ball around it."""

    low: Tensor
    """(n, c, h, w), as `high`."""
    high: Tensor
    centre: Tensor | None = None
    """Centres (n, c, h, w) of an L2 ball; None where the box alone bounds the region."""
    radius: float = math.inf
    """Of the L2 ball, in units of pixel values."""

    def select(self, rows: slice) -> "Region":
        """Select the regions of some examples.

        Args:
            rows: Which of the n examples.

        Returns:
            Their regions.
        """
        centre = None if self.centre is None else self.centre[rows]
        return Region(self.low[rows], self.high[rows], centre, self.radius)


def input_region(x: Tensor, eps: float, norm: BallNorm = "linf") -> Region:
    """Bound the images of a ball inside the box.

    Args:
        x: Centres (n, c, h, w) in [0, 1].
        eps: Radius.
        norm: "linf" or "l2".

    Returns:
        The region of each image.
    """
    low, high = (x - eps).clamp_min(0), (x + eps).clamp_max(1)
    return Region(low, high) if norm == "linf" else Region(low, high, x, eps)


class _Spread(NamedTuple):
    """How a value that is affine in the image spreads over an L2 ball."""

    centre: Tensor
    """The value at the ball's centre, (n, *shape)."""
    norm: Tensor
    """L2 norm of each entry's gradient, or more, (1, *shape)."""
    separate: bool
    """Whether every entry depends on one pixel, and no two on the same."""

    def bound(self, radius: float) -> Bounds:
        return Bounds(self.centre - radius * self.norm, self.centre + radius * self.norm)


class Activations(NamedTuple):
    """Bounds and linear relaxations of the values in a net whose input is in a region."""

    region: Region
    bounds: list[Bounds]
    """Of each value: the image, then the output of each node."""
    lines: dict[int, ReluLines | PoolLines]
    """Of each ReLU and pooling by the index of its node, for crown."""

    def select(self, example: int) -> "Activations":
        """Select the bounds and lines of one example.

        Args:
            example: Its row.

        Returns:
            Those of n = 1 example.
        """
        row = slice(example, example + 1)
        lines = {k: each.select(example) for k, each in self.lines.items()}
        bounds = [each.select(row) for each in self.bounds]
        return Activations(self.region.select(row), bounds, lines)


def margin_bounds(
    nodes: Sequence[Node], inside: Region, labels: Tensor, method: BoundMethod
) -> Tensor:
    """Bound the margins m_k to every other class from below.

    Args:
        nodes: The net, in topological order.
        inside: Region of its input.
        labels: Labels (n,).
        method: "ibp" or "crown"; "ibp" is differentiable with respect to the parameters.

    Returns:
        m_k for each class k but the label, in ascending k, (n, classes - 1).
    """
    return _margins(nodes, _bound_activations(nodes, inside, method), labels, method)


def certified_margins(
    nodes: Sequence[Node], inside: Region, labels: Tensor, method: BoundMethod
) -> Tensor:
    """Bound each example's smallest margin from below, float32 rounding subtracted.

    Examples that intervals certify are not bounded by crown again.

    Args:
        nodes: The net in float64, in topological order.
        inside: Region of its input.
        labels: Labels (n,).
        method: "ibp" or "crown".

    Returns:
        Margins (n,): above 0, the float32 net predicts the label everywhere in the region.
    """
    entries = sum(math.prod(node.layer.shape) for node in nodes)
    rows = max(1, MAX_BYTES // (16 * max(1, entries)))  # two float64 for each entry
    batches = [slice(first, first + rows) for first in range(0, len(labels), rows)]
    least = torch.cat([_certificates(nodes, inside.select(batch), labels[batch], "ibp")
                       for batch in batches])  # fmt: skip
    if method == "crown":
        for example in (least <= 0).nonzero()[:, 0].tolist():
            row = slice(example, example + 1)
            found = _certificates(nodes, inside.select(row), labels[row], method)
            least[row] = torch.maximum(least[row], found)
    return least


def _certificates(
    nodes: Sequence[Node], inside: Region, labels: Tensor, method: BoundMethod
) -> Tensor:
    known = _bound_activations(nodes, inside, method)
    found = _margins(nodes, known, labels, method)
    off = rounding_error(nodes, known.bounds)
    slack = evaluate_forms(_differences(off, labels).abs(), off)
    return (found - slack).amin(1)


def _margins(
    nodes: Sequence[Node], known: Activations, labels: Tensor, method: BoundMethod
) -> Tensor:
    forms = _differences(known.bounds[-1].low, labels)
    found = _lower_in_parts(nodes, known, forms, stop_at_nonlinear=True)
    if method == "crown":
        found = torch.maximum(found, _lower_in_parts(nodes, known, forms, stop_at_nonlinear=False))
    return found


def rounding_error(nodes: Sequence[Node], bounds: Sequence[Bounds | Region]) -> Tensor:
    """Bound how far the logits of a float32 net are off those of real numbers.

    Source: Higham 2002, section 3.1; see the module's docstring.

    Args:
        nodes: The net, in topological order.
        bounds: Bounds of each value: the image, then the output of each node.

    Returns:
        Errors (n, classes).
    """
    errors = [torch.zeros_like(bounds[0].low)]
    for layer, inputs in nodes:
        if isinstance(layer, Sum | Concat):
            read = [errors[each] for each in inputs]
            off = layer.combine(read, absolute=True)
            if isinstance(layer, Sum):
                sizes = [_magnitude(bounds[each], errors[each]) for each in inputs]
                off = off + _growth(len(inputs) - 1) * layer.combine(sizes, absolute=True)
            errors.append(off)
            continue
        off, known = errors[inputs[0]], bounds[inputs[0]]
        if isinstance(layer, Relu):
            # The output is 0 regardless of rounding.
            errors.append(torch.where(known.high + off <= 0, 0.0, off))
            continue
        if isinstance(layer, Pool):
            errors.append(_pooled(layer, off))
            continue
        added = getattr(layer, "summed", None)
        added = layer.shift if added is None else added
        summed = layer.map(_magnitude(known, off), absolute=True)
        summed = summed if added is None else summed + added.abs()
        errors.append(layer.map(off, absolute=True) + _growth(layer.terms + 1) * summed)
    return errors[-1]


def _magnitude(known: Bounds | Region, off: Tensor) -> Tensor:
    """Bound the magnitude of the values that the float32 net computes."""
    return torch.maximum(known.low.abs(), known.high.abs()) + off


def _growth(roundings: int) -> float:
    """Compute Higham's g(k) of float32."""
    return roundings * 2.0**-24 / (1 - roundings * 2.0**-24)


# --------------------------------------------------------------------------------------- intervals


def _is_nonlinear(layer: Layer) -> bool:
    return isinstance(layer, Relu | Pool)


def _bound_activations(nodes: Sequence[Node], inside: Region, method: BoundMethod) -> Activations:
    """Bound the values in the net node by node, with lines for crown."""
    known = Activations(inside, [Bounds(inside.low, inside.high)], {})
    spreads = [_spread_image(inside)]
    exact = True  # intervals are, up to the first nonlinear layer or join
    for k, (layer, inputs) in enumerate(nodes):
        first = inputs[0]
        if _is_nonlinear(layer):
            # A value behind another nonlinear layer inherits bounds that were refined already.
            refinable = first > 0 and not _is_nonlinear(nodes[first - 1].layer)
            if method == "crown" and refinable and not exact:
                known.bounds[first] = _refine(nodes[:first], known)
        output = propagate_interval(layer, *(known.bounds[each] for each in inputs))
        spread = _spread_output(layer, [spreads[each] for each in inputs])
        if spread is not None:
            output = _intersect(output, spread.bound(inside.radius))
        known.bounds.append(output)
        spreads.append(spread)
        if isinstance(layer, Relu) and method == "crown":
            known.lines[k] = relax_relu(*known.bounds[first])
        elif isinstance(layer, Pool) and method == "crown":
            known.lines[k] = relax_pool(layer, *known.bounds[first])
        exact = exact and not isinstance(layer, Relu | Pool | Sum | Concat)
    return known


def propagate_interval(layer: Layer, *inputs: Bounds | Region) -> Bounds:
    """Bound a layer's output by intervals.

    Args:
        layer: The layer.
        *inputs: Bounds of each value that it reads, (n, *shape) each.

    Returns:
        Bounds of its output.
    """
    low, high = inputs[0].low, inputs[0].high
    if isinstance(layer, Relu):
        return Bounds(low.relu(), high.relu())
    if isinstance(layer, Pool):
        return Bounds(_pooled(layer, low), _pooled(layer, high))
    if isinstance(layer, Concat):
        ends = [each.low for each in inputs], [each.high for each in inputs]
        return Bounds(*(layer.combine(end) for end in ends))
    if isinstance(layer, Sum):
        pairs = [(each.low, each.high) if sign > 0 else (each.high, each.low)
                 for sign, each in zip(layer.signs, inputs, strict=True)]  # fmt: skip
        return Bounds(*(layer.combine(end) for end in zip(*pairs, strict=True)))
    centre, radius = layer.map((low + high) / 2), layer.map((high - low) / 2, absolute=True)
    centre = centre if layer.shift is None else centre + layer.shift
    return Bounds(centre - radius, centre + radius)


def _pooled(layer: Pool, x: Tensor) -> Tensor:
    return functional.max_pool2d(x, layer.kernel, layer.stride, layer.padding)


def _intersect(one: Bounds, other: Bounds) -> Bounds:
    return Bounds(torch.maximum(one.low, other.low), torch.minimum(one.high, other.high))


# --------------------------------------------------------------------- affine values in an L2 ball


def _spread_image(inside: Region) -> _Spread | None:
    """The spread of the image itself; None without an L2 ball."""
    if inside.centre is None:
        return None
    return _Spread(inside.centre, torch.ones_like(inside.centre[:1]), separate=True)


def _spread_output(layer: Layer, inputs: Sequence[_Spread | None]) -> _Spread | None:
    """The spread of a layer's output; None where it is not affine in the image, or has none.

    Of entries that depend on separate pixels the norms of their sums are exact; elsewhere the
    triangle inequality bounds them.
    """
    known = [each for each in inputs if each is not None]
    if len(known) < len(inputs) or isinstance(layer, Relu | Pool):
        return None
    if isinstance(layer, Sum | Concat):
        centre = layer.combine([each.centre for each in known])
        norm = layer.combine([each.norm for each in known], absolute=True)
        # Entries of a concatenation may depend on the same pixel.
        separate = isinstance(layer, Sum) and all(each.separate for each in known)
        return _Spread(centre, norm, separate)
    (before,) = known
    centre = layer.map(before.centre)
    centre = centre if layer.shift is None else centre + layer.shift
    if before.separate and not isinstance(layer, Scale | Flat):
        squared: Affine = layer._replace(weight=layer.weight.square())
        return _Spread(centre, squared.map(before.norm.square()).sqrt(), separate=False)
    return _Spread(centre, layer.map(before.norm, absolute=True), before.separate)


# -------------------------------------------------------------- linear forms, propagated backwards


def _differences(logits: Tensor, labels: Tensor) -> Tensor:
    """The forms z_y - z_k for every k but y, (n, classes - 1, classes)."""
    n, classes = logits.shape
    others = torch.arange(classes, device=labels.device) != labels[:, None]
    every = torch.eye(classes, dtype=logits.dtype, device=logits.device)
    rows, k = others.nonzero(as_tuple=True)
    return (every[labels[rows]] - every[k]).view(n, classes - 1, classes)


def _refine(nodes: Sequence[Node], known: Activations) -> Bounds:
    """Intersect the bounds of the last value of `nodes` with those by crown.

    Only entries that may be of either sign matter to a ReLU.
    """
    low, high = (side.clone() for side in known.bounds[len(nodes)])
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
            least = _lower(nodes, alone, forms.view(*forms.shape[:2], *low.shape[1:]))[0]
            flat_low[some] = torch.maximum(flat_low[some], least[: len(some)])
            flat_high[some] = torch.minimum(flat_high[some], -least[len(some) :])
    return Bounds(low, high)


def _lower_in_parts(
    nodes: Sequence[Node], known: Activations, forms: Tensor, *, stop_at_nonlinear: bool
) -> Tensor:
    """As `_lower`, some forms at a time where all would not fit into MAX_BYTES."""
    widest, reached = 1, {len(nodes)}
    for k in range(len(nodes) - 1, -1, -1):
        if k + 1 in reached:
            widest = max(widest, known.bounds[k + 1].low[0].numel())
            if not (stop_at_nonlinear and _is_nonlinear(nodes[k].layer)):
                reached.update(nodes[k].inputs)
    if 0 in reached:
        widest = max(widest, known.bounds[0].low[0].numel())
    size = max(1, MAX_BYTES // (8 * len(forms) * widest))
    parts = [_lower(nodes, known, some, stop_at_nonlinear) for some in forms.split(size, 1)]
    return torch.cat(parts, 1)


def _lower(
    nodes: Sequence[Node], known: Activations, forms: Tensor, stop_at_nonlinear: bool = False
) -> Tensor:
    """Bound each form on the last value of `nodes` from below, (n, forms).

    Forms (n, forms, *output) are propagated back to the image, or to the outputs of the nonlinear
    layers that they reach first. The nodes are in topological order: once a value's turn comes, all
    that read it have added their forms.
    """
    least = forms.new_zeros(forms.shape[:2])
    waiting = {len(nodes): forms}
    for k in range(len(nodes) - 1, -1, -1):
        on = waiting.pop(k + 1, None)
        if on is None:
            continue
        layer, inputs = nodes[k]
        if isinstance(layer, Relu | Pool):
            if stop_at_nonlinear:
                least = _add_minimum(least, on, known.bounds[k + 1])
                continue
            back, added = known.lines[k].propagate_back(on)
            least = least + added
            parts = [back]
        elif isinstance(layer, Sum | Concat):
            parts = layer.back(on)
        else:
            if layer.shift is not None:
                least = least + (on * layer.shift).flatten(2).sum(2)
            rows = layer.back(on.flatten(0, 1))
            parts = [rows.view(*on.shape[:2], *rows.shape[1:])]
        for value, part in zip(inputs, parts, strict=True):
            waiting[value] = waiting[value] + part if value in waiting else part
    if 0 not in waiting:
        return least
    on, region = waiting[0], known.region
    found = _add_minimum(least, on, known.bounds[0])
    if region.centre is None:
        return found
    ball = evaluate_forms(on, region.centre) - region.radius * on.flatten(2).norm(dim=2)
    return torch.maximum(found, least + ball)


def _add_minimum(least: Tensor, forms: Tensor, known: Bounds) -> Tensor:
    """Add the minimum of forms over a box."""
    low, high = known
    middle = evaluate_forms(forms, (low + high) / 2)
    return least + middle - evaluate_forms(forms.abs(), (high - low) / 2)
