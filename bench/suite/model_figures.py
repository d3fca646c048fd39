"""Collect the figures that the sources of a suite's models report, beside its [[published]] tables.

A model's record may name figures of its source (`Model.figures`), as those of RobustBench do. They
are compared with the attacks of the suite that measure the same.
"""

import math
from collections.abc import Iterator

from bench.core import registry
from bench.core.contracts.model import Model, PublishedFigure
from bench.suite.references import ReferenceFigure
from bench.suite.schema import Suite

SAME_EPS = 0.02
"""Relative difference up to which two eps are the same: sources write 8/255 as 0.031, too."""


def collect_figures(suite: Suite) -> tuple[ReferenceFigure, ...]:
    """Collect all reference figures of a suite: its own, then those of its models' sources.

    Args:
        suite: The checked suite.

    Returns:
        Figures for attacks and eps that the suite runs.
    """
    found = []
    for entry in suite.models:
        record = registry.find("models", entry.name, suite.base)
        if isinstance(record, Model) and record.figures is not None:
            for figure in record.figures(**entry.params):
                found += list(_match_attacks(figure, entry.label, suite))
    return (*suite.published, *found)


def _match_attacks(figure: PublishedFigure, model: str, suite: Suite) -> Iterator[ReferenceFigure]:
    """Yield a figure once for each attack of the suite that it is comparable with."""
    for attack in suite.attacks:
        if attack.goal != "untargeted" or attack.source not in (None, model):
            continue
        same = attack.name in figure.attacks and attack.norm == figure.norm
        for eps in attack.eps:
            if figure.attacks and not (
                same and math.isclose(eps.value, figure.eps, rel_tol=SAME_EPS)
            ):
                continue
            yield ReferenceFigure(
                model=model,
                attack=attack.label,
                source=figure.source,
                figure=figure.figure,
                eps=(eps.value,),
                values=(figure.value,),
                note=figure.note,
            )
            if not figure.attacks:  # clean accuracy is the same in all cells
                return
