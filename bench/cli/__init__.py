"""The command line, one file for each group of verbs: parse, call, print. Progress bars and colour
live here alone.

Exit codes: 0 all well; 1 a cell failed or none ran; 2 the user's mistake, told in one sentence on
stderr; 130 interrupted, with everything that was finished kept.
"""

from bench.cli import explain, image, listing, run, speed, train
from bench.cli.app import cli, main

__all__ = ["cli", "explain", "image", "listing", "main", "run", "speed", "train"]
