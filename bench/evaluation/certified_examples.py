"""Attack only the examples of a chunk that no certificate proves robust at an eps.

What is certified at an eps is certified at every smaller one, but not at larger ones: each example
has its own list of eps at which it is attacked. Examples with the same list are attacked in one
stream. Random numbers are keyed by example, so that the outcome of an example does not depend on
which others are left out.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor, nn

from bench.core.contracts.attack import AttackSpec
from bench.engine import timing
from bench.evaluation.chunk import ChunkCost, VerifiedChunk, evaluate_chunk
from bench.evaluation.crafting import Examples
from bench.evaluation.queries import counts_queries

CertifiedIds = Mapping[str, Collection[int]]
"""Identity of a cell -> ids of the examples that are certified at its eps."""


def mark_certified(cells: Sequence[str], certified: CertifiedIds, first: int, last: int) -> Tensor:
    """Mark the certified examples of a chunk.

    Args:
        cells: Identities of e cells.
        certified: Certified examples of each cell; a cell that is absent has none.
        first: Id of the chunk's first example.
        last: Id after its last example.

    Returns:
        Bool (e, last - first), on the CPU.
    """
    marks = torch.zeros(len(cells), last - first, dtype=torch.bool)
    for at, cell in enumerate(cells):
        inside = [example - first for example in certified.get(cell, ()) if first <= example < last]
        marks[at, inside] = True
    return marks


def evaluate_uncertified(
    model: nn.Module,
    spec: AttackSpec,
    examples: Examples,
    certified: Tensor,
    rows: int,
    floor: timing.Floor | None,
    *,
    source: nn.Module | None = None,
    judge_rows: int | None = None,
    accelerated: nn.Module | None = None,
) -> VerifiedChunk:
    """Attack each example at those eps of a spec at which it is not certified.

    Args:
        model: The judged model.
        spec: The attack with its e eps.
        examples: The chunk's n examples with their clean predictions.
        certified: Whether an example is certified at an eps, (e, n), bool.
        rows: As in `evaluate_chunk`, and all further arguments.
        floor: Likewise.
        source: Likewise.
        judge_rows: Likewise.
        accelerated: Likewise.

    Returns:
        Records, costs and images for each eps. A certified example that the model classifies
        correctly has a record of an example that was not attacked, with `certified` set and no
        passes; where queries are counted it falls at none. No losses where any is certified.
    """
    judge_rows = judge_rows or rows
    certified = certified & (torch.tensor(spec.eps)[:, None] > 0)
    if certified.any():  # on the CPU still
        certified = certified.to(examples.id.device) & (examples.clean_pred == examples.label)
        if spec.goal == "targeted":
            certified &= examples.target != examples.label
    if not certified.any():
        return evaluate_chunk(
            model, spec, examples, rows, floor,
            source=source, judge_rows=judge_rows, accelerated=accelerated,
        )  # fmt: skip
    everyone = torch.ones_like(certified[0])
    joined = evaluate_chunk(
        model, spec, examples, rows, None, judge_rows=judge_rows, spared=everyone
    )
    counted = counts_queries(spec) and (source is None or source is model)
    joined = joined._replace(
        records=[
            _mark_records(frame, marks, counted)
            for frame, marks in zip(joined.records, certified, strict=True)
        ]
    )
    patterns, members = torch.unique(certified, dim=1, return_inverse=True)
    for number, pattern in enumerate(patterns.unbind(1)):
        indices = (~pattern).nonzero()[:, 0].tolist()
        if not indices:
            continue
        own = members == number
        attacked = replace(spec, eps=tuple(spec.eps[at] for at in indices))
        if joined.dropped:  # in another group
            accelerated, attacked = None, replace(attacked, precision="float32")
        found = evaluate_chunk(
            model, attacked, examples, joined.rows, floor,
            source=source, judge_rows=judge_rows, accelerated=accelerated, spared=~own,
        )  # fmt: skip
        joined = _join(joined, found, indices, own.cpu())
    return joined


def _mark_records(frame: pd.DataFrame, certified: Tensor, counted: bool) -> pd.DataFrame:
    """Set what distinguishes certified examples from others that were not attacked."""
    marks = certified.cpu().numpy()
    queries = frame["queries"].mask(marks, torch.inf) if counted else frame["queries"]
    return frame.assign(certified=marks, queries=queries)


def _join(
    joined: VerifiedChunk, found: VerifiedChunk, indices: Sequence[int], own: Tensor
) -> VerifiedChunk:
    """Put the rows `own` (n,) of what was found at the eps of some indices into their places."""
    records, costs = [*joined.records], [*joined.costs]
    marks = own.numpy()
    for place, at in enumerate(indices):
        pieces = [records[at][~marks], found.records[place][marks]]
        records[at] = pd.concat([piece for piece in pieces if len(piece)]).sort_index()
        costs[at] = _add_costs(costs[at], found.costs[place])
        joined.x_adv[at, own] = found.x_adv[place, own]
    return joined._replace(
        records=records,
        costs=costs,
        rows=min(joined.rows, found.rows),
        dropped=joined.dropped or found.dropped,
    )


def _add_costs(one: ChunkCost, other: ChunkCost) -> ChunkCost:
    return one._replace(
        **{name: getattr(one, name) + getattr(other, name) for name in ChunkCost._fields}
    )
