"""Write a figure as PNG and SVG.

Pages are kept in git and loaded over the network: a PNG of a palette of 256 colours is a third of
the size that matplotlib writes. Photographs need more colours and keep all of theirs.
"""

import io
import math
import warnings
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from scipy.spatial import KDTree

from bench.core.files import write_atomic
from bench.reporting.plots.style import STYLE

PALETTE_ERROR = 0.5
"""Largest mean error of a palette, in levels of 255; curves and grids of digits have at most 0.15,
photographs 5 and more."""
SAMPLED_PIXELS = 1_000_000
"""Most pixels that a palette is chosen among: that needs several times their memory."""
STRIP_PIXELS = 100_000
"""Pixels that get their colours at once."""
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

    The palette is chosen by median cut among some of the pixels, and each pixel gets the nearest of
    its colours, a strip at a time, so that a large figure takes little more memory than its pixels.

    Args:
        png: An opaque image.

    Returns:
        The image with a palette if the mean error over its pixels, of the worst channel, is at most
        `PALETTE_ERROR`; otherwise as it is.
    """
    image = Image.open(io.BytesIO(png))
    width, height = image.size
    step = math.ceil(math.sqrt(height * width / SAMPLED_PIXELS))
    sample = image.resize((width // step, height // step), Image.Resampling.NEAREST).convert("RGB")
    chosen = sample.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    palette = np.array(chosen.getpalette(), dtype=np.uint8).reshape(-1, 3)
    nearest = KDTree(palette)
    indices = np.empty((height, width), dtype=np.uint8)
    error = np.zeros(3)
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        strip = np.asarray(image.crop((0, top, width, bottom)).convert("RGB"), dtype=np.int32)
        packed = strip[..., 0] << 16 | strip[..., 1] << 8 | strip[..., 2]
        colours, places, counts = np.unique(packed, return_inverse=True, return_counts=True)
        split = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], 1)
        found = np.asarray(nearest.query(split)[1])
        indices[top:bottom] = found[places].reshape(packed.shape)
        error += counts @ np.abs(palette.astype(np.int32)[found] - split)
        if error.max() > PALETTE_ERROR * height * width:
            return png
    reduced = Image.frombytes("P", (width, height), indices.tobytes())
    reduced.putpalette(palette.tobytes())
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
