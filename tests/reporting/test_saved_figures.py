"""What is stored of a figure: small files that look the same."""

import io
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from bench.reporting.plots.saving import reduce_colours, save_figure
from bench.reporting.plots.style import STYLE


def encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def decode(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_a_plot_is_stored_with_a_palette_that_looks_the_same(tmp_path: Path) -> None:
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    for k in range(5):
        axes.plot([0, 1, 2], [k, k * k, 3 - k], label=f"attack {k}")
    axes.legend()
    png, _ = save_figure(figure, tmp_path / "curves")
    whole = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(whole, format="png")
    difference = np.abs(decode(whole.getvalue()).astype(int) - decode(png.read_bytes()))
    assert Image.open(io.BytesIO(png.read_bytes())).mode == "P"
    assert png.stat().st_size < 0.6 * len(whole.getvalue())
    assert difference.mean() < 0.5


def test_a_figure_without_room_for_its_axes_is_enlarged(tmp_path: Path) -> None:
    figure = Figure(figsize=(1.5, 1.5), layout="constrained")
    axes = figure.subplots()
    axes.set_yticks([0, 1], ["a label that is wider than the whole figure", "another of these"])
    png, svg = save_figure(figure, tmp_path / "narrow")
    assert figure.get_figwidth() > 3
    assert axes.get_yticklabels()[0].get_window_extent().x0 >= 0
    assert decode(png.read_bytes()).shape[1] > 1.5 * STYLE["savefig.dpi"]
    assert f'width="{int(72 * figure.get_figwidth())}.' in svg.read_text(encoding="utf-8")


def test_a_large_plot_is_stored_with_a_palette_as_well(tmp_path: Path) -> None:
    figure = Figure(figsize=(8, 20))
    figure.subplots().imshow(np.linspace(0, 1, 64).reshape(8, 8), cmap="Blues", aspect="auto")
    png, _ = save_figure(figure, tmp_path / "heat-map")
    whole = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(whole, format="png")
    difference = np.abs(decode(whole.getvalue()).astype(int) - decode(png.read_bytes()))
    assert Image.open(io.BytesIO(png.read_bytes())).mode == "P"
    assert difference.shape[0] * difference.shape[1] > 3_000_000
    assert difference.mean() < 0.5


def test_a_picture_of_at_most_256_colours_keeps_every_pixel() -> None:
    levels = np.arange(256).reshape(16, 16)
    pixels = np.stack([levels, 255 - levels, levels // 2], -1)
    np.testing.assert_array_equal(decode(reduce_colours(encode(pixels))), pixels)


def test_a_photograph_keeps_all_its_colours() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3))
    np.testing.assert_array_equal(decode(reduce_colours(encode(pixels))), pixels)
