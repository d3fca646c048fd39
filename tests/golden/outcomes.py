"""Outcomes that are stored with the versions they were made by; `python tests/golden/outcomes.py`
makes and stores them again.

Identities of cells name versions and no source text. So whoever changes an outcome must raise the
`version` of the attack or model, NUMERICS_VERSION or JUDGE_VERSION of bench.core.versions,
or finished cells go on saying what the old code said. These outcomes notice when nobody did.

Every registered attack runs in every norm, away from the label with the stop at the first success
and towards the next class with all steps, at two eps, on ten digits against a small net. Stored are
which examples were fooled, the mean confidence and distance, and the hash of all records, which
holds for one processor and version of torch. An outcome that rounding decides, seen by moving the
weights a little, is stored as "?" and not compared; what a mean moves by is its tolerance.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import load_file
from torch import nn

from bench.core import registry, versions
from bench.core.contracts.attack import EnsembleAttack
from bench.core.contracts.types import BALLS, Norm
from bench.datasets import digits
from bench.engine import device
from bench.engine.threats.registry import find_threat
from bench.evaluation.evaluator import Evaluator
from bench.models.preflight import checks
from bench.models.published_weights import WEIGHTS
from bench.storage import fingerprint
from bench.suite import plan
from bench.suite.reader import parse_attack

FILE = Path(__file__).with_suffix(".json")
COMMAND = "python tests/golden/outcomes.py"
NET = "lenet-digits"
EXAMPLES, PROBES = 10, 16
EPS = {
    **{norm: find_threat(norm).example_levels for norm in get_args(Norm) if norm not in BALLS},
    "linf": [0.1, 0.2], "l2": [0.8, 1.6], "l1": [6, 15], "l0": [8, 25],
}  # fmt: skip
GOALS = {"untargeted": {}, "targeted": {"target": "next", "stop": "never"}}
SHORT = {"steps": 6, "queries": 30, "targets": 2}
"""Params by which an attack is quick, where it has them; a search for the least distance, and one
that tries squares, makes more steps to find anything."""
SEEKING = {"steps": 20}
MOVES = (1e-6, -1e-6)
"""Shares of themselves by which the weights are moved."""
DECIMALS = 1e-3
"""By how much a mean may differ on another machine, at least."""


def attacks() -> list[str]:
    """The registered attacks of bench's own code; a library's outcomes change with the library."""
    names = [name for name in registry.names("attacks") if not name.endswith(":")]
    return [name for name in names if registry.find("attacks", name).implementation == "bench"]


def published() -> list[str]:
    """The shipped weights, "model-data", of all small models."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def machine() -> dict[str, str]:
    """What the last bits depend on."""
    return {
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "processor": device.device_name(torch.device("cpu")),
    }


def versions_of(attack: str) -> dict[str, int]:
    """The versions that an attack's outcomes were made by: its own and those of its parts."""
    record = registry.find("attacks", attack)
    ensemble = isinstance(record, EnsembleAttack)
    parts = record.parts(record.params(), record.norms[0]) if ensemble else []
    return {
        "numerics": versions.NUMERICS_VERSION,
        "judge": versions.JUDGE_VERSION,
        "model": registry.find("models", NET.partition("-")[0]).version,
        attack: record.version,
        **{part.name: part.attack.version for part in parts},
    }


def of_attack(attack: str, moved: float = 0.0) -> dict[str, Any]:
    """Run every norm and goal of a registered attack.

    Args:
        attack: Its name.
        moved: Share of itself by which each weight of the net is moved, up or down.

    Returns:
        Case -> outcomes, and the versions that they were made by.
    """
    record = registry.find("attacks", attack)
    evaluator = _evaluator(moved)
    cases = {
        f"{norm}, {goal}": _case(evaluator, attack, norm, goal)
        for norm in record.norms
        for goal in record.goals
    }
    return {"versions": versions_of(attack), "cases": cases}


def of_model(weights: str) -> dict[str, Any]:
    """Ask a shipped model about the probe digits."""
    name = weights.partition("-")[0]
    with torch.no_grad():
        logits = _built(weights)(digits.load(limit=PROBES).read(0, PROBES))
    best = [round(float(value), 3) for value in logits.softmax(1).amax(1)]
    version = registry.find("models", name).version
    return {"version": version, "class": logits.argmax(1).tolist(), "confidence": best}


def changed(stored: Mapping[str, Any], now: Mapping[str, Any], exactly: bool) -> list[str]:
    """Compare an attack's outcomes with the stored ones of the same versions.

    Args:
        stored: As in FILE.
        now: As `of_attack` gives.
        exactly: Whether the hashes must agree, too.

    Returns:
        The cases that differ.
    """
    differing = []
    for case, before in stored["cases"].items():
        here = now["cases"].get(case)
        if here is None or not _same(before, here) or (exactly and before["hash"] != here["hash"]):
            differing.append(case)
    return [*differing, *(case for case in now["cases"] if case not in stored["cases"])]


def _same(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    bits = all(
        one == other or one == "?"
        for ours, theirs in zip(before["fooled"], now["fooled"], strict=True)
        for one, other in zip(ours, theirs, strict=True)
    )
    near = all(
        abs(one - other) <= before["tolerance"]
        for key in ("confidence", "distance")
        for one, other in zip(before[key], now[key], strict=True)
    )
    return bits and near


def _evaluator(moved: float) -> Evaluator:
    model, data = _built(NET), digits.load(limit=EXAMPLES)
    with torch.no_grad():
        for at, parameter in enumerate(model.parameters()):
            parameter.mul_(1 + moved * (-1) ** at)
    loaded = checks.preflight("net", model, data, torch.device("cpu"))
    return Evaluator(
        suite="golden", seed=0, device=torch.device("cpu"), data=data, models={"net": loaded},
        rows={"net": EXAMPLES}, fixed_rows=True, use_acceleration=False,
    )  # fmt: skip


def _built(weights: str) -> nn.Module:
    model: nn.Module = registry.find("models", weights.partition("-")[0]).build()
    model.load_state_dict(load_file(WEIGHTS / f"{weights}.safetensors"))
    return model.eval()


def _case(evaluator: Evaluator, attack: str, norm: str, goal: str) -> dict[str, Any]:
    record = registry.find("attacks", attack)
    fields = {field.name for field in dataclasses.fields(record.params)}
    wanted = SHORT | (SEEKING if record.budget == "minimum" or record.needs == "scores" else {})
    raw = {
        "name": attack, "norm": norm, "eps": [*EPS[norm]], "goal": goal, **GOALS[goal],
        "params": {key: value for key, value in wanted.items() if key in fields},
    }  # fmt: skip
    task = plan.plan_task(
        "net", parse_attack(raw, "golden"), evaluator.model_facts("net"), 0, "independent"
    )
    frame = evaluator.evaluate_chunk(task, 0, EXAMPLES).frame
    # Identities are no outcome: each cell is called by its eps.
    frame = frame.assign(
        cell=frame["eps"].astype(str), violation=frame["violation"].ne("").map(str)
    )
    cells = [frame[frame["eps"] == cell.eps] for cell in task.cells]
    measured = norm if norm in BALLS else "l2"
    robust = [int((rows["clean_correct"] & ~rows["fooled"]).sum()) for rows in cells]
    return {
        "robust": robust,
        "fooled": ["".join(str(int(bit)) for bit in rows["fooled"]) for rows in cells],
        "confidence": [round(float(rows["confidence"].mean()), 5) for rows in cells],
        "distance": [round(float(rows[measured].mean()), 5) for rows in cells],
        "hash": fingerprint.records_hash(frame)[:16],
    }


# -------------------------------------------------------------------------------------- storing


def stored() -> dict[str, Any]:
    """All that is stored."""
    outcomes: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return outcomes


def store(names: Sequence[str] = ()) -> None:
    """Make the outcomes of these attacks, or of all, and of the models, and write FILE."""
    old = stored()
    outcomes = {name: _settled(name) for name in names or attacks()}
    for name, outcome in outcomes.items():
        _allow_for(outcome, old["attacks"].get(name, {"versions": {}}))
    known = {name: old["attacks"][name] for name in attacks() if name in old["attacks"]}
    text = json.dumps(
        {
            "machine": machine(),
            "models": {weights: of_model(weights) for weights in published()},
            "attacks": dict(sorted({**known, **outcomes}.items())),
        },
        indent=1,
    )
    FILE.write_text(text + "\n", encoding="utf-8")


def _settled(attack: str) -> dict[str, Any]:
    """The outcomes of an attack, without what rounding decides."""
    settled = of_attack(attack)
    others = [of_attack(attack, moved) for moved in MOVES]
    for case, outcome in settled["cases"].items():
        again = [other["cases"][case] for other in others]
        outcome["fooled"] = [
            "".join(_bit(bits) for bits in zip(*columns, strict=True))
            for columns in zip(outcome["fooled"], *(each["fooled"] for each in again), strict=True)
        ]
        outcome["tolerance"] = round(max(_moves(outcome, again)), 5)
    return settled


def _allow_for(outcome: dict[str, Any], earlier: Mapping[str, Any]) -> None:
    """Tolerate what another machine stored under the same versions, and what it tolerated."""
    if earlier["versions"] != outcome["versions"]:
        return
    for case, before in earlier["cases"].items():
        now = outcome["cases"][case]
        now["fooled"] = [
            "".join(_bit(bits) for bits in zip(*columns, strict=True))
            for columns in zip(now["fooled"], before["fooled"], strict=True)
        ]
        moved = [2 * move for move in _differences(now, before)]
        now["tolerance"] = round(max(now["tolerance"], before["tolerance"], *moved), 5)


def _bit(bits: Sequence[str]) -> str:
    return bits[0] if len(set(bits)) == 1 else "?"


def _moves(outcome: Mapping[str, Any], again: Sequence[Mapping[str, Any]]) -> Iterator[float]:
    yield DECIMALS
    for other in again:
        yield from (10 * difference for difference in _differences(outcome, other))


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[float]:
    for key in ("confidence", "distance"):
        yield from (abs(a - b) for a, b in zip(one[key], other[key], strict=True))


if __name__ == "__main__":
    torch.set_num_threads(1)
    store(sys.argv[1:])
