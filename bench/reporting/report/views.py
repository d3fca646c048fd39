"""Tables → views: the tables of text that a report prints, in every format the same.

A view holds words only; numbers were spelled by `formats` on the way in. A cell that failed or was
skipped is a dash with a footnote that gives the reason, in every view where it has a place.
"""

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import pandas as pd

from bench.analysis.cell_names import format_cell_name
from bench.analysis.explanations import Explanation
from bench.reporting.formats import numbers
from bench.reporting.formats.numbers import (
    DASH,
    NORM_NAMES,
    format_count,
    format_number,
    format_percent,
    format_plural,
    format_rate,
    format_text,
    is_missing,
    is_numeric,
)
from bench.reporting.plots import transfer_matrix

Row = dict[Any, Any]
VERDICTS = ("identical", "equal within noise", "different")


class View(NamedTuple):
    """One table as it is read."""

    caption: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = []
    """Footnote k stands at place k - 1; the cells that mean it end in "[k]"."""

    @property
    def numeric(self) -> list[bool]:
        """Which columns are set to the right."""
        return [is_numeric(row[j] for row in self.rows) for j in range(len(self.columns))]

    @property
    def frame(self) -> pd.DataFrame:
        """The same as a frame of text, for `Format.render`."""
        return pd.DataFrame(self.rows, columns=pd.Index(self.columns), dtype=object)


class Footnotes:
    """Numbers reasons in the order they are met, each reason once."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def mark(self, text: str) -> str:
        """The mark, such as "[2]", of the footnote that says `text`."""
        if text not in self.texts:
            self.texts.append(text)
        return f"[{self.texts.index(text) + 1}]"


def group_rows(rows: Iterable[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by the values of `keys`, in the order of first appearance; missing values are None."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        values = (row.get(key) for key in keys)
        found.setdefault(tuple(None if is_missing(v) else v for v in values), []).append(row)
    return found


def to_rows(frame: pd.DataFrame) -> list[Row]:
    """The rows of a frame as dictionaries, in order."""
    return list(frame.to_dict("records"))


def format_norm(norm: Any) -> str:
    """A norm as it is written: L-inf, L2."""
    return NORM_NAMES.get(norm, format_text(norm))


def _eps_list(rows: Sequence[Row], names: Mapping[float, str]) -> str:
    return ", ".join(format_eps(eps, names) for eps in sorted({float(row["eps"]) for row in rows}))


def format_eps(eps: Any, names: Mapping[float, str]) -> str:
    """An eps as its suite wrote it."""
    return DASH if is_missing(eps) else names.get(float(eps), format_number(eps, 4))


# ------------------------------------------------------------------------------- what went wrong


def list_violations(frame: pd.DataFrame, names: Mapping[float, str]) -> View | None:
    """How often each attack broke its promise, with the first case; None where none did."""
    lines = []
    for (model, attack, norm, eps), rows in group_rows(
        to_rows(frame), "model", "attack", "norm", "eps"
    ).items():
        first = f"example {format_text(rows[0]['example'])}: {format_text(rows[0]['violation'])}"
        place = [format_text(model), format_text(attack), format_norm(norm), format_eps(eps, names)]
        lines.append([*place, str(len(rows)), first])
    columns = ["model", "attack", "norm", "eps", "examples", "first violation"]
    return View("", columns, lines) if lines else None


def list_excluded_cells(table: pd.DataFrame, names: Mapping[float, str]) -> View | None:
    """The cells without a number and why; None where every cell has one."""
    bad = [row for row in to_rows(table) if row["status"] != "ok"]
    bad.sort(key=lambda row: str(row["status"]))  # "failed" before "skipped"
    keys = ("status", "model", "attack", "norm", "goal", "reason")
    lines = [
        [format_text(status), format_text(model), format_text(attack), format_norm(norm), format_text(goal),
         _eps_list(rows, names), format_text(reason)]
        for (status, model, attack, norm, goal, reason), rows in group_rows(bad, *keys).items()
    ]  # fmt: skip
    columns = ["status", "model", "attack", "norm", "goal", "eps", "reason"]
    return View("", columns, lines) if lines else None


def list_caveats(table: pd.DataFrame, names: Mapping[float, str]) -> View | None:
    """What to keep in mind about single cells; cells with the same caveat share a line."""
    rows = [row for row in to_rows(table) if not is_missing(row.get("caveats"))]
    lines = [
        [
            format_text(model),
            format_text(attack),
            format_norm(norm),
            _eps_list(cells, names),
            format_text(text),
        ]
        for (model, attack, norm, text), cells in group_rows(
            rows, "model", "attack", "norm", "caveats"
        ).items()
    ]
    return View("", ["model", "attack", "norm", "eps", "caveat"], lines) if lines else None


# --------------------------------------------------------------------------------------- numbers


def pivot_by_eps(
    caption: str,
    rows: Sequence[Row],
    keys: tuple[str, ...],
    names: Mapping[float, str],
    cell: Callable[[Row, Footnotes], str],
) -> View:
    """A line per value of `keys`, a column per eps; blank where nothing was planned."""
    notes = Footnotes()
    ladder = sorted({float(row["eps"]) for row in rows})
    lines = []
    for values, cells in group_rows(rows, *keys).items():
        there = {float(row["eps"]): cell(row, notes) for row in cells}
        lines.append([*map(format_text, values), *(there.get(eps, "") for eps in ladder)])
    columns = [*keys, *(f"eps {format_eps(eps, names)}" for eps in ladder)]
    return View(caption, columns, lines, notes.texts)


def tabulate_attacks(table: pd.DataFrame, names: Mapping[float, str]) -> list[View]:
    """Per model, norm and goal: attacks by eps; robust accuracy, or success where targeted."""
    found = []
    for (model, norm, goal), rows in group_rows(to_rows(table), "model", "norm", "goal").items():
        what = "success rate" if goal == "targeted" else "robust accuracy"
        clean = next((row for row in rows if row["status"] == "ok"), None)
        known = f"; {_clean(clean)}" if clean else ""
        caption = f"{format_text(model)}, {format_norm(norm)}, {format_text(goal)}: {what}{known}"
        found.append(pivot_by_eps(caption, rows, ("attack", "implementation"), names, _outcome))
    return found


def _clean(row: Row) -> str:
    k, n = row["clean_correct"], row["n"]
    share = DASH if is_missing(k) or is_missing(n) or n == 0 else format_percent(k / n)
    return f"clean accuracy {share} ({format_count(k, n)})"


def _outcome(row: Row, notes: Footnotes) -> str:
    if row["status"] != "ok":
        reason = f"{row['status']}: {format_text(row['reason'])}"
        return f"{DASH} {notes.mark(reason)}"
    if row["goal"] == "targeted":
        share, low, high = (row[k] for k in ("attack_success_rate", "success_low", "success_high"))
        text = (
            DASH
            if is_missing(share)
            else f"{format_percent(share)} {numbers.format_interval(low, high)}"
        )
    else:
        text = format_rate(row["robust_correct"], row["n"], row["robust_low"], row["robust_high"])
    broken = row.get("violations")
    if is_missing(broken) or not broken:
        return text
    told = f"{format_plural(int(broken), 'violation')}, each counted as an attack that failed"
    return f"{text} {notes.mark(told)}"


def tabulate_transfers(table: pd.DataFrame) -> list[View]:
    """Source by victim of each attack at each eps: error rate, mean confidence of the errors."""
    found = []
    for matrix in transfer_matrix.build_matrices(table):
        notes, lines = Footnotes(), []
        for source in matrix.sources:
            cells = [matrix.cells.get((source, victim)) for victim in matrix.victims]
            lines.append([format_text(source), *(_transferred(row, notes) for row in cells)])
        caption = (
            f"{format_text(matrix.attack)}, {format_norm(matrix.norm)}, {format_text(matrix.goal)}, "
            f"eps {format_text(matrix.eps_text)}: error rate (mean confidence of the errors)"
        )
        columns = ["crafted on", *(f"judged on {format_text(victim)}" for victim in matrix.victims)]
        found.append(View(caption, columns, lines, notes.texts))
    return found


def _transferred(row: Row | None, notes: Footnotes) -> str:
    if row is None:
        return ""
    share = transfer_matrix.compute_error_rate(row)
    if share is None:
        reason = f"{row['status']}: {format_text(row['reason'])}"
        return f"{DASH} {notes.mark(reason)}"
    ends = numbers.format_interval(1 - row["robust_high"], 1 - row["robust_low"])
    return f"{format_percent(share)} {ends} ({format_percent(row['mean_confidence_fooled'])})"


def tabulate_perturbation_sizes(table: pd.DataFrame) -> View | None:
    """How large the successful perturbations of each attack are, at its largest eps."""
    lines = []
    keys = ("model", "attack", "norm", "goal")
    for (model, attack, norm, goal), rows in group_rows(to_rows(table), *keys).items():
        row = max(rows, key=lambda row: float(row["eps"]))
        if row["status"] != "ok" or is_missing(row.get("fooled")) or not row["fooled"]:
            continue
        means = [format_number(row[f"mean_{name}"]) for name in NORM_NAMES]
        entropy = format_number(row.get("mean_target_cross_entropy"))
        sure = [format_percent(row["mean_confidence_fooled"]), entropy]
        lines.append(
            [format_text(model), format_text(attack), format_norm(norm), format_text(goal), format_text(row["eps_text"]),
             format_count(row["fooled"], row["eligible"]), *means, *sure]
        )  # fmt: skip
    columns = ["model", "attack", "norm", "goal", "eps", "fooled"]
    columns += [*(f"mean {name}" for name in NORM_NAMES.values()), "mean confidence"]
    columns += ["mean cross-entropy of the target"]
    return View("", columns, lines) if lines else None


def tabulate_worst_case(
    worst: pd.DataFrame, table: pd.DataFrame, names: Mapping[float, str]
) -> list[View]:
    """Per norm and goal: what every attack together left, models by eps."""
    planned = _planned(table)

    def cell(row: Row, notes: Footnotes) -> str:
        text = format_rate(row["robust_correct"], row["n"], row["robust_low"], row["robust_high"])
        ran, wanted = row["attacks"], planned.get(_place(row), row["attacks"])
        return text if ran == wanted else f"{text} {notes.mark(_shortfall(ran, wanted))}"

    return [
        pivot_by_eps(f"{format_norm(norm)}, {goal or 'untargeted'}", rows, ("model",), names, cell)
        for (norm, goal), rows in group_rows(to_rows(worst), "norm", "goal").items()
    ]


def _shortfall(ran: Any, wanted: Any) -> str:
    return f"over {ran} of {wanted} attacks, the rest failed: an upper bound of the worst case"


def _place(row: Row) -> tuple[Any, ...]:
    goal = row.get("goal")
    return row["model"], row["norm"], "untargeted" if is_missing(goal) else goal, float(row["eps"])


def _planned(table: pd.DataFrame) -> dict[tuple[Any, ...], int]:
    return Counter(_place(row) for row in to_rows(table) if row["status"] != "skipped")


def tabulate_worst_case_counts(
    worst: pd.DataFrame, table: pd.DataFrame, names: Mapping[float, str]
) -> View | None:
    """The worst case with its counts, and which attack broke an example first."""
    planned = _planned(table)
    lines = [
        [format_text(row["model"]), format_norm(row["norm"]), format_text(row.get("goal", "untargeted")),
         format_eps(row["eps"], names), format_count(row["robust_correct"], row["n"]),
         format_rate(row["robust_correct"], row["n"], row["robust_low"], row["robust_high"]),
         f"{row['attacks']} of {planned.get(_place(row), row['attacks'])}",
         format_text(row["broken_by"])]
        for row in to_rows(worst)
    ]  # fmt: skip
    columns = ["model", "norm", "goal", "eps", "robust", "robust accuracy", "attacks", "broken by"]
    return View("", columns, lines) if lines else None


# --------------------------------------------------------------------------------- least distances


def rank_searches(frame: pd.DataFrame) -> list[View]:
    """Searches for the least distance: over all models, then per model, norm and goal, the best
    first; one that is not scored comes last, with its reason."""
    rows = to_rows(frame)
    found = [_over_models(rows)] if frame["model"].nunique() > 1 else []
    for (model, norm, goal, target), lines in group_rows(
        rows, "model", "norm", "goal", "target"
    ).items():
        notes = Footnotes()
        ranked = sorted(lines, key=lambda row: -_optimality(row))
        aim = f"{goal} {format_text(target)}" if target else goal
        caption = f"{format_text(model)}, {format_norm(norm)}, {format_text(aim)}: least distances"
        columns = ["attack", "implementation", "local optimality", "found", "median distance"]
        columns += ["mean distance, clipped", "forwards", "backwards"]
        body = [_ranked(row, notes) for row in ranked]
        found.append(View(caption, columns, body, notes.texts))
    return found


def _optimality(row: Row) -> float:
    return -1.0 if is_missing(row["local_optimality"]) else float(row["local_optimality"])


def _ranked(row: Row, notes: Footnotes) -> list[str]:
    name = [format_text(row["attack"]), format_text(row["implementation"])]
    if row["status"] != "ok" or is_missing(row["n"]):
        reason = f"{row['status']}: {format_text(row['reason'])}"
        return [*name, f"{DASH} {notes.mark(reason)}", *[DASH] * 5]
    low, high = (format_number(row[f"median_{side}"]) for side in ("low", "high"))
    return [
        *name, format_number(row["local_optimality"]), format_count(row["found"], row["attacked"]),
        f"{format_number(row['median_distance'])} [{low}, {high}]", format_number(row["mean_clipped_distance"]),
        format_number(row["forwards_per_example"]), format_number(row["backwards_per_example"]),
    ]  # fmt: skip


def _over_models(rows: Sequence[Row]) -> View:
    """Local optimality on each model and, of what was scored on all, the mean."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    lines = []
    for (attack, norm, goal, target), cells in group_rows(
        rows, "attack", "norm", "goal", "target"
    ).items():
        scores = {row["model"]: row["local_optimality"] for row in cells}
        told = [float("nan" if score is None else score) for score in map(scores.get, models)]
        mean = sum(told) / len(told)
        aim = f"{goal} {format_text(target)}" if target else goal
        lines.append(
            [
                format_text(attack),
                format_norm(norm),
                format_text(aim),
                *map(format_number, told),
                format_number(mean),
            ]
        )
    columns = ["attack", "norm", "goal", *map(format_text, models), "mean: global optimality"]
    return View("Local optimality on every model", columns, lines)


# ------------------------------------------------------------------------------- published figures


def tabulate_references(frame: pd.DataFrame, names: Mapping[float, str]) -> list[View]:
    """Per source, eps by eps: the measured figure, the published one and their difference.

    What all lines of a source share stands in the caption, the rest in columns of its own.
    """
    found = []
    for (source,), rows in group_rows(to_rows(frame), "source").items():
        about = [_about(row) for row in rows]
        own = [key for key in about[0] if len({told[key] for told in about}) > 1]
        shared = ", ".join(text for key, text in about[0].items() if key not in (*own, "note"))
        note = "" if "note" in own or is_missing(rows[0]["note"]) else f"; {about[0]['note']}"
        caption = f"{format_text(source)}{': ' if shared else ''}{shared}{note}"
        notes, places = Footnotes(), _decimal_places(row["published"] for row in rows)
        lines = [
            [*(told[key] for key in own), *_beside(row, names, notes, places)]
            for told, row in zip(about, rows, strict=True)
        ]
        columns = ["eps", "measured", "count", "published", "measured - published"]
        columns += ["in the interval"]
        found.append(View(caption, [*own, *columns], lines, notes.texts))
    return found


def _about(row: Row) -> dict[str, str]:
    """What a published value is one of, in words."""
    return {
        "model": format_text(row["model"]),
        "attack": format_text(row["attack"]),
        "norm": format_norm(row["norm"]),
        "figure": format_text(row["figure"]).replace("_", " "),
        "note": format_text(row["note"]),
    }


def _beside(row: Row, names: Mapping[float, str], notes: Footnotes, places: int) -> list[str]:
    measured = format_percent(row["measured"])
    if not is_missing(row["low"]):
        measured = format_rate(row["k"], row["n"], row["low"], row["high"])
    elif not is_missing(row["reason"]):
        told = format_text(row["reason"])
        told = told if row["status"] == "ok" else f"{row['status']}: {told}"
        measured = f"{measured} {notes.mark(told)}"
    inside = DASH if is_missing(row["inside"]) else "yes" if row["inside"] else "no"
    return [
        format_eps(row["eps"], names), measured, format_count(row["k"], row["n"]),
        format_percent(row["published"], places), numbers.format_points(row["difference_points"], places),
        inside,
    ]  # fmt: skip


def _decimal_places(shares: Iterable[float]) -> int:
    """The decimals that percents need to show each share as its source gives it; one to four."""
    texts = [f"{100 * share:.4f}".rstrip("0") for share in shares]
    return max(1, *(len(text.partition(".")[2]) for text in texts))


# ------------------------------------------------------------------------------------ cross-checks


def summarize_verdicts(crosschecks: pd.DataFrame) -> str:
    """How many comparisons ended in which verdict."""
    rows = to_rows(crosschecks)
    if not rows:
        return "No cross-check was asked for."
    told = [row["verdict"] for row in rows]
    parts = [f"{told.count(verdict)} {verdict}" for verdict in dict.fromkeys([*VERDICTS, *told])]
    pairs = len(group_rows(rows, "model", "ours", "reference", "norm"))
    compared = (
        f"{format_plural(len(rows), 'comparison')} of {format_plural(pairs, 'pair')} of attacks"
    )
    return f"{compared}: {', '.join(parts)}."


def tabulate_pairs(crosschecks: pd.DataFrame) -> View | None:
    """One line per pair: its verdicts, the examples that differ, the time."""
    lines = []
    keys = ("model", "ours", "reference", "norm")
    for (model, ours, reference, norm), rows in group_rows(to_rows(crosschecks), *keys).items():
        told = [row["verdict"] for row in rows]
        differ = sum(0 if is_missing(row["differ"]) else row["differ"] for row in rows)
        compared = sum(0 if is_missing(row["n"]) else row["n"] for row in rows)
        times = [float(row["time_ratio"]) for row in rows if not is_missing(row["time_ratio"])]
        lines.append(
            [format_text(model), format_text(ours), format_text(reference), format_norm(norm), str(len(rows)),
             *(str(told.count(verdict)) for verdict in VERDICTS), format_count(differ, compared),
             numbers.format_factor(median(times)) if times else DASH]
        )  # fmt: skip
    columns = ["model", "ours", "reference", "norm", "eps values", *VERDICTS]
    columns += ["examples that differ", "time, ours / reference (median)"]
    return View("", columns, lines) if lines else None


def tabulate_pair_details(crosschecks: pd.DataFrame, names: Mapping[float, str]) -> list[View]:
    """Per pair: eps by eps, which examples differ, by how much, and why."""
    keys = ("model", "ours", "reference", "norm")
    columns = [
        "eps", "verdict", "cause", "differ", "robust, ours", "robust, reference", "only ours broke",
        "only reference broke", "p", "largest pixel difference", "equal pixels", "images compared",
        "time, ours / reference", "examples",
    ]  # fmt: skip
    return [
        View(
            f"{format_text(model)}: {format_text(ours)} against {format_text(reference)}, {format_norm(norm)}",
            columns,
            [_crosscheck_line(row, names) for row in rows],
        )
        for (model, ours, reference, norm), rows in group_rows(to_rows(crosschecks), *keys).items()
    ]


def _crosscheck_line(row: Row, names: Mapping[float, str]) -> list[str]:
    sides = [
        format_rate(
            row[f"{side}_robust_correct"], row["n"], row[f"{side}_low"], row[f"{side}_high"]
        )
        for side in ("ours", "reference")
    ]
    broke = [format_whole(row[f"only_{side}_broke"]) for side in ("ours", "reference")]
    return [
        format_eps(row["eps"], names), format_text(row["verdict"]), format_text(row["cause"]),
        format_count(row["differ"], row["n"]), *sides,
        *broke, format_number(row["p_value"], 2), format_number(row["largest_pixel_difference"], 2),
        format_percent(row.get("pixels_equal")),
        format_whole(row["pixels_compared"]), numbers.format_factor(row["time_ratio"]),
        format_text(row["differ_ids"]),
    ]  # fmt: skip


def list_explanations(found: Sequence[Explanation]) -> list[str]:
    """What experiments told about pairs of cells, a few sentences each."""
    return [f"{each.gap} {each.cause}" for each in found]


def list_explain_commands(
    crosschecks: pd.DataFrame, found: Sequence[Explanation], names: Mapping[float, str]
) -> list[str]:
    """The commands, to be given in the run's folder, that find out why pairs differ: for each pair
    that nobody has asked about, at the eps where it differs most."""
    asked = {(each.model, each.ours, each.reference) for each in found}
    commands = []
    keys = ("model", "ours", "reference")
    differing = [row for row in to_rows(crosschecks) if row["verdict"] == "different"]
    for (model, *pair), rows in group_rows(differing, *keys).items():
        if (model, *pair) not in asked:
            eps = format_eps(max(rows, key=lambda row: row["differ"])["eps"], names)
            cells = [format_cell_name(model, attack, eps) for attack in pair]
            commands.append(shlex.join(["bench", "explain", ".", *cells]))
    return commands


def format_whole(value: Any) -> str:
    """A count, or a dash."""
    return DASH if is_missing(value) else str(int(value))
