"""Runs here are cheap, and processes can be forked: see tests/helpers."""

from cheap_runs import few_rows, no_figures
from warm_processes import warm

__all__ = ["few_rows", "no_figures", "warm"]
