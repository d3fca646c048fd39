"""Compare cells on the same examples: pairs of attacks, pairs of models, and several seeds.

Two attacks on one model are compared by the examples on which each succeeds, two models under one
attack by the examples on which each is robust. Each pair is compared by the exact McNemar test; the
p-values are corrected for all pairs of the run by Holm's procedure, so that in 19 of 20 runs no
difference is reported that does not exist. Several seeds of one attack are summarized by their
range and their union.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import pandas as pd

from bench.evaluation import metrics
from bench.evaluation.metrics import Outcomes
from bench.suite.labels import WORST_CASE

COLUMNS = (
    "compared", "model", "attack", "norm", "goal", "target", "eps", "eps_text", "first", "second",
    "n", "only_first", "only_second", "p_value", "p_corrected", "sentence",
)  # fmt: skip
SEED_COLUMNS = (
    "model", "attack", "norm", "goal", "target", "eps", "eps_text", "seeds", "n", "least",
    "least_low", "least_high", "median", "most", "most_low", "most_high", "union", "union_low",
    "union_high",
)  # fmt: skip


class OutcomePair(NamedTuple):
    """Two outcomes of the same examples, and what they are of."""

    compared: str
    """"attacks" or "models"."""
    place: Mapping[str, Any]
    """What both have in common: the model or the attack, norm, goal, target, eps, eps_text."""
    first: str
    second: str
    outcomes: tuple[Outcomes, Outcomes]
    """Attacks: where each succeeds. Models: where each is robust."""


def compare_pairs(
    table: pd.DataFrame, robust: Mapping[str, Outcomes], fooled: Mapping[str, Outcomes]
) -> pd.DataFrame:
    """Compare every pair of attacks on a model and of models under an attack, at each eps above 0.

    Args:
        table: That of `tables.cell_table`.
        robust: Identity of a cell -> which examples are robust, indexed by example.
        fooled: Identity of a cell -> on which examples the attack succeeded, indexed by example.

    Returns:
        One row per pair, columns COLUMNS.
    """
    done = table[(table["status"] == "ok") & (table["eps"] > 0)]
    return tabulate_pairs([*_attacks(done, fooled), *_models(done, robust), *_worst(done, robust)])


def tabulate_pairs(pairs: Sequence[OutcomePair]) -> pd.DataFrame:
    """Test pairs of outcomes.

    Args:
        pairs: All pairs of one family: their p-values are corrected together.

    Returns:
        One row per pair, columns COLUMNS.
    """
    tests = [metrics.mcnemar_test(*pair.outcomes) for pair in pairs]
    corrected = metrics.holm_correction([test.p_value for test in tests])
    rows = [
        {
            "compared": pair.compared,
            **pair.place,
            "first": pair.first,
            "second": pair.second,
            "n": len(pair.outcomes[0]),
            **test._asdict(),
            "p_corrected": p_value,
            "sentence": _sentence(pair, test, p_value),
        }
        for pair, test, p_value in zip(pairs, tests, corrected, strict=True)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _attacks(done: pd.DataFrame, fooled: Mapping[str, Outcomes]) -> Iterator[OutcomePair]:
    shared = ("model", "norm", "goal", "target", "eps")
    for place, cells in _groups(done, *shared):
        for a, b in itertools.combinations(cells.to_dict("records"), 2):
            sides = fooled[a["cell"]], fooled[b["cell"]]
            yield OutcomePair("attacks", place, a["attack"], b["attack"], sides)


def _models(done: pd.DataFrame, robust: Mapping[str, Outcomes]) -> Iterator[OutcomePair]:
    shared = ("attack", "norm", "goal", "target", "eps")
    for place, cells in _groups(done, *shared):
        for a, b in itertools.combinations(cells.to_dict("records"), 2):
            sides = robust[a["cell"]], robust[b["cell"]]
            yield OutcomePair("models", place, a["model"], b["model"], sides)


def _worst(done: pd.DataFrame, robust: Mapping[str, Outcomes]) -> Iterator[OutcomePair]:
    """Pair the models by their worst case over the attacks that both were attacked with."""
    for place, cells in _groups(done, "norm", "goal", "eps"):
        met = {
            str(model): dict(zip(rows["attack"], rows["cell"], strict=True))
            for model, rows in cells.groupby("model", sort=False)
        }
        about = {**place, "attack": WORST_CASE}
        for a, b in itertools.combinations(met, 2):
            both = [attack for attack in met[a] if attack in met[b]]
            if len(both) > 1:
                left, right = (
                    metrics.worst_case([robust[met[model][attack]] for attack in both])
                    for model in (a, b)
                )
                yield OutcomePair("models", about, a, b, (left, right))


def _groups(rows: pd.DataFrame, *keys: str) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Group rows in the order of the plan: (shared values, rows)."""
    for values, group in rows.groupby(list(keys), sort=False):
        spelling = group["eps_text"].iloc[0]  # "8/255" and 0.03137 are one eps
        yield {**dict(zip(keys, values, strict=True)), "eps_text": spelling}, group


def _sentence(pair: OutcomePair, test: metrics.McNemarTest, p_value: float) -> str:
    """Describe a pair, the outcome with more examples first."""
    does = "breaks {} that {} does not, {} {} that {} does not"
    if pair.compared == "models":
        does = "is robust on {} where {} is not, {} on {} where {} is not"
    (more, a), (fewer, b) = (test.only_first, pair.first), (test.only_second, pair.second)
    if fewer > more:
        (more, a), (fewer, b) = (fewer, b), (more, a)
    examples = f"{more} example{'' if more == 1 else 's'}"
    chance = "p < 0.0001" if p_value < 1e-4 else f"p = {p_value:.2g}"
    return f"{a} {does.format(examples, b, b, fewer, a)} ({chance}, corrected)"


# ------------------------------------------------------------------------------------------- seeds


def seed_table(table: pd.DataFrame, robust: Mapping[str, Outcomes]) -> pd.DataFrame:
    """Summarize the attacks that ran with several seeds.

    Args:
        table: That of `tables.cell_table`.
        robust: Identity of a cell -> which examples are robust, indexed by example.

    Returns:
        One row per attack and eps above 0, columns SEED_COLUMNS: least, median and most of the
        counts of robust examples over seeds, and `union`, the count of examples that are robust
        under every seed.
    """
    done = table[(table["status"] == "ok") & (table["eps"] > 0) & table["seed"].notna()]
    ends = [f", seed {seed}" for seed in done["seed"]]
    names = [str(name).removesuffix(end) for name, end in zip(done["attack"], ends, strict=True)]
    shared = ("model", "attack", "norm", "goal", "target", "eps")
    rows = [
        {**place, **_spread(cells, robust)}
        for place, cells in _groups(done.assign(attack=names), *shared)
        if len(cells) > 1
    ]
    return pd.DataFrame(rows, columns=list(SEED_COLUMNS))


def _spread(cells: pd.DataFrame, robust: Mapping[str, Outcomes]) -> dict[str, object]:
    outcomes = [robust[cell] for cell in cells["cell"]]
    counts, n = [int(outcome.sum()) for outcome in outcomes], len(outcomes[0])
    union = int(metrics.worst_case(outcomes).sum())
    summary: dict[str, object] = {
        "seeds": " ".join(str(seed) for seed in cells["seed"]), "n": n, "median": median(counts),
    }  # fmt: skip
    for name, count in (("least", min(counts)), ("most", max(counts)), ("union", union)):
        rate = metrics.rate(count, n)
        summary |= {name: rate.k, f"{name}_low": rate.low, f"{name}_high": rate.high}
    return summary
