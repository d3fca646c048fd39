"""How torch rounds float32 products: the settings of both its APIs, read and restored as one.

torch has an older API (`allow_tf32`, `set_float32_matmul_precision`) and, since 2.9, a newer one
(`fp32_precision`: for all of torch, for a backend, for an operator). Each writes into the other's
values, and reading through the older one what the newer one has set raises an error. So the value
that each setting holds itself is read here, inherited or not, and all are restored together.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

Place = tuple[str, str]
"""A backend and an operator of torch's newer API."""
SHARED: tuple[Place, ...] = (("generic", "all"), ("cuda", "all"), ("mkldnn", "all"))
"""Places whose value every operator below inherits that has none itself; the first serves all."""
OPERATORS: tuple[Place, ...] = (
    ("cuda", "matmul"), ("cuda", "conv"), ("cuda", "rnn"),
    ("mkldnn", "matmul"), ("mkldnn", "conv"), ("mkldnn", "rnn"),
)  # fmt: skip
CUDNN = OPERATORS[1:3]
MATRICES = (OPERATORS[0], OPERATORS[3])
NONE, IEEE, TF32 = "none", "ieee", "tf32"


class Float32Precision(NamedTuple):
    """The settings that decide how float32 products are rounded."""

    matrices: str
    """Of the older API: "highest", "high" or "medium"."""
    convolutions: bool
    """Of the older API: whether cuDNN may use TF32."""
    shared: tuple[str, ...] = ()
    """Of the newer API, at SHARED: "none" where nothing is set. Empty before torch 2.9."""
    operators: tuple[str, ...] = ()
    """Likewise, at OPERATORS: "none" where the value is inherited."""


def read_precision() -> Float32Precision:
    """Read the settings, however the two APIs were mixed.

    Settings change while they are read, and have their values again afterwards.

    Returns:
        The settings.
    """
    if not _has_newer_api():
        return Float32Precision(
            torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        )
    shared = []
    for place in SHARED:
        shared.append(_get(place))
        _set(place, NONE)
    operators = {place: _get(place) for place in OPERATORS}
    # cuDNN's default is TF32 unless a shared value is set; as soon as one is, nothing else is.
    _set(SHARED[0], IEEE)
    default = [place for place in CUDNN if operators[place] == TF32 != _get(place)]
    operators |= {place: NONE for place in default if _inherits(place, shared)}
    # The older API answers only where the newer one does not contradict it.
    for place in MATRICES:
        _set(place, IEEE)
    matrices = torch.get_float32_matmul_precision()
    written = [place for place in CUDNN if operators[place] != NONE and place not in default]
    _set(SHARED[0], TF32)
    for place in written:
        _set(place, TF32)
    try:
        convolutions = bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:  # it contradicts TF32
        convolutions = False
    for place in (*MATRICES, *written):
        _set(place, operators[place])
    for place, value in zip(SHARED, shared, strict=True):
        _set(place, value)
    return Float32Precision(matrices, convolutions, tuple(shared), tuple(operators.values()))


def restore_precision(precision: Float32Precision) -> None:
    """Restore settings that were read.

    torch cannot return cuDNN to its default, TF32 unless a shared value is set: it is written out.

    Args:
        precision: The settings.
    """
    current = read_precision()
    if current.matrices != precision.matrices:
        torch.set_float32_matmul_precision(precision.matrices)
    if current.convolutions != precision.convolutions:
        torch.backends.cudnn.allow_tf32 = precision.convolutions
    for place, value in zip(SHARED, precision.shared, strict=False):
        _set(place, value)
    current = read_precision()
    for place, value, now in zip(
        OPERATORS, precision.operators, current.operators, strict=False
    ):  # empty before torch 2.9
        if now != value:
            _set(place, value)


@contextmanager
def allow_tf32(allowed: bool) -> Iterator[None]:
    """Set whether a GPU may round float32 products to TF32; restore the settings afterwards.

    torch's default is yes for convolutions and no for matrix products. A processor computes them
    in float32, whatever was set; inside, both APIs report the same.

    Args:
        allowed: Whether TF32 is allowed.

    Yields:
        With the setting in place.
    """
    before = read_precision()
    try:
        if _has_newer_api():
            for place in (*SHARED, *OPERATORS[3:]):
                _set(place, NONE)
        torch.backends.cuda.matmul.allow_tf32 = allowed
        torch.backends.cudnn.allow_tf32 = allowed
        yield
    finally:
        restore_precision(before)


def _inherits(place: Place, shared: list[str]) -> bool:
    """Return whether an operator without a value inherits one of the shared values."""
    return any(
        value != NONE and backend in ("generic", place[0])
        for (backend, _), value in zip(SHARED, shared, strict=True)
    )


def _has_newer_api() -> bool:
    return hasattr(torch._C, "_get_fp32_precision_getter")


def _get(place: Place) -> str:
    return torch._C._get_fp32_precision_getter(*place)


def _set(place: Place, value: str) -> None:
    # Not by attribute: torch's `backends.mkldnn.fp32_precision` writes the value of all backends.
    torch._C._set_fp32_precision_setter(*place, value)
