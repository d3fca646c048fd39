"""Write a figure as PNG and SVG.

Pages are kept in git and loaded over the network: a PNG of a palette of 256 colours is a third of
the size that matplotlib writes. Photographs need more colours and keep all of theirs.
"""

import functools
import io
import warnings
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from PIL import Image, ImageChops, ImageStat

from bench.core.files import write_atomic
from bench.reporting.plots.style import STYLE

PALETTE_ERROR = 0.5
"""Largest mean error of a palette, in levels of 255; curves and grids of digits have at most 0.15,
photographs 5 and more."""
MOST_PIXELS = 1_000_000
"""Of an image that is reduced: choosing a palette needs several times its memory."""
GROWTH = 1.25
"""Factor by which a figure is enlarged whose labels leave no room for its axes."""
MOST_GROWTHS = 8
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
}


def save_figure(figure: Figure, path: Path) -> tuple[Path, Path]:
    """Write `path`.png and `path`.svg, each atomically.

    Args:
        figure: The figure.
        path: Path without suffix.

    Returns:
        Paths of the PNG and the SVG.

    Raises:
        SuiteError: The folder cannot be written.
    """
    png = write_atomic(path.with_name(f"{path.name}.png"), reduce_colours(_draw(figure, "png")))
    return png, write_atomic(path.with_name(f"{path.name}.svg"), _draw(figure, "svg"))


def reduce_colours(png: bytes) -> bytes:
    """Encode a PNG with 256 colours at most, unless that changes how it looks.

    Args:
        png: An opaque image.

    Returns:
        The image with a palette if the mean error over its pixels, of the worst channel, is at most
        `PALETTE_ERROR`; otherwise, and if it is large, as it is.
    """
    with Image.open(io.BytesIO(png)) as whole:
        if whole.width * whole.height > MOST_PIXELS:
            return png
        image = whole.convert("RGB")
    reduced = image.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    channels = ImageChops.difference(image, reduced.convert("RGB")).split()
    (error,) = ImageStat.Stat(functools.reduce(ImageChops.lighter, channels)).mean
    if error > PALETTE_ERROR:
        return png
    buffer = io.BytesIO()
    reduced.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _draw(figure: Figure, kind: str) -> bytes:
    for _ in range(MOST_GROWTHS):
        with warnings.catch_warnings():
            # Labels would overlap or be cut off.
            warnings.filterwarnings("error", message="constrained_layout not applied")
            try:
                return _encode(figure, kind)
            except UserWarning:
                figure.set_size_inches(*(GROWTH * figure.get_size_inches()))
    return _encode(figure, kind)


def _encode(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format=kind, metadata=_METADATA[kind])
    return buffer.getvalue()
