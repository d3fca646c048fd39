"""Snapshots of runs that never were, for the tests that need not run anything."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.analysis import snapshot
from bench.analysis.snapshot import Snapshot

MACHINE = snapshot.MachineSnapshot(device="cpu", processor="a processor", threads=1)
SETTINGS = {"attack": "walk", "code": "1", "norm": "linf", "params.steps": 20}

Make = Callable[..., Snapshot]


def make_snapshot(
    cells: Mapping[tuple[str, str, float], Sequence[bool] | str],
    clean: Mapping[str, Sequence[bool]] | None = None,
    n: int = 100,
    violations: int = 0,
    ratio: float | None = 0.4,
    seconds: float = 5.0,
    clock: float = 5.0,
    settings: Mapping[str, Any] = SETTINGS,
    signs: Sequence[str] = (),
    **about: Any,
) -> Snapshot:
    """A snapshot with these `cells`: outcomes by (model, attack, eps), or a status other than ok.

    Every example is right without attack unless `clean` says otherwise; the rest holds for all
    models and attacks alike.
    """
    right = dict.fromkeys((model for model, _, _ in cells), [True] * n) | dict(clean or {})
    bits = {
        key: snapshot.pack_outcomes(pd.Series(np.asarray(value, dtype=bool)))
        for key, value in {**right, **cells}.items()
        if not isinstance(value, str)
    }
    fields: dict[str, Any] = {
        "schema": 1,
        "suite": "s",
        "seed": 0,
        "data": snapshot.DataSnapshot(name="digits", n=n, fingerprint="f"),
        "machine": MACHINE,
        "provenance": {},
        "models": [
            snapshot.ModelSnapshot(
                model=model, fingerprint="m", clean_correct=int(np.sum(right[model])),
                signs=list(signs), clean=bits[model],
            )
            for model in right
        ],
        "tasks": [
            snapshot.AttackSnapshot(
                model=model, attack=attack, family=attack, settings=dict(settings),
                floor_ratio=ratio, seconds=seconds, clock_seconds=clock,
            )
            for model, attack in dict.fromkeys(key[:2] for key in cells)
        ],
        "cells": [
            snapshot.CellSnapshot(
                model=model, attack=attack, eps=eps, eps_text=f"{eps:g}",
                status=value if isinstance(value, str) else "ok",  # type: ignore[arg-type]
                reason=f"was {value}" if isinstance(value, str) else "",
                robust_correct=0 if isinstance(value, str) else int(np.sum(value)),
                violations=0 if isinstance(value, str) else violations,
                robust=bits.get((model, attack, eps), ""),
            )
            for (model, attack, eps), value in cells.items()
        ],
    }  # fmt: skip
    return Snapshot(**fields | about)


@pytest.fixture
def make() -> Make:
    return make_snapshot
