"""Render the results of races: a Markdown table, a CSV frame and a JSON document.

A ratio is the median over rounds of the ratio of times within a round, so that a temporary slowdown
of the machine affects both sides. Smaller is faster. A competitor that leaves more examples robust
than another did less work, so their times do not compare.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from bench.core import files
from bench.reporting.formats import markdown, numbers
from bench.reporting.formats.numbers import DASH
from bench.storage import environment, spreadsheet
from bench.workflows.speed.competitors import bare_loop, torchattacks
from bench.workflows.speed.race import TF32, CompetitorResult, Race
from bench.workflows.speed.setup import RaceTask, format_eps

SCHEMA = 1
CSV = (
    "work", "model", "weights", "data", "n", "attack", "contestant", "version", "status", "reason",
    "note", "batch_size", "rounds", "seconds", "seconds_q1", "seconds_q3", "over_torchattacks",
    "over_torchattacks_q1", "over_torchattacks_q3", "over_bare", "over_bare_q1", "over_bare_q3",
    "setup_seconds", "memory_bytes", "memory_over_bare", "eps", "judged", "robust",
    "robust_accuracy", "robust_beyond_torchattacks", "counted_right", "violations",
)  # fmt: skip
COUNTS = (
    "batch_size", "rounds", "memory_bytes", "judged", "robust", "robust_beyond_torchattacks",
    "counted_right", "violations",
)  # fmt: skip
NAME, MEDIAN, ROBUST = "contestant", "median [quartiles]", "robust at eps"
"""Columns of the table; ROBUST is followed by the eps."""
MIN_SHOWN_SETUP = 0.05
"""Shorter set-up times, in seconds, are not mentioned below the table."""


class Quartiles(NamedTuple):
    """Median and quartiles."""

    median: float
    q1: float
    q3: float


def compute_quartiles(values: Sequence[float]) -> Quartiles | None:
    """Compute median and quartiles.

    Args:
        values: Any number of values.

    Returns:
        The three; None without values.

    >>> compute_quartiles([4.0, 1.0, 2.0])
    Quartiles(median=2.0, q1=1.5, q3=3.0)
    """
    if not values:
        return None
    q1, median, q3 = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return Quartiles(median, q1, q3)


def _base(race: Race, name: str) -> CompetitorResult | None:
    outcomes = [each for each in race.outcomes if each.competitor.name == name]
    return outcomes[0] if outcomes and outcomes[0].status == "ok" else None


def _over(outcome: CompetitorResult, base: CompetitorResult | None) -> Quartiles | None:
    """Compute the ratios of times within each round."""
    if base is None or outcome.status != "ok":
        return None
    return compute_quartiles([a / b for a, b in zip(outcome.seconds, base.seconds, strict=True)])


def _beyond(outcome: CompetitorResult, base: CompetitorResult | None) -> list[int] | None:
    """Count the examples left robust in excess of the base at each eps, among those attacked."""
    if base is None or outcome.robust is None or base.robust is None:
        return None
    m = outcome.robust.shape[1]
    more = outcome.robust.sum(1) - base.robust[:, :m].sum(1)
    return [int(value) for value in more]


# ------------------------------------------------------------------------------------ Markdown


def build_table(race: Race) -> pd.DataFrame:
    """Build the table of a race.

    Args:
        race: A finished race.

    Returns:
        One row of text per competitor.
    """
    return pd.DataFrame([_line(race, outcome) for outcome in race.outcomes])


def _line(race: Race, outcome: CompetitorResult) -> dict[str, str]:
    task, ok = race.task, outcome.status == "ok"
    base, floor = _base(race, torchattacks.NAME), _base(race, bare_loop.NAME)
    beyond = _beyond(outcome, base)
    line = {
        NAME: outcome.competitor.name + ("" if ok else f" ({outcome.status})"),
        "batch": str(outcome.rows) if ok else DASH,
        MEDIAN: _seconds(compute_quartiles(outcome.seconds) if ok else None),
        "over torchattacks": _factor(_over(outcome, base)),
        "over bare loop": _factor(_over(outcome, floor)),
        "robust beyond torchattacks": DASH
        if beyond is None
        else f"{max(beyond):+d}".replace("+0", "0"),
    }
    if any(each.memory is not None or each.memory_reason for each in race.outcomes):
        mib = None if outcome.memory is None else outcome.memory / 2**20
        line["peak memory, MiB"] = numbers.format_number(mib)
        line["memory over bare loop"] = numbers.format_factor(_memory_over(outcome, floor))
    for index, eps in enumerate(format_eps(task.work.eps)):
        share = None if outcome.robust is None or not ok else outcome.robust[index].double().mean()
        line[f"{ROBUST} {eps}"] = numbers.format_percent(share, 2)
    return line


def _seconds(quartiles: Quartiles | None) -> str:
    if quartiles is None:
        return DASH
    median, q1, q3 = (numbers.format_number(value) for value in quartiles)
    return f"{median} s [{q1}, {q3}]"


def _factor(quartiles: Quartiles | None) -> str:
    return DASH if quartiles is None else numbers.format_factor(quartiles.median)


def _memory_over(outcome: CompetitorResult, floor: CompetitorResult | None) -> float | None:
    if outcome.memory is None or floor is None or not floor.memory:
        return None
    return outcome.memory / floor.memory


def describe_race(race: Race) -> str:
    """Describe the workload of a race.

    Args:
        race: A finished race.

    Returns:
        One line.
    """
    task = race.task
    params = ", ".join(f"{key} = {value}" for key, value in task.work.params.items())
    attack = f"{task.work.attack} ({params})" if params else task.work.attack
    images = f"{len(task.x)} images of {task.data.name}, labels: {task.labels}"
    return f"{attack}, linf, untargeted, on {task.victim}; {images}"


def describe_timing(race: Race) -> str:
    """Describe how a race was timed.

    Args:
        race: A finished race.

    Returns:
        One line.
    """
    task = race.task
    rounds = len(race.orders)
    device = torch.cuda.get_device_name(task.device) if task.device.type == "cuda" else "CPU"
    threads, tf32 = torch.get_num_threads(), "on" if TF32 else "off"
    if any(each.competitor.needs_tf32 for each in race.outcomes):
        tf32 += " but in rows that it leads"
    return (
        f"{numbers.format_plural(rounds, 'round')} in rotated order after a warm-up, {device}, "
        f"{numbers.format_plural(threads, 'torch thread')}, TF32 {tf32}; "
        + ("freed memory kept" if race.heap_kept else "the C library's default heap")
    )


def list_notes(race: Race) -> Iterator[str]:
    """List the notes below a table.

    Args:
        race: A finished race.

    Yields:
        A line for each competitor with notes.
    """
    for outcome in race.outcomes:
        name = f"{outcome.competitor.name} {outcome.version}".rstrip()
        remarks = [outcome.competitor.note]
        if outcome.status != "ok":
            remarks = [f"{outcome.status}, {outcome.reason}"]
        if outcome.setup_seconds >= MIN_SHOWN_SETUP:
            took = numbers.format_seconds(outcome.setup_seconds)
            remarks.append(f"set up once for the model in {took}, not in its times")
        if outcome.violations:
            many = numbers.format_plural(outcome.violations, "image")
            remarks.append(f"{many} outside ball or box, counted as failed attacks")
        if outcome.memory_reason:
            remarks.append(f"no memory figure, {outcome.memory_reason}")
        if any(remarks):
            yield f"{name}: {'; '.join(filter(None, remarks))}"


READING = (
    "Times are of the whole work: the attack at every eps, and one forward pass at each eps to "
    "count correct predictions. Every competitor uses its fastest batch size of a short list, "
    "unless one is fixed; the model is in evaluation mode, its parameters frozen. Robust accuracy "
    "is judged afterwards, outside the times, by the unmodified model in float32. `robust beyond "
    "torchattacks` is the largest number of examples, over eps, that a competitor leaves robust in "
    "excess of torchattacks: above 0 its attack is weaker (random starts change a few examples "
    "either way). `over` is the median over rounds of the ratio of times within a round; below 1 "
    "is faster."
)


def render_page(races: Sequence[Race], command: str) -> str:
    """Render the page of all races.

    Args:
        races: Finished races.
        command: Command line to regenerate it.

    Returns:
        Markdown.
    """
    parts = [f"<!-- Generated by `{command}`; not to be edited. -->", "# Speed", READING]
    for race in races:
        task = race.task
        parts.append(f"## {task.work.name}: {markdown.escape(task.work.title)}")
        parts.append(
            f"{markdown.escape(describe_race(race))}.\n{markdown.escape(describe_timing(race))}."
        )
        parts.append(markdown.render_table(build_table(race)))
        parts.append("\n".join(f"- {markdown.escape(note)}" for note in list_notes(race)))
    parts += ["## Again", markdown.format_code_block(command)]
    return "\n\n".join(part for part in parts if part) + "\n"


# ---------------------------------------------------------------------------------- CSV and JSON


def build_frame(races: Sequence[Race]) -> pd.DataFrame:
    """Build the frame of speed.csv.

    Args:
        races: Finished races.

    Returns:
        One row per race, competitor and eps, with the columns CSV; one row without eps for a
        competitor that did not run.
    """
    rows = [row for race in races for outcome in race.outcomes for row in _rows(race, outcome)]
    return pd.DataFrame(rows, columns=list(CSV)).astype(dict.fromkeys(COUNTS, "Int64"))


def _rows(race: Race, outcome: CompetitorResult) -> Iterator[dict[str, Any]]:
    task = race.task
    base, floor = _base(race, torchattacks.NAME), _base(race, bare_loop.NAME)
    shared: dict[str, Any] = {
        "work": task.work.name,
        "model": task.victim.name,
        "weights": task.victim.weights,
        "data": task.data.name,
        "n": len(task.x),
        "attack": task.work.attack,
        "contestant": outcome.competitor.name,
        "version": outcome.version,
        "status": outcome.status,
        "reason": outcome.reason,
        "note": outcome.competitor.note,
    }
    if outcome.status != "ok":
        yield shared
        return
    shared |= {
        "batch_size": outcome.rows,
        "rounds": len(outcome.seconds),
        **_named("seconds", compute_quartiles(outcome.seconds)),
        **_named("over_torchattacks", _over(outcome, base)),
        **_named("over_bare", _over(outcome, floor)),
        "setup_seconds": outcome.setup_seconds,
        "memory_bytes": outcome.memory,
        "memory_over_bare": _memory_over(outcome, floor),
        "violations": outcome.violations,
    }
    beyond = _beyond(outcome, base)
    for index, eps in enumerate(task.eps):
        row = {**shared, "eps": eps, "counted_right": outcome.right[index]}
        if outcome.robust is not None:
            robust, judged = int(outcome.robust[index].sum()), outcome.robust.shape[1]
            row |= {"judged": judged, "robust": robust, "robust_accuracy": robust / judged}
        if beyond is not None:
            row["robust_beyond_torchattacks"] = beyond[index]
        yield row


def _named(name: str, quartiles: Quartiles | None) -> dict[str, float]:
    if quartiles is None:
        return {}
    return {name: quartiles.median, f"{name}_q1": quartiles.q1, f"{name}_q3": quartiles.q3}


def build_document(races: Sequence[Race], command: str) -> dict[str, Any]:
    """Build the document of speed.json, with the seconds of every round.

    Args:
        races: Finished races.
        command: Command line to repeat them.

    Returns:
        Values that JSON can hold.
    """
    return {
        "schema": SCHEMA,
        "command": command,
        "environment": environment.describe_environment(races[0].task.device) if races else {},
        "tf32": {"convolutions": TF32, "matrix products": TF32},
        "races": [_race(race) for race in races],
    }


def _race(race: Race) -> dict[str, Any]:
    task = race.task
    return {
        "work": task.work.name,
        "title": task.work.title,
        "model": task.victim.name,
        "weights": task.victim.weights,
        "model_fingerprint": task.fingerprint,
        "data": task.data.name,
        "data_fingerprint": task.data.fingerprint,
        "labels": task.labels,
        "n": len(task.x),
        "attack": task.work.attack,
        "norm": "linf",
        "params": dict(task.work.params),
        "eps": list(task.eps),
        "clean_right": int(task.clean.sum()),
        "orders": race.orders,
        "heap_kept": race.heap_kept,
        "contestants": [_contestant(task, outcome) for outcome in race.outcomes],
    }


def _contestant(task: RaceTask, outcome: CompetitorResult) -> dict[str, Any]:
    robust = outcome.robust
    return {
        "name": outcome.competitor.name,
        "library": outcome.competitor.library,
        "version": outcome.version,
        "status": outcome.status,
        "reason": outcome.reason,
        "note": outcome.competitor.note,
        "batch_size": outcome.rows,
        "searched_seconds": outcome.searched,
        "share_of_examples": outcome.competitor.share(task),
        "setup_seconds": outcome.setup_seconds,
        "seconds": outcome.seconds,
        "judged": None if robust is None else robust.shape[1],
        "robust": None if robust is None else robust.sum(1).tolist(),
        "counted_right": outcome.right,
        "violations": outcome.violations,
        "memory_bytes": outcome.memory,
        "memory_reason": outcome.memory_reason,
    }


def write_results(races: Sequence[Race], command: str, folder: Path) -> Path:
    """Write speed.csv, speed.md and speed.json.

    Args:
        races: Finished races.
        command: Command line to repeat them.
        folder: Where the files go.

    Returns:
        Path of the page.

    Raises:
        SuiteError: The folder cannot be written.
    """
    files.write_atomic(folder / "speed.csv", spreadsheet.to_csv(build_frame(races)))
    text = json.dumps(build_document(races, command), indent=1, ensure_ascii=False)
    files.write_atomic(folder / "speed.json", text.encode())
    return files.write_atomic(folder / "speed.md", render_page(races, command).encode())
