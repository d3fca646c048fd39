"""Measure robust accuracy for the fixture `robustness`, and assert a lower bound of it."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import nn

from bench import api
from bench.core.contracts.dataset import Data
from bench.core.errors import RobustnessWarning
from bench.core.files import write_atomic
from bench.datasets import image_files
from bench.datasets.as_data import as_data
from bench.evaluation import metrics
from bench.reporting.formats.numbers import format_percent, format_plural
from bench.storage import spreadsheet

MAX_LISTED = 8
"""Fooled examples that a message names."""
MAX_SAVED = 25
"""Fooled examples of an eps that are saved as images."""

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


@dataclass(frozen=True)
class RobustnessAssertion:
    """Robust accuracy at one or several eps."""

    levels: Sequence[Level]
    save: Callable[[], Path]
    """Writes the fooled examples and records; returns their folder."""
    findings: Sequence[str] = ()
    """Reasons to doubt the numbers, a sentence each: of preflight and of the audit."""

    def at_least(self, share: float | Mapping[float, float], *, confident: bool = False) -> None:
        """Assert a lower bound of the robust accuracy.

        Args:
            share: Required share of robust examples in [0, 1], at every eps, or one per eps.
            confident: Compare the lower end of the 95 % interval, so that a small sample does not
                pass by chance.

        Raises:
            AssertionError: The accuracy is lower, or images violate the threat model; the message
                names the difference and the first fooled examples.
            ValueError: A share is outside [0, 1], or an eps was not measured.
        """
        __tracebackhide__ = True  # pytest shows the test's line, not this one
        wanted = self._wanted(share)
        spoilt = [level for level in self.levels if level.eps in wanted and level.violations]
        short = [
            level
            for level in self.levels
            if level.eps in wanted and _reached(level, confident) < wanted[level.eps] - 1e-12
        ]
        if not spoilt and not short:
            return
        lines = [
            f"{level.where}: {format_plural(level.violations, 'image')} broke the threat model, so "
            "the robust accuracy is not to be relied on"
            for level in spoilt
        ]
        lines += [_missed(level, wanted[level.eps], confident) for level in short]
        lines += [f"Beware: {finding}" for finding in self.findings]
        raise AssertionError("\n".join([*lines, f"Seen: {self.save()}"]))

    def _wanted(self, share: float | Mapping[float, float]) -> dict[float, float]:
        measured = {level.eps for level in self.levels}
        wanted = dict(share) if isinstance(share, Mapping) else dict.fromkeys(measured, share)
        for eps, least in wanted.items():
            if eps not in measured:
                raise ValueError(f"at_least: expected an eps of {sorted(measured)}, got {eps}")
            if not 0 <= least <= 1:
                raise ValueError(f"at_least: expected a share in [0, 1], got {least}")
        return wanted


def measure_model(
    model: nn.Module, x: Any, y: Any, settings: dict[str, Any], folder: Path, note: Note
) -> RobustnessAssertion:
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
    return RobustnessAssertion(levels, lambda: _saved(found, levels, data, folder), found.findings)


def measure_suite(
    suite: str, settings: dict[str, Any], folder: Path, note: Note
) -> RobustnessAssertion:
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
    return RobustnessAssertion(levels, lambda: _reported(suite, folder), doubts)


def _noted(levels: Sequence[Level], findings: Sequence[str], note: Note) -> None:
    for finding in findings:
        note("robustness_finding", finding)
    for level in levels:
        k, n = level.robust.k, level.robust.n
        note("robust_accuracy", f"{level.where}: {k} of {n}, {_interval(level.robust)}")


def _reached(level: Level, confident: bool) -> float:
    return level.robust.low if confident else level.robust.value


def _interval(rate: metrics.Rate) -> str:
    return f"{format_percent(rate.value)} [{format_percent(rate.low)}, {format_percent(rate.high)}]"


def _missed(level: Level, wanted: float, confident: bool) -> str:
    """A level that misses what is wanted, in one line, and its first fooled examples in another."""
    k, n = level.robust.k, level.robust.n
    bound = "with 95 % confidence " if confident else ""
    sentence = (
        f"{level.where}: {k} of {n} examples are robust, {_interval(level.robust)}, "
        f"expected at least {format_percent(wanted)} {bound}"
        f"({level.clean_correct} are right unattacked)"
    )
    if not len(level.fooled):
        return sentence
    named = [
        f"{row.example} ({row.label} → {row.adv_pred})"
        for row in level.fooled.head(MAX_LISTED).itertuples()
    ]
    rest = len(level.fooled) - len(named)
    return f"{sentence}\n  fooled: {', '.join(named)}" + (f" and {rest} more" if rest else "")


def _saved(found: api.Evaluation, levels: Sequence[Level], data: Data, folder: Path) -> Path:
    """Table, records and the first fooled examples, before and after, as images."""
    assert found.adversarial is not None
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
            image_files.write_png(torch.cat(pair, dim=2).clamp(0, 1), place / name)
    return folder


def _reported(suite: str, folder: Path) -> Path:
    """The report of a suite's run."""
    from bench.analysis import results
    from bench.reporting import run_output

    return run_output.write_run_output(results.read_results(folder), folder)
