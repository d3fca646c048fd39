"""Convert users' images and labels to the types that bench computes with.

Data sets, suites, `bench.evaluate` and the pytest plugin all use this module.

Images, (n, c, h, w):

- float16, bfloat16, float32 and float64 in [0, 1], as they are, in float32;
- uint8, levels from 0 to 255, divided by 255;
- bool, as 0 and 1.

Labels, (n,): bool or any integer type, counted from 0.

Strides, views, expanded, negated and read-only memory, gradients, devices and subclasses with
values make no difference: records are those of the plain tensor. Everything else is rejected,
because its scale or meaning would be a guess: other integer types, levels
of 0 and 1 in 8 bits, sparse, quantised, nested and complex tensors, float labels, columns, one-hot
rows.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from bench.core.contracts.dataset import Data
from bench.core.contracts.types import Shape
from bench.core.errors import SuiteError

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.uint16, torch.uint32, torch.uint64,
)  # fmt: skip
N_PROBED = 32
"""Images of a user's data set that are checked before anything runs."""
N_LISTED = 4
"""Most classes that a mapping lists one by one."""


def to_float_images(where: str, x: Tensor) -> Tensor:
    """Check images and convert them to the layout and type that bench stores.

    Args:
        where: Start of the error message.
        x: Images, (n, c, h, w), of a type in the list above.

    Returns:
        uint8 or float32 on the CPU, contiguous; may share memory with `x`.

    Raises:
        SuiteError: They are of another type, or not in [0, 1].
    """
    plain = _plain(where, x)
    if plain.dtype != torch.uint8:
        plain = plain.to(torch.float32)
        _check_range(where, plain)
    return _canonical(plain)


def scale_images(x: Tensor) -> Tensor:
    """Scale images to float32 in [0, 1].

    Args:
        x: Result of `to_float_images`, (n, c, h, w).

    Returns:
        A copy, same shape.
    """
    if x.dtype == torch.uint8:
        return x.float().div(255)
    return x.clone(memory_format=torch.contiguous_format)


def check_shapes(where: str, x: Tensor, y: Tensor) -> None:
    """Check that images are (n, c, h, w) and labels are integers (n,).

    Args:
        where: Start of the error message.
        x: Images.
        y: Labels.

    Raises:
        SuiteError: They are not; the message says what to do where that is clear.
    """
    x, y = to_dense(where, x), to_dense(where, y)
    if x.dim() == 4 and tuple(y.shape) == tuple(x.shape[:1]) and y.dtype in INTEGERS:
        if len(x) and not x.numel():
            raise SuiteError(f"{where}: expected images with pixels, got {tuple(x.shape)}")
        return
    raise SuiteError(
        f"{where}: expected images (n, c, h, w) and integer labels (n,), "
        f"got {tuple(x.shape)} and {tuple(y.shape)} {y.dtype}{_remedy(x, y)}"
    )


def check_labels(where: str, y: Tensor) -> Tensor:
    """Check integer labels and convert them.

    Args:
        where: Start of the error message.
        y: Labels, (n,), of an integer type or bool.

    Returns:
        A copy in int64 on the CPU, (n,).

    Raises:
        SuiteError: One of them is negative.
    """
    plain = to_dense(where, y).to("cpu", torch.int64).clone(memory_format=torch.contiguous_format)
    if plain.numel() and int(plain.min()) < 0:
        binary = plain.unique().tolist() == [-1, 1]
        remedy = (
            "write 0 for -1"
            if binary
            else ("number the classes from 0, and leave out images without a class")
        )
        raise SuiteError(f"{where}: expected labels from 0, got {int(plain.min())}; {remedy}")
    return plain


def check_classes(where: str, y: Tensor, classes: Sequence[str]) -> None:
    """Check that every label has a class.

    Args:
        where: Start of the error message.
        y: Result of `check_labels`, (n,).
        classes: Names of the classes in index order; empty if unknown.

    Raises:
        SuiteError: There are labels without a class, for example because they count from 1.
    """
    if not classes or not len(y) or int(y.max()) < len(classes):
        return
    low, high = int(y.min()), int(y.max())
    remedy = "; they count from 1, so subtract 1" if (low, high) == (1, len(classes)) else ""
    raise SuiteError(
        f"{where}: expected labels from 0 to {len(classes) - 1}, one for each of "
        f"{len(classes)} classes, got {low} to {high}{remedy}"
    )


def check_data(name: str, data: Data) -> Data:
    """Check a data set, and make it check every slice that is read later.

    Args:
        name: Name in the suite.
        data: The data set.

    Returns:
        The data set with int64 labels, whose `read` returns copies in float32.

    Raises:
        SuiteError: There is no example, labels do not fit, or the first slices are no images in
            [0, 1] of the data set's shape, or differ when they are read again.
    """
    where = f"data {name}"
    if data.n < 1:
        raise SuiteError(f"{where}: expected at least one example, got none")
    y = data.labels
    if y is not None:
        if not isinstance(y, Tensor) or y.dtype not in INTEGERS or tuple(y.shape) != (data.n,):
            got = f"{tuple(y.shape)} {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
            raise SuiteError(
                f"{where}: expected integer labels ({data.n},), got {got}; give one for each image"
            )
        y = check_labels(where, y)

    def read(first: int, last: int) -> Tensor:
        return _slice(where, data, first, last)

    head = min(data.n, N_PROBED)
    probe, first = read(0, head), min(1, head - 1)
    if not torch.equal(read(first, head), probe[first:]):  # in another slice, too
        raise SuiteError(
            f"{where}: read({first}, {head}) gave other images than read(0, {head}) did; let "
            "`read` give the same image for the same number each time, without augmentation"
        )
    mapping = {"pixels": _pixels(probe.dtype, probe), **data.mapping}
    return dataclasses.replace(data, read=read, labels=y, mapping=mapping)


def limit_data(data: Data, most: int | None) -> Data:
    """Limit a data set to its first examples.

    Args:
        data: The data set.
        most: Number of examples; None for all.

    Returns:
        The data set, or one with fewer examples and another fingerprint.
    """
    if most is None or data.n <= most:
        return data
    return dataclasses.replace(
        data,
        n=most,
        labels=None if data.labels is None else data.labels[:most],
        fingerprint=f"{data.fingerprint}, first {most}",
    )


def describe_mapping(x: Tensor, plain: Tensor, y: Tensor, classes: Sequence[str]) -> dict[str, str]:
    """Describe how images and labels were read, for `Data.mapping`.

    Args:
        x: Images as passed by the user.
        plain: Result of `to_float_images`.
        y: Result of `check_labels`.
        classes: Names of the classes; may be empty.

    Returns:
        Subject -> description.
    """
    mapping = {"pixels": _pixels(x.dtype, plain)}
    if len(y):
        low, high, n_classes = int(y.min()), int(y.max()), len(y.unique())
        mapping["labels"] = f"{n_classes} classes from {low} to {high}"
        if low == 1 and n_classes == high:
            mapping["labels"] += "; if they count from 1, subtract 1"
    if classes:
        mapping["classes"] = list_names(classes)
    return mapping


def list_names(names: Sequence[str]) -> str:
    """Format class names with their labels, and the number of classes if some are left out.

    >>> list_names(["ant", "bee"]), list_names(["0", "1", "2", "3", "4", "5"])
    ('0 = ant, 1 = bee', '0 = 0, 1 = 1, 2 = 2, ... 5 = 5 (6 classes)')

    Args:
        names: Names in index order.

    Returns:
        One line.
    """
    pairs = [f"{index} = {name}" for index, name in enumerate(names)]
    if len(pairs) <= N_LISTED:
        return ", ".join(pairs)
    return f"{', '.join(pairs[: N_LISTED - 1])}, ... {pairs[-1]} ({len(pairs)} classes)"


def format_size(shape: Shape) -> str:
    """Format an image's shape.

    Args:
        shape: (channels, height, width).

    Returns:
        Text such as "3 x 224 x 224".
    """
    return " x ".join(map(str, shape))


# ------------------------------------------------------------------------------------ one tensor


def to_dense(where: str, x: Tensor) -> Tensor:
    """Return a tensor as a plain one without gradient.

    Args:
        where: Start of the error message.
        x: Any tensor.

    Returns:
        The same values, without a subclass; may share memory with `x`.

    Raises:
        SuiteError: It is sparse, nested, quantised or without values.
    """
    problem = ""
    if x.is_nested:
        problem = "a nested tensor; stack images of one size"
    elif x.layout != torch.strided:
        problem = f"{str(x.layout).removeprefix('torch.')}; call to_dense() on it"
    elif x.is_quantized:
        problem = f"{x.dtype}; call dequantize() on it"
    elif x.is_meta or (type(x) is not Tensor and _wraps(x)):
        problem = f"{type(x).__name__} on {x.device}, which holds none of its own"
    if problem:
        raise SuiteError(f"{where}: expected a plain tensor with values, got {problem}")
    plain = x.detach()
    if type(plain) is not Tensor:
        plain = plain.as_subclass(Tensor)
    return plain.resolve_neg() if not plain.is_complex() else plain


def _wraps(x: Tensor) -> bool:
    """Return whether a tensor of a subclass wraps others and has no values."""
    try:
        return bool(x.numel()) and x.untyped_storage().data_ptr() == 0
    except (RuntimeError, NotImplementedError):
        return True


def _plain(where: str, x: Tensor) -> Tensor:
    """Return images on the CPU; raise SuiteError if their type has no known scale."""
    plain = to_dense(where, x)
    kind = str(x.dtype).removeprefix("torch.")
    if plain.dtype not in (*FLOATS, torch.uint8, torch.bool):
        raise SuiteError(
            f"{where}: expected images in float from 0 to 1, uint8 from 0 to 255 or bool, got "
            f"{kind}, whose scale is not known; divide by the largest level they can have"
        )
    plain = plain.to("cpu")
    if plain.dtype == torch.uint8 and plain.numel() and int(plain.max()) == 1:
        raise SuiteError(
            f"{where}: expected uint8 levels from 0 to 255, got 0 and 1 alone; for images of 0 and "
            "1 give them as bool or float"
        )
    return plain


def _canonical(x: Tensor) -> Tensor:
    """Return x with the strides of a new tensor.

    Strides of an axis of length 1 are arbitrary, and kernels choose their order of summation by
    them.
    """
    strides, step = [], 1
    for length in reversed(x.shape):
        strides.append(step)
        step *= max(length, 1)
    if x.stride() == tuple(reversed(strides)):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def _check_range(where: str, x: Tensor) -> None:
    """Raise SuiteError for pixels outside [0, 1]."""
    if not x.numel():
        return
    low, high = (float(value) for value in x.aminmax())
    if not (low >= 0 and high <= 1):  # false for NaN, too
        remedy = "scale the images, and normalise inside the model"
        if broken := int((~x.isfinite()).flatten(1).any(1).sum()):
            remedy = (
                f"{broken} of {len(x)} images have pixels that are NaN or infinite in float32: "
                "look for a division by zero or missing values, or leave these images out"
            )
        if low >= 0 and 1 < high <= 255 and torch.equal(x, x.round()):
            remedy = "scale the images: divide them by 255, or give these levels as uint8"
        raise SuiteError(
            f"{where}: expected pixels in [0, 1], got [{low:.4g}, {high:.4g}]; {remedy}"
        )


def _slice(where: str, data: Data, first: int, last: int) -> Tensor:
    """Read the images first to last - 1 as float32 in [0, 1]; raise SuiteError if they are not."""
    place = f"{where}: read({first}, {last})"
    rows = data.read(first, last)
    wanted = (last - first, *data.shape)
    if not isinstance(rows, Tensor) or tuple(rows.shape) != wanted:
        got = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise SuiteError(f"{place}: expected a tensor of images {wanted}, got {got}")
    plain = to_dense(place, rows).to("cpu")
    if plain.dtype not in FLOATS:
        kind = str(rows.dtype).removeprefix("torch.")
        raise SuiteError(f"{place}: expected float images in [0, 1], got {kind}; scale them")
    plain = plain.to(torch.float32)
    _check_range(place, plain)
    return scale_images(plain)


def _pixels(kind: torch.dtype, plain: Tensor) -> str:
    """Describe how pixels of a type were read, with their range."""
    name = str(kind).removeprefix("torch.")
    low, high = (value.item() for value in plain.aminmax()) if plain.numel() else (0, 0)
    seen = f"{name} from {low:.4g} to {high:.4g}"
    if kind == torch.uint8:
        return f"{seen}, divided by 255"
    if kind in (torch.float32, torch.bool):
        return f"{seen}, as they are"
    return f"{seen}, converted to float32"


def _remedy(x: Tensor, y: Tensor) -> str:
    """Return what to do about images or labels of another shape or type, where that is clear."""
    if x.dim() == 3:
        return "; images.unsqueeze(1) adds the axis of channels to grey images"
    if x.dim() != 4:
        return ""
    if y.is_floating_point() and y.shape == x.shape[:1]:
        return "; labels.long() makes them whole if they are"
    if tuple(y.shape) == (len(x), 1):
        return "; labels.squeeze(1) takes them out of the column"
    if y.dim() == 1 and len(y) != len(x):
        return f"; give one label for each of the {len(x)} images"
    if y.dim() == 2 and len(y) == len(x):
        return "; labels.argmax(1) makes classes of one-hot rows"
    return ""
