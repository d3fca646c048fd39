"""Show results where they are printed: as text in a console, as tables in a notebook."""

import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd
from rich.console import Console

from bench.core.errors import SuiteError
from bench.reporting import terminal
from bench.reporting.formats.numbers import map_eps_texts
from bench.reporting.report import accuracy_view

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 120
"""Columns of printed results."""


class Display:
    """Results with a table, which print their robust accuracies and plot themselves."""

    table: pd.DataFrame
    """One row per cell, the columns of table.csv."""

    def _worst_cases(self) -> pd.DataFrame | None:
        """Return the rows of worst.csv, or None where there is one attack."""
        return None

    def _list_remarks(self) -> Sequence[str]:
        """List sentences to show below the table."""
        return ()

    def __repr__(self) -> str:
        """Return the robust accuracies by attack and eps, as the command line prints them."""
        screen = Console(
            file=io.StringIO(), width=WIDTH, color_system=None, markup=False, emoji=False,
            highlight=False, force_jupyter=False,  # in Jupyter it would display, and return ""
        )  # fmt: skip
        terminal.print_accuracies(self.table, screen, self._worst_cases())
        for sentence in self._list_remarks():
            screen.print(sentence, soft_wrap=True)
        assert isinstance(screen.file, io.StringIO)
        return screen.file.getvalue().rstrip()

    def _repr_html_(self) -> str:
        """Return the same as HTML, which a notebook shows."""
        texts = map_eps_texts(self.table)
        views = accuracy_view.tabulate_attacks(self.table, texts)
        worst = self._worst_cases()
        if worst is not None and len(worst):
            views += accuracy_view.tabulate_worst_case(worst, self.table, texts)
        parts = []
        for view in views:
            notes = [f"[{number}] {note}" for number, note in enumerate(view.notes, 1)]
            parts.append(f"<p>{html.escape(view.caption)}</p>{view.frame.to_html(index=False)}")
            parts += [f"<p>{html.escape(note)}</p>" for note in notes]
        parts += [f"<p>{html.escape(sentence)}</p>" for sentence in self._list_remarks()]
        return "\n".join(parts)

    def plot(self, model: str | None = None, norm: str | None = None) -> "Figure":
        """Plot robust accuracy against eps, one curve per attack.

        Args:
            model: Label of the model; the first by default.
            norm: The norm; the model's first by default.

        Returns:
            The figure, which a notebook shows.

        Raises:
            SuiteError: There is no such model, or no attack on it in the norm.
        """
        from bench.reporting.plots.curves import plot_accuracy_curves

        label = model or str(self.table["model"].iloc[0])
        norms = list(dict.fromkeys(self.table.loc[self.table["model"] == label, "norm"]))
        if not norms:
            known = ", ".join(dict.fromkeys(self.table["model"]))
            raise SuiteError(f"plot: no model '{label}'; known: {known}")
        if norm is not None and norm not in norms:
            raise SuiteError(f"plot: no attack on '{label}' in '{norm}'; known: {', '.join(norms)}")
        return plot_accuracy_curves(self.table, label, norm or norms[0])
