"""The competitors of `bench speed`, one file each: `list_variants(work)` lists its variants.

A library is imported only when its work is prepared, so that a missing one is a line of the table.
All get the same images, labels, eps, step sizes, number of steps and kind of start; remaining
differences are stated in the competitor's note.
"""

from collections.abc import Iterator, Sequence

import torch

from bench.engine.device import has_tf32
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
from bench.workflows.speed.setup import Competitor
from bench.workflows.speed.workloads import Workload

FILES = (bench_engine, bare_loop, tutorial, torchattacks, foolbox, art, adv_lib, pyautoattack)
CPU = torch.device("cpu")
PEERS = ("torchattacks", "foolbox", "art", "adv_lib", "pyautoattack")
"""Names of the libraries, for --peer."""


def list_competitors(
    work: Workload, peers: Sequence[str] = PEERS, device: torch.device = CPU
) -> Iterator[Competitor]:
    """List the competitors for a workload, bench first.

    Args:
        work: The workload.
        peers: Names of the libraries to include.
        device: Where they run; without TF32, those that need it are left out.

    Yields:
        Competitors.
    """
    for file in FILES:
        for competitor in file.list_variants(work):
            is_chosen = not competitor.peer or competitor.peer in peers
            if is_chosen and not (competitor.needs_tf32 and not has_tf32(device)):
                yield competitor
