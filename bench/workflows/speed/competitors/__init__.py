"""One file per contestant: `enter(work)` names the ways in which it does that work.

A library is imported only when it is prepared, so that one which is not installed is a line of
the table. All get the same images, labels, eps, step sizes, number of steps and kind of start;
what differs none the less stands in the contestant's note.
"""

from collections.abc import Iterator, Sequence

from bench.workflows.speed.competitors import (
    adv_lib,
    art,
    bare_loop,
    bench_engine,
    foolbox,
    pyautoattack,
    torchattacks,
    tutorial,
)
from bench.workflows.speed.setup import Contestant
from bench.workflows.speed.workloads import Work

FILES = (bench_engine, bare_loop, tutorial, torchattacks, foolbox, art, adv_lib, pyautoattack)
PEERS = ("torchattacks", "foolbox", "art", "adv_lib", "pyautoattack")
"""Names of the libraries, for --peer."""


def entered(work: Work, peers: Sequence[str] = PEERS) -> Iterator[Contestant]:
    """Everyone who races at `work`, bench first; of the libraries those named."""
    for file in FILES:
        for contestant in file.enter(work):
            if not contestant.peer or contestant.peer in peers:
                yield contestant
