"""Runs here are cheap, and workers can be forked: see tests/helpers."""

from cheap_runs import few_rows, no_figures
from warm_processes import forked_workers, warm

__all__ = ["few_rows", "forked_workers", "no_figures", "warm"]
