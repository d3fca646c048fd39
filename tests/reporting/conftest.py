"""Runs here are cheap: see tests/helpers/cheap_runs.py."""

from cheap_runs import few_rows, no_figures

__all__ = ["few_rows", "no_figures"]
