"""Measure the robust accuracy of a model or a suite, for the fixture `robustness`."""

import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from bench import api
from bench.core.contracts.dataset import Data
from bench.core.errors import RobustnessWarning, SuiteError, nearest
from bench.core.files import remove, write_atomic
from bench.core.validation import parse_fraction
from bench.datasets import image_files
from bench.datasets.as_data import as_data
from bench.evaluation import metrics
from bench.reporting.formats.numbers import format_percent, format_plural
from bench.storage import spreadsheet
from bench.suite import attack_inputs, reader

MAX_SAVED = 25
"""Fooled examples of an eps that are saved as images."""
MIN_PIXELS = 224
"""Least height and width of an image that is saved: 8 pixels of a data set are seen by nobody."""

Note = Callable[[str, object], None]
"""Adds a name and a value to the user properties of a test (JUnit)."""


class Level(NamedTuple):
    """Robust accuracy at one eps, and what invalidates it."""

    where: str
    """Model, attack, norm and eps, in words."""
    eps: float
    robust: metrics.Rate
    clean_correct: int
    violations: int
    fooled: pd.DataFrame
    """The records of the fooled examples; empty for a suite, whose report shows them."""


class Measurement(NamedTuple):
    """Robust accuracy at one or several eps."""

    levels: Sequence[Level]
    save: Callable[[], Path]
    """Writes the fooled examples and records; returns their folder."""
    findings: Sequence[str]
    """Reasons to doubt the numbers, a sentence each: of preflight and of the audit."""


def list_radii(settings: dict[str, Any]) -> set[float] | None:
    """List the eps that `bench.evaluate` will attack at.

    Args:
        settings: Its keyword arguments.

    Returns:
        The eps; None if an attack object brings its own, or one is invalid.
    """
    if settings.get("eps") is None:
        return None
    try:
        return {parse_fraction(radius) for radius in attack_inputs.list_radii(settings["eps"])}
    except (SuiteError, ValueError, ArithmeticError):  # which bench.evaluate describes
        return None


def list_suite_radii(suite: str) -> set[float] | None:
    """List the eps of a suite's attacks.

    Args:
        suite: Path or name of a shipped suite.

    Returns:
        The eps; None if the suite cannot be read.
    """
    try:
        return {eps.value for entry in reader.read_suite(suite).attacks for eps in entry.eps}
    except SuiteError:  # which bench.run describes
        return None


def check_keywords(function: Callable[..., Any], settings: dict[str, Any]) -> None:
    """Check keyword arguments before anything is measured.

    Args:
        function: `bench.evaluate` or `bench.run`.
        settings: The keyword arguments of the user.

    Raises:
        TypeError: The function has no such argument.
    """
    __tracebackhide__ = True
    known = inspect.signature(function).parameters
    for name in settings:
        if name not in known:
            raise TypeError(f"robustness: unknown argument '{name}'; {nearest(name, known)}")


def measure_model(
    model: nn.Module, x: Any, y: Any, settings: dict[str, Any], folder: Path, note: Note
) -> Measurement:
    """Attack a model by `bench.evaluate`.

    Args:
        model: Maps images (n, c, h, w) in [0, 1] to logits (n, classes).
        x: Images (n, c, h, w), or images and labels in any form that `bench.evaluate` takes.
        y: Labels (n,); None where `x` has them.
        settings: Further keyword arguments of `bench.evaluate`.
        folder: Where a failed assertion saves what was fooled.
        note: Receives accuracies and findings.

    Returns:
        One level of robust accuracy per eps.

    Raises:
        AssertionError: The cell failed, for example because most images violate the threat model.
    """
    with warnings.catch_warnings():  # the test's report has them
        warnings.simplefilter("ignore", RobustnessWarning)
        data = as_data(x, y)
        found = api.evaluate(model, data, **settings, keep_adversarial=True)
    name, levels = type(model).__name__, []
    for row in found.table.to_dict("records"):
        if row["status"] != "ok":
            raise AssertionError(
                f"{name} under {row['attack']}, {row['norm']}, eps {row['eps']:g}: {row['reason']}"
            )
        records = found.records[found.records["eps"] == row["eps"]]
        level = Level(
            where=f"{name} under {row['attack']}, {row['norm']}, eps {row['eps']:g}",
            eps=row["eps"],
            robust=metrics.rate(row["robust_correct"], row["n"]),
            clean_correct=row["clean_correct"],
            violations=row["violations"],
            fooled=records[records["clean_correct"] & records["fooled"]],
        )
        levels.append(level)
    _noted(levels, found.findings, note)
    assert found.adversarial is not None
    return Measurement(levels, lambda: _saved(found, levels, data, folder), found.findings)


def measure_suite(suite: str, settings: dict[str, Any], folder: Path, note: Note) -> Measurement:
    """Run a suite and take the worst case over its attacks.

    Args:
        suite: Path or name of a shipped suite.
        settings: Keyword arguments of `bench.run`.
        folder: The run's folder.
        note: Receives accuracies and findings.

    Returns:
        One level of robust accuracy for each model, norm and eps.

    Raises:
        AssertionError: A cell failed; an attack that did not run does not show robustness.
    """
    found = api.run(suite, out=folder, **settings)
    if len(unfinished := found.unfinished()):
        cells = [f"{row.model} under {row.attack}: {row.reason}" for row in unfinished.itertuples()]
        raise AssertionError(
            f"{format_plural(len(cells), 'cell')} of {suite} failed: " + "; ".join(cells)
        )
    broken = found.table.groupby(["model", "norm", "eps"])["violations"].sum()
    levels = [
        Level(
            where=f"{row['model']} under the worst of {format_plural(row['attacks'], 'attack')}, "
            f"{row['norm']}, {row['goal']}, eps {row['eps']:g}",
            eps=row["eps"],
            robust=metrics.rate(row["robust_correct"], row["n"]),
            clean_correct=row["clean_correct"],
            violations=int(broken.loc[row["model"], row["norm"], row["eps"]]),
            fooled=pd.DataFrame(),
        )
        for row in found.worst.to_dict("records")
    ]
    doubts = [*found.notes, *(symptom.sentence for symptom in found.audit.symptoms)]
    _noted(levels, doubts, note)
    return Measurement(levels, lambda: _reported(suite, folder), doubts)


def _noted(levels: Sequence[Level], findings: Sequence[str], note: Note) -> None:
    for finding in findings:
        note("robustness_finding", finding)
    for level in levels:
        k, n = level.robust.k, level.robust.n
        note("robust_accuracy", f"{level.where}: {k} of {n}, {format_interval(level.robust)}")


def format_interval(rate: metrics.Rate) -> str:
    """Format a rate with its interval.

    Args:
        rate: Of robust examples.

    Returns:
        Percentages.
    """
    return f"{format_percent(rate.value)} [{format_percent(rate.low)}, {format_percent(rate.high)}]"


def _saved(found: api.Evaluation, levels: Sequence[Level], data: Data, folder: Path) -> Path:
    """Table, records and the first fooled examples, before and after, as images."""
    assert found.adversarial is not None
    for path in folder.glob("eps-*/*.png"):  # of an earlier session
        remove(path)
    for name, frame in (("table", found.table), ("records", found.records)):
        write_atomic(folder / f"{name}.csv", spreadsheet.to_csv(frame))
    for at, level in enumerate(levels):
        place = folder / f"eps-{level.eps:g}"
        pictured = data.shape[0] in (1, 3)  # what a PNG can hold
        for row in level.fooled.head(MAX_SAVED if pictured else 0).to_dict("records"):
            example, after = int(row["example"]), row["adv_pred"]
            clean = data.read(example, example + 1)[0]
            pair = [clean, found.adversarial[at, example].cpu()]
            name = f"{example}-{row['label']}-to-{after}.png"
            image_files.write_png(_enlarge(torch.cat(pair, dim=2).clamp(0, 1), data), place / name)
    return folder


def _enlarge(picture: Tensor, data: Data) -> Tensor:
    """Repeat pixels (nearest neighbour) until an image of the data has at least MIN_PIXELS."""
    factor = math.ceil(MIN_PIXELS / min(data.shape[1:]))
    return picture.repeat_interleave(factor, 1).repeat_interleave(factor, 2)


def _reported(suite: str, folder: Path) -> Path:
    """The report of a suite's run."""
    from bench.analysis import results
    from bench.reporting import run_output

    return run_output.write_run_output(results.read_results(folder), folder)
