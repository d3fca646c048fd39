"""Files from elsewhere end in success or in one clean sentence, whatever they hold.

Valid files with a value of another type or size somewhere, with keys lost or unknown, with bytes
flipped, cut or put in. 2,000 inputs by default; BENCH_FUZZ=100000 sets how many, and then draws
others at every run.
"""

import copy
import hashlib
import json
import os
import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.analysis import explanations, results, results_from_csv, snapshot, snapshot_file
from bench.core.errors import RecordError, SuiteError
from bench.evaluation.certification import store
from bench.storage import manifest, reader, schema
from bench.storage.schema import Piece
from bench.suite import reader as suite
from bench.workflows.leaderboard import model_card
from bench.workflows.training import recipe

INPUTS = int(os.environ.get("BENCH_FUZZ", "2000"))
RUN = Path(__file__).parents[2] / "results" / "quickstart"
N = 4
Mutated = Callable[[Any], Any]

HOSTILE = [
    "", "..", "../../etc/passwd", "/dev/full", "a\x00b", "\x1b[2J", "\u202e", "\ud800", "=1+1",
    "1/0",
    "eps/0", "1e999", "nan", "8/255", "-1", "a" * 5000, "<script>", "\\input{x}", "lenet", "pgd",
    "linf", "each", "next", "mnist", "ok", "no/such.py:X", "\n", "é", "robust_accuracy:-1pp",
]  # fmt: skip
NUMBERS = [0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 10**400, 0.0, 1e-320, 1e308, float("nan"),
           float("inf"), -float("inf"), 0.1]  # fmt: skip


def nested(depth: int) -> Any:
    found: Any = 1
    for _ in range(depth):
        found = [found]
    return found


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.sampled_from(HOSTILE),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
)
VALUES = st.one_of(
    LEAVES,
    st.recursive(
        LEAVES,
        lambda some: (
            st.lists(some, max_size=3) | st.dictionaries(st.text(max_size=5), some, max_size=3)
        ),
        max_leaves=6,
    ),
    st.sampled_from([100, 400]).map(nested),
)  # fmt: skip


def places(raw: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value in nested tables and lists."""
    pairs = list(raw.items()) if isinstance(raw, dict) else list(enumerate(raw))
    found = [(raw, key) for key, _ in pairs]
    for _, value in pairs:
        if isinstance(value, dict | list):
            found += places(value)
    return found


@st.composite
def mutations(draw: st.DrawFn) -> Mutated:
    """From a valid document to one with one to three things wrong."""
    edits = [
        (draw(st.floats(0, 0.999)), draw(st.sampled_from(["set", "set", "drop", "add", "double"])),
         draw(VALUES), draw(st.sampled_from(HOSTILE)))
        for _ in range(draw(st.integers(1, 3)))
    ]  # fmt: skip

    def mutated(valid: Any) -> Any:
        raw = copy.deepcopy(valid)
        for share, what, drawn, key in edits:
            value = copy.deepcopy(drawn)  # made twice, it must not hold itself
            everywhere = places(raw)
            if not everywhere:
                return value
            holder, at = everywhere[int(share * len(everywhere))]
            if what == "drop":
                del holder[at]
            elif what == "set":
                holder[at] = value
            elif isinstance(holder, dict):
                holder[key] = copy.deepcopy(holder[at]) if what == "double" else value
            else:
                holder.append(copy.deepcopy(holder[at]) if what == "double" else value)
        return raw

    return mutated


@st.composite
def edits(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """From valid bytes to damaged ones."""
    steps = [
        (draw(st.floats(0, 1)), draw(st.sampled_from(["flip", "cut", "put", "lose"])),
         draw(st.binary(min_size=1, max_size=8)
              | st.sampled_from([b"\x00", b"[" * 4000, b"9" * 5000])))
        for _ in range(draw(st.integers(1, 3)))
    ]  # fmt: skip

    def edited(valid: bytes) -> bytes:
        raw = bytearray(valid)
        for share, what, some in steps:
            at = int(share * len(raw))
            if what == "cut":
                del raw[at:]
            elif what == "lose":
                del raw[at : at + len(some)]
            elif what == "put":
                raw[at:at] = some
            else:
                raw[at : at + 1] = bytes([some[0]])
        return bytes(raw)

    return edited


def all_tables(folder: Path) -> None:
    """Everything that is made of a run, which is computed on access."""
    found = results.read_results(folder)
    for name, value in vars(results.RunResults).items():
        if isinstance(value, cached_property):
            getattr(found, name)


def seldom(reader: Callable[[Path], object]) -> Any:
    """The reader alone, and in one of 20 cases all that is made of a run, which takes longer."""
    return st.sampled_from([*[reader] * 19, all_tables])


def share(part: float) -> Callable[[Any], Any]:
    """So much of all inputs goes to one test."""
    return settings(
        max_examples=max(1, round(INPUTS * part)),
        derandomize=INPUTS == 2000,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each input lies in turn."""
    return tmp_path_factory.mktemp("fuzz")


CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def ends_well(read: Callable[[], object]) -> None:
    """Success, or an error of ours: a sentence of bounded length for each mistake."""
    try:
        read()
    except (SuiteError, RecordError) as error:
        from bench.core.sanitize import escape_controls

        told = escape_controls(str(error))
        assert told.strip()
        assert not CONTROL.search(told)
        assert max(map(len, told.splitlines())) < 2000


DEEPEST = 200
"""Nesting that `toml` writes: beyond what the readers allow, within what Python can recurse."""


def toml(value: Any, depth: int = 0) -> str:
    """A value as TOML, tables inline; what TOML cannot say, or lies too deep, is left out."""
    inner = depth + 1
    if depth > DEEPEST:
        return "0"
    if isinstance(value, dict):
        pairs = [(json.dumps(str(k)), toml(v, inner)) for k, v in value.items() if v is not None]
        return "{" + ", ".join(f"{key} = {told}" for key, told in pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(toml(v, inner) for v in value if v is not None) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value).replace("\x7f", "\\u007f")


def top(raw: Any) -> str:
    if not isinstance(raw, dict):
        return toml(raw)
    return "\n".join(f"{json.dumps(str(k))} = {toml(v)}" for k, v in raw.items() if v is not None)


# ------------------------------------------------------------------------------------------- TOML

SUITE = {
    "schema": 1, "name": "s", "title": "t", "seed": 0, "stop": "never", "sweep": "nested",
    "precision": "float32",
    "certify": ["ibp", {"method": "crown", "norm": "l2"},
                {"method": "smoothing", "sigma": 0.25, "n": 99, "radii": [0, "1/4"]}],
    "data": {"name": "digits", "split": "test", "limit": 4, "params": {}},
    "models": [{"name": "lenet", "label": "net", "weights": "digits", "params": {}}],
    "attacks": [
        {"name": "pgd", "label": "PGD", "norm": "linf", "eps": [0, 0.1, "8/255"], "seeds": 2,
         "params": {"steps": 2, "alpha": "eps/2"}, "vary": {"restarts": [1, 2]},
         "goal": "targeted", "target": "next", "samples": 1, "fail": ["robust_accuracy:-1pp"]},
        {"name": "fgsm", "norm": "l2", "eps": [0.1], "source": "each", "batch_size": 4},
    ],
    "crosschecks": [{"ours": "fgsm from net", "reference": "fgsm from net"}],
    "published": [{"model": "net", "attack": "fgsm from net", "source": "x", "eps": [0.1],
                   "values": [0.5]}],
    "gate": {"fail": ["audit:+0"], "alpha": 0.01,
             "cells": [{"fail": ["robust_accuracy:-2%"], "model": "net", "eps": 0.1}]},
}  # fmt: skip
CARD = {
    "schema": 1, "name": "n", "source": "s", "training": "t", "data": "d", "licence": "l",
    "contact": "c", "url": "u", "model": {"name": "lenet", "weights": "digits", "params": {}},
}  # fmt: skip
RECIPE = {
    "schema": 1, "title": "t", "source": "s", "weights": "w", "seed": 0, "seeds": 1, "epochs": 1,
    "batch_size": 2, "validation": 5, "model": {"name": "lenet"}, "data": {"name": "digits"},
    "optimiser": {"name": "SGD", "params": {"lr": 0.1}},
    "adversarial": {"attack": "fgsm", "eps": 0.1, "warmup": 1},
    "published": {"source": "x", "test_accuracy": 99.0, "per_class": [1.0]},
}  # fmt: skip


@share(0.24)
@given(mutations())
def test_a_suite_with_other_values(mutated: Mutated) -> None:
    ends_well(lambda: suite.parse_suite(top(mutated(SUITE)), "s.toml", Path()))


@share(0.08)
@given(edits())
def test_a_suite_with_other_bytes(place: Path, edited: Mutated) -> None:
    path = place / "s.toml"
    path.write_bytes(edited(top(SUITE).encode()))
    ends_well(lambda: suite.read_suite(str(path)))


@share(0.05)
@given(mutations())
def test_a_models_card(place: Path, mutated: Mutated) -> None:
    path = place / "card.toml"
    path.write_text(top(mutated(CARD)), encoding="utf-8", errors="replace")
    ends_well(lambda: model_card.read_card(path))


@share(0.05)
@given(mutations())
def test_a_recipe(place: Path, mutated: Mutated) -> None:
    path = place / "recipe.toml"
    path.write_text(top(mutated(RECIPE)), encoding="utf-8", errors="replace")
    ends_well(lambda: recipe.read_recipe(str(path)))


# -------------------------------------------------------------------------------------- a run's own


def plain_run() -> dict[str, Any]:
    """provenance.json of four examples and two cells."""
    found: dict[str, Any] = json.loads((RUN / "provenance.json").read_text(encoding="utf-8"))
    found["cells"] = [cell for cell in found["cells"] if cell["attack"] == "FGSM"][:2]
    found["data"]["n"] = N
    found["crosschecks"] = [["FGSM", "FGSM"]]
    found["sessions"] = found["sessions"][-1:]
    found["published"] = [{"model": "LeNet", "attack": "FGSM", "source": "x", "note": "",
                           "figure": "robust_accuracy", "eps": [0.05],
                           "values": [0.5]}]  # fmt: skip
    found["certify"] = [{"model": "LeNet", "method": "ibp", "eps": [0.05], "eps_texts": ["0.05"],
                         "identity": "c" * 16, "reason": ""}]  # fmt: skip
    return found


def frame(cell: dict[str, Any]) -> pd.DataFrame:
    columns: dict[str, Any] = dict.fromkeys(schema.COLUMNS, [0.0] * N)
    columns |= {key: [cell[key]] * N for key in ("model", "attack", "norm", "eps", "goal")}
    columns |= {"suite": ["s"] * N, "cell": [cell["identity"]] * N, "part": [""] * N}
    columns |= {"example": range(N), "label": range(N), "clean_pred": range(N)}
    columns |= {"adv_pred": [9] * N, "adv_pred_8bit": [9] * N, "target": [-1] * N}
    columns |= {"first_success_step": [1] * N, "violation": [""] * N, "parameters": [""] * N}
    columns |= {"distance_within": [None] * N, "rejection": [-1] * N}
    columns |= {"rejected_is_robust": [False] * N, "certified": [False] * N}
    columns |= {"clean_correct": [True] * N, "fooled": [True] * N, "attacked": [True] * N}
    return pd.DataFrame(columns)


PROVENANCE = plain_run()
IDS = [cell["identity"] for cell in PROVENANCE["cells"]]
FRAME = pd.concat([frame(cell) for cell in PROVENANCE["cells"]], ignore_index=True)
ABOUT = {"schema": 1, "pieces": [Piece(cell, 0, N, N, 1.0, 0.1, 1.0, 4, "cpu")._asdict()
                                 for cell in IDS]}  # fmt: skip
CERTIFIED = pd.DataFrame(
    {"model": "LeNet", "method": "ibp", "eps": 0.05, "example": range(N), "clean_correct": True,
     "margin": [0.1, -0.1, 0.1, np.nan], "certified": [True, False, True, False]}
)  # fmt: skip
BOUNDS = {"schema": 1, "identity": "c" * 16, "first": 0, "last": N, "seconds": [1.0]}


def parquet(held: pd.DataFrame, about: Any) -> bytes:
    table = pa.Table.from_pandas(held, preserve_index=False)
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({"bench": json.dumps(about)}), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def laid(folder: Path, provenance: Any, held: bytes, bounds: bytes) -> Path:
    """A run's folder of these parts, each file under the name that its hash asks for."""
    (folder / "records").mkdir(parents=True, exist_ok=True)
    for path in (folder / "records").glob("*"):
        path.unlink()
    (folder / "provenance.json").write_text(json.dumps(provenance), encoding="utf-8")
    for content, stem, end in ((held, "a", "parquet"), (bounds, "c" * 16, store.SUFFIX)):
        name = f"{stem}-0000000-{hashlib.sha256(content).hexdigest()[:16]}.{end}"
        (folder / "records" / name).write_bytes(content)
    return folder


RECORDS, BOUNDED = parquet(FRAME, ABOUT), parquet(CERTIFIED, BOUNDS)
COLUMNS = st.sampled_from(
    [
        lambda k: list(range(k)), lambda k: [None] * k, lambda k: ["x\x1b"] * k,
        lambda k: [float("nan")] * k, lambda k: [2**63 - 1] * k, lambda k: [[1]] * k,
        lambda k: [b"\xff"] * k, lambda k: [True] * k, lambda k: [-1] * k, lambda k: ["7"] * k,
        lambda k: pd.Timestamp("2020-01-01"), lambda k: [1e300] * k,
    ]
)  # fmt: skip


@st.composite
def frames(draw: st.DrawFn) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """From a valid table to one with a column of other values, none, or other rows."""
    at, made = draw(st.floats(0, 0.999)), draw(COLUMNS)
    what = draw(st.sampled_from(["set", "set", "drop", "rows", "twice", "none", "swap"]))

    def other(held: pd.DataFrame) -> pd.DataFrame:
        name = held.columns[int(at * len(held.columns))]
        if what == "set":
            return held.assign(**{name: made(len(held))})
        if what == "drop":
            return held.drop(columns=name)
        if what == "swap":
            return held.assign(**{name: held[name].to_numpy()[::-1]})
        if what == "none":
            return held.iloc[:0]
        return held.iloc[1:] if what == "rows" else pd.concat([held, held])

    return other


@share(0.14)
@given(mutations())
def test_what_a_run_tells_of_itself(place: Path, mutated: Mutated) -> None:
    folder = place
    content = json.dumps(mutated(PROVENANCE))
    (folder / "provenance.json").write_text(content, encoding="utf-8")
    ends_well(lambda: manifest.read_manifest(folder))


@share(0.01)
@given(mutations(), st.booleans())
def test_a_run_with_another_provenance(place: Path, mutated: Mutated, noted: bool) -> None:
    folder = laid(place / "p", mutated(PROVENANCE), RECORDS, BOUNDED)
    if noted:
        note = {"cell": IDS[0], "reason": "r"}
        (folder / "records" / "x.failed.json").write_text(json.dumps(mutated(note)))
    ends_well(lambda: all_tables(folder))


@share(0.1)
@given(
    frames(), mutations(), st.sampled_from(["frame", "about", "both"]), seldom(reader.read_records)
)
def test_records_with_other_columns_or_pieces(
    place: Path, other: Mutated, mutated: Mutated, what: str, read: Callable[[Path], object]
) -> None:
    held = FRAME if what == "about" else other(FRAME)
    content = parquet(held, ABOUT if what == "frame" else mutated(ABOUT))
    folder = laid(place / "r", PROVENANCE, content, BOUNDED)
    ends_well(lambda: read(folder))


@share(0.08)
@given(edits())
def test_records_with_other_bytes(place: Path, edited: Mutated) -> None:
    folder = laid(place / "b", PROVENANCE, edited(RECORDS), BOUNDED)
    ends_well(lambda: reader.read_records(folder))


@share(0.05)
@given(frames(), mutations(), st.booleans(), seldom(store.read_certificates))
def test_certificates_with_other_columns(
    place: Path, other: Mutated, mutated: Mutated, told: bool, read: Callable[[Path], object]
) -> None:
    content = parquet(CERTIFIED if told else other(CERTIFIED), mutated(BOUNDS) if told else BOUNDS)
    folder = laid(place / "c", PROVENANCE, RECORDS, content)
    ends_well(lambda: read(folder))


SNAPSHOT = json.loads(
    snapshot_file.format_snapshot(
        snapshot.Snapshot(
            schema=1, suite="s", seed=0, provenance={"command": "c"},
            data=snapshot.DataSnapshot(name="d", n=9, fingerprint="f"),
            machine=snapshot.MachineSnapshot(device="cpu", processor="p", threads=1),
            models=[snapshot.ModelSnapshot(model="m", fingerprint="f", clean_correct=3, signs=[],
                                   clean="gYA=")],
            tasks=[snapshot.AttackSnapshot(model="m", attack="a", family="a", settings={"x": 1},
                                 floor_ratio=1.0, seconds=1.0, clock_seconds=1.0)],
            cells=[snapshot.CellSnapshot(model="m", attack="a", eps=0.1, eps_text="0.1",
                                 status="ok", reason="", robust_correct=3, robust="gYA=")],
        )
    )
)  # fmt: skip


@share(0.1)
@given(mutations(), edits(), st.booleans())
def test_a_baseline(place: Path, mutated: Mutated, edited: Mutated, cut: bool) -> None:
    path = place / "baseline.json"
    valid = json.dumps(SNAPSHOT).encode()
    path.write_bytes(edited(valid) if cut else json.dumps(mutated(SNAPSHOT)).encode())
    ends_well(lambda: snapshot_file.read_snapshot(path))


EXPLAINED = {
    "schema": 1,
    "explanations": [
        {"model": "m", "ours": "a", "reference": "b", "norm": "linf", "eps_text": "0.1",
         "attacked": 3, "only_ours": [1], "only_reference": [], "closed_by": [], "cause": "c",
         "cells": IDS[:2],
         "experiments": [{"change": "", "ours_robust": 1, "reference_robust": 1,
                          "only_ours_broke": 0, "only_reference_broke": 0, "p_value": 1.0,
                          "closes": True}]}
    ],
}  # fmt: skip


@share(0.05)
@given(mutations())
def test_explanations(place: Path, mutated: Mutated) -> None:
    folder = place
    (folder / explanations.FILE).write_text(json.dumps(mutated(EXPLAINED)), encoding="utf-8")
    ends_well(lambda: [each.gap for each in explanations.read_explanations(folder, IDS)])


@share(0.05)
@given(edits(), st.sampled_from(["table.csv", "crosscheck.csv", "worst.csv", "audit.csv"]))
def test_published_tables(place: Path, edited: Mutated, name: str) -> None:
    folder = place / "k"
    folder.mkdir(exist_ok=True)
    (folder / "provenance.json").write_text(json.dumps(PROVENANCE), encoding="utf-8")
    for each in ("table.csv", "crosscheck.csv", "worst.csv", "audit.csv"):
        lines = (RUN / each).read_bytes().splitlines(keepends=True) if (RUN / each).exists() else []
        content = b"".join(lines[:4])
        (folder / each).write_bytes(edited(content) if each == name else content)
    ends_well(lambda: results_from_csv.read_results_from_csv(folder))


def test_what_is_damaged_here_is_whole_to_begin_with(place: Path) -> None:
    assert suite.parse_suite(top(SUITE), "s.toml", Path()).name == "s"
    (place / "card.toml").write_text(top(CARD), encoding="utf-8")
    assert model_card.read_card(place / "card.toml").name == "n"
    (place / "recipe.toml").write_text(top(RECIPE), encoding="utf-8")
    assert recipe.read_recipe(str(place / "recipe.toml")).epochs == 1
    folder = laid(place / "whole", PROVENANCE, RECORDS, BOUNDED)
    found = results.read_results(folder)
    assert (found.table["status"] == "ok").all()
    assert found.certified.table["certified_correct"].tolist() == [2]
    (folder / explanations.FILE).write_text(json.dumps(EXPLAINED), encoding="utf-8")
    assert len(explanations.read_explanations(folder, IDS)) == 1
    (place / "baseline.json").write_text(json.dumps(SNAPSHOT), encoding="utf-8")
    assert snapshot_file.read_snapshot(place / "baseline.json").suite == "s"
    assert len(results_from_csv.read_results_from_csv(RUN).table)


# ------------------------------------------------------------------- found by a run of 100,000


def entry_of(key: str, **other: Any) -> dict[str, Any]:
    return {**PROVENANCE, key: [{**PROVENANCE[key][0], **other}]}


APART = {
    "three sides": ({**PROVENANCE, "crosschecks": [["a", "b", "c"]]}, "crosschecks.0"),
    "no values": (entry_of("published", values=[]), "published.0: expected as many values as eps"),
    "no cell": (entry_of("published", attack="x"), "published.0: expected figures of cells of the"),
    "no text": (entry_of("certify", eps_texts=[]), "certify.0: expected as many eps_texts as eps"),
}


@pytest.mark.parametrize("case", APART)
def test_parts_of_a_document_that_do_not_go_together_are_told(place: Path, case: str) -> None:
    provenance, part = APART[case]
    with pytest.raises(RecordError, match=re.escape(part)):
        results.read_results(laid(place / "apart", provenance, RECORDS, BOUNDED))


@pytest.mark.parametrize("key", ["published", "certify"])
def test_what_a_newer_bench_says_more_of_is_no_harm(place: Path, key: str) -> None:
    folder = laid(place / "more", entry_of(key, newer=1), RECORDS, BOUNDED)
    assert (results.read_results(folder).table["status"] == "ok").all()


def test_seconds_beyond_any_float_are_told(place: Path) -> None:
    pieces = [{**piece, "seconds": 10**400} for piece in ABOUT["pieces"]]
    held = parquet(FRAME, {**ABOUT, "pieces": pieces})
    with pytest.raises(RecordError, match="a piece without seconds"):
        results.read_results(laid(place / "long", PROVENANCE, held, BOUNDED))
    bounds = parquet(CERTIFIED, {**BOUNDS, "seconds": [10**400]})
    with pytest.raises(RecordError, match="no seconds"):
        _ = results.read_results(laid(place / "long", PROVENANCE, RECORDS, bounds)).certified
