"""The command line, one file for each group of verbs: parse, call, print. Progress bars and colour
live here alone.

Exit codes: 0 all well; 1 a cell failed or none ran, or a check found a regression; 2 the user's
mistake, told in one sentence on stderr; 3 a check could not compare; 130 interrupted, with
everything that was finished kept.
"""

from bench.cli import (
    compare,
    explain,
    gate,
    image,
    leaderboard,
    listing,
    publish,
    rerun,
    run,
    speed,
    train,
)
from bench.cli.app import cli, main

__all__ = [
    "cli", "compare", "explain", "gate", "image", "leaderboard", "listing", "main", "publish",
    "rerun", "run", "speed", "train",
]  # fmt: skip
