"""The command line, one file for each verb: parse, call, print. Progress bars and colour live here.

Exit codes: 0 all well; 1 a cell failed or none ran, or a check found a regression; 2 the user's
mistake, reported in one sentence on stderr; 3 a check could not compare; 130 interrupted, with
everything that was finished stored. `main` holds the group and the options that verbs share.
"""

from bench.cli import (
    attack,
    compare,
    explain,
    gate,
    gpu_check,
    init,
    leaderboard,
    merge,
    publish,
    report,
    rerun,
    run,
    schema,
    speed,
    train,
)
from bench.cli import list as list_verbs
from bench.cli.main import cli, main

__all__ = [
    "attack", "cli", "compare", "explain", "gate", "gpu_check", "init", "leaderboard",
    "list_verbs", "main", "merge", "publish", "report", "rerun", "run", "schema", "speed", "train",
]  # fmt: skip
