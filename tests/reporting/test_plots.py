"""Figures from a made-up run with one failed cell, one skipped cell and hostile labels."""

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure

from bench.reporting.plots import figures, style
from bench.reporting.plots.figures import AttackedExample

EPS = [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3]
N, CLEAN = 1000, 985
HOSTILE = "net | <script>alert(1)</script>"
KEPT = {
    "FGSM": [985, 937, 806, 593, 352, 152, 50],
    "toolbox FGSM": [985, 937, 806, 593, 352, 152, 50],
    "PGD-40": [985, 921, 640, 190, 20, 1, 0],
    "toolbox PGD-40": [985, 921, 641, 188, 21, 1, 0],
}


def wilson(k: int, n: int) -> tuple[float, float]:
    z, p = 1.959964, k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return centre - half, centre + half


def cell(model: str, attack: str, eps: float, kept: int) -> dict[str, object]:
    low, high = wilson(kept, N)
    success = (CLEAN - kept) / CLEAN
    return {
        "model": model,
        "attack": attack,
        "implementation": "toolbox" if attack.startswith("toolbox") else "bench",
        "norm": "linf",
        "eps": eps,
        "goal": "untargeted",
        "status": "ok",
        "n": N,
        "clean_correct": CLEAN,
        "robust_correct": kept,
        "robust_accuracy": kept / N,
        "robust_low": low,
        "robust_high": high,
        "attack_success_rate": success,
        "seconds": 2.0,
        "examples_per_second": 500.0,
        "floor_ratio": 1.25,
        "eps_text": f"{eps:g}",
    }


def made_up() -> pd.DataFrame:
    table = pd.DataFrame(
        [
            cell(model, attack, eps, kept)
            for model in ("LeNet", HOSTILE)
            for attack, counts in KEPT.items()
            for eps, kept in zip(EPS, counts, strict=True)
        ]
    )
    table[["n", "robust_correct"]] = table[["n", "robust_correct"]].astype("Int64")
    for row, status in ((2, "failed"), (len(table) - 1, "skipped")):
        table.loc[row, "status"] = status
        table.loc[row, table.columns[7:-1]] = None
    return table


def pictures(model: str = "LeNet") -> list[AttackedExample]:
    image = np.linspace(0, 1, 64).reshape(8, 8, 1)
    return [
        AttackedExample(
            model,
            "FGSM",
            "linf",
            eps,
            f"{eps:g}",
            i,
            "7",
            "7",
            "$2" if i else "7",
            image,
            1 - image,
            i > 0,
            3,
            4,
        )
        for eps in (0.1, 0.3)
        for i in range(4)
    ]


def bands(figure: Figure) -> list[PolyCollection]:
    return [c for c in figure.axes[0].collections if isinstance(c, PolyCollection)]


def test_the_bands_are_the_intervals_of_the_table() -> None:
    table = made_up()
    given = table[(table["model"] == "LeNet") & (table["attack"] == "PGD-40")]
    figure = figures.plot_accuracy_curves(table, "LeNet", "linf")
    drawn = [{tuple(corner) for corner in band.get_paths()[0].vertices} for band in bands(figure)]
    wanted = {(e, 100 * low) for e, low in zip(given["eps"], given["robust_low"], strict=True)}
    wanted |= {(e, 100 * high) for e, high in zip(given["eps"], given["robust_high"], strict=True)}
    assert any(wanted <= corners for corners in drawn)


def test_a_failed_cell_breaks_the_curve_and_is_named_in_the_legend() -> None:
    figure = figures.plot_accuracy_curves(made_up(), "LeNet", "linf")
    values = np.asarray(figure.axes[0].get_lines()[0].get_ydata())
    assert np.isnan(values[2])
    assert values[1] == pytest.approx(93.7)
    assert "FGSM (1 failed)" in figure.legends[0].get_texts()[0].get_text()


def test_a_legend_says_how_many_examples_a_certificate_kept_from_attack() -> None:
    table = made_up()
    table["certified"] = [40 * (attack == "PGD-40") for attack in table["attack"]]
    table.loc[table["eps"] == 0.05, "certified"] *= 20
    for shown in (table, table[table["eps"] == 0.05]):
        figure = figures.plot_accuracy_curves(shown, "LeNet", "linf")
        texts = [each.get_text() for legend in figure.legends for each in legend.get_texts()]
        texts += [each.get_text() for each in figure.axes[0].get_yticklabels()]
        named = [text for text in texts if "certified" in text]
        assert len(named) == 1
        assert named[0].startswith("PGD-40\n(up to 800 of 1000 certified, not attacked)")


def test_long_labels_that_differ_at_their_ends_are_told_apart() -> None:
    labels = [f"ResNet-18 trained on CIFAR-10 for 200 epochs with seed {k}" for k in range(3)]
    short = [style.shorten(label, 22) for label in labels]
    assert len({*short}) == 3
    assert all(len(each) <= 22 for each in short)
    assert style.shorten("LeNet") == "LeNet"


def test_attacks_with_the_very_same_counts_share_a_line_that_names_both() -> None:
    figure = figures.plot_accuracy_curves(made_up(), HOSTILE, "linf")
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "FGSM\n= toolbox FGSM" in named
    assert "PGD-40" in named


def points(figure: Figure, line: int) -> list[tuple[float, float]]:
    """(eps, percent) of the points of a curve that have a number."""
    drawn = figure.axes[0].get_lines()[line].get_xydata()
    return [(float(x), round(float(y), 3)) for x, y in np.asarray(drawn) if not math.isnan(y)]


def test_every_curve_starts_at_the_clean_accuracy() -> None:
    table = made_up().query("eps > 0")
    figure = figures.plot_accuracy_curves(table, HOSTILE, "linf")
    assert {points(figure, line)[0] for line in range(len(figure.axes[0].get_lines()))} == {
        (0.0, 98.5)
    }


def test_an_attack_at_one_eps_among_curves_has_its_interval_and_no_line_to_it() -> None:
    table = made_up().query("model == @HOSTILE and eps > 0")
    one = (table["attack"] == "toolbox PGD-40") & (table["eps"] != 0.15)
    figure = figures.plot_accuracy_curves(table[~one], HOSTILE, "linf")
    curve = next(
        line for line in range(len(figure.axes[0].get_lines())) if len(points(figure, line)) == 2
    )
    assert points(figure, curve) == [(0.0, 98.5), (0.15, 18.8)]
    assert np.isnan(np.asarray(figure.axes[0].get_lines()[curve].get_ydata())).any()
    bars = [c for c in figure.axes[0].collections if isinstance(c, LineCollection)]
    ends = {
        tuple(np.asarray(segment)[:, 1].round(3)) for bar in bars for segment in bar.get_segments()
    }
    low, high = wilson(188, N)
    assert (round(100 * low, 3), round(100 * high, 3)) in ends


def test_an_attack_and_its_reference_share_a_colour_but_not_a_line_style() -> None:
    figure = figures.plot_accuracy_curves(made_up(), "LeNet", "linf")
    ours, reference = figure.axes[0].get_lines()[-2:]
    assert ours.get_color() == reference.get_color()
    assert (ours.get_linestyle(), reference.get_linestyle()) == ("-", "--")


def test_attacks_without_a_cell_at_eps_0_keep_their_line_style() -> None:
    table = made_up()
    without = table[table["eps"] > 0]
    styles = [
        [line.get_linestyle() for line in figure.axes[0].get_lines()]
        for rows in (table, without)
        for figure in [figures.plot_accuracy_curves(rows, "LeNet", "linf")]
    ]
    assert styles[0] == styles[1]
    assert "-" in styles[1]


def test_targeted_cells_are_no_curves_of_robust_accuracy() -> None:
    table = made_up()
    table["goal"] = "targeted"
    assert not figures.plot_accuracy_curves(table, "LeNet", "linf").axes


def test_a_single_eps_is_a_list_of_attacks_with_error_bars() -> None:
    table = made_up()
    figure = figures.plot_accuracy_curves(table[table["eps"] == 0.15], "LeNet", "linf")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "FGSM\n= toolbox FGSM",
        "PGD-40",
        "toolbox PGD-40",
    ]


def test_the_heat_map_prints_percents_and_a_dash_for_each_cell_without_one() -> None:
    figure = figures.plot_success_heatmap(made_up(), "linf")
    printed = [text.get_text() for text in figure.axes[0].texts]
    assert printed.count("—") == 2
    assert printed.count("100.0") == 3
    hatches = [patch.get_hatch() for patch in figure.axes[0].patches]
    assert sorted(hatches) == ["////", "xxxx"]


def test_the_heat_map_of_one_eps_shows_its_row_labels_whole() -> None:
    table = pd.DataFrame(
        [cell("a model of " + 30 * "m", f"attack {k} from" + 20 * " m", 0.1, 5) for k in range(40)]
    )
    figure = figures.plot_success_heatmap(table, "linf")
    figure.draw_without_rendering()
    labels = [each.get_window_extent() for each in figure.axes[0].get_yticklabels()]
    assert min(each.x0 for each in labels) > 0
    assert figure.axes[0].get_window_extent().width > 20


def test_throughput_is_all_examples_over_all_seconds() -> None:
    table = made_up()
    table.loc[1, ["seconds", "examples_per_second"]] = [20.0, 50.0]
    line = figures.plot_throughput(table).axes[0].get_lines()[0]
    # five ordinary cells and a slow one: 6 x 1000 examples in 5 x 2 + 20 seconds
    assert line.get_xdata() == pytest.approx([6000 / 30])


def test_a_grid_has_a_row_per_eps_and_titles_before_and_after() -> None:
    axes = figures.plot_example_grid(pictures(), "LeNet", "FGSM").axes[0]
    printed = [text.get_text() for text in axes.texts]
    assert "7 → $2" in printed
    labels = [text for text in printed if text.startswith("eps")]
    assert labels == ["eps 0.1\n3 of 4 fooled", "eps 0.3\n3 of 4 fooled"]
    lines = {round(image.get_extent()[3], 3) for image in axes.get_images()}
    assert lines == {0.2, 1.2, 2.2}  # an image's upper edge lies 0.2 below the top of its row
    assert printed[:2] == ["clean", "7"]
    weights = {text.get_text(): text.get_weight() for text in axes.texts}
    assert (weights["7 → $2"], weights["7 → 7"]) == ("bold", "normal")


def test_what_was_added_is_shown_at_the_largest_eps_of_each_attack() -> None:
    clean = np.full((4, 4), 0.5)
    examples = [
        AttackedExample(
            "net", attack, "linf", eps, f"{eps:g}", 0, "7", "7", "2", clean, clean - eps, True, 1, 1
        )
        for attack in ("FGSM", "PGD")
        for eps in (0.1, 0.3)
    ]
    figure = figures.plot_perturbation_grid(examples, "net")
    shown = [image.get_array() for image in figure.axes[0].images]
    assert [np.asarray(array).shape for array in shown] == [(64, 1), (4, 4)] * 2  # scale, image
    assert all(np.allclose(np.asarray(array), -0.3) for array in shown[1::2])
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert "FGSM\neps 0.3" in texts
    assert texts.count("+0.3") == texts.count("-0.3") == 2
    assert "7 → 2" in texts
