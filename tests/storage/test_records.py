"""Records on disk: what is written is read back, and what is damaged is named."""

import contextlib
import json
import resource
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from record_files import frame, piece, same, written

from bench.core.errors import RecordError, SuiteError
from bench.storage import images as storage_images
from bench.storage import reader, records, schema

WORDS = (
    "suite, model, attack, norm, eps, goal, example, label, target, clean_pred, adv_pred, "
    "adv_pred_8bit, clean_correct, fooled, violation, confidence, linf, l2, l1, l0, forwards, "
    "backwards, first_success_step"
)
DESIGN = WORDS.split(", ")
NUMBERS = ("confidence", "linf", "l2", "l1", "l0", "forwards", "backwards", "clean_confidence")
FLAGS = ("clean_correct", "fooled", "attacked", "rejected_is_robust", "certified")


@contextlib.contextmanager
def no_room() -> Iterator[None]:
    """Files cannot grow beyond 40 bytes inside, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_columns_begin_with_those_of_the_design_in_its_order() -> None:
    assert list(schema.COLUMNS[: len(DESIGN)]) == DESIGN


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    for cell, first in (("c", 4), ("c", 0), ("a", 0)):
        written(tmp_path, cell, first)
    found = reader.read_records(tmp_path)
    expected = [frame("a"), frame("c"), frame("c", 4)]
    same(found.frame, pd.concat(expected, ignore_index=True))
    assert sorted(found.pieces) == [piece("a"), piece("c"), piece("c", 4)]
    assert sorted(reader.read_pieces(tmp_path)) == sorted(found.pieces)
    assert found.failures == {}


def test_images_are_read_back_by_their_keys(tmp_path: Path) -> None:
    images = {"a": torch.zeros(2, 1, 3, 3), "b": torch.ones(1, 3, 2, 2)}
    storage_images.write_images(tmp_path, "both", images)
    storage_images.write_images(tmp_path, "other", {"c": torch.ones(1, 1, 2, 2)})
    found = storage_images.read_images(tmp_path)
    assert set(found) == {"a", "b", "c"}
    for key in ("b", "c", "a"):
        assert torch.equal(found[key], {**images, "c": torch.ones(1, 1, 2, 2)}[key])
    assert "absent" not in found


def test_a_folder_without_records_holds_none(tmp_path: Path) -> None:
    found = reader.read_records(tmp_path)
    assert (len(found.frame), found.pieces, found.failures) == (0, [], {})
    assert list(found.frame.columns) == list(schema.COLUMNS)


def test_records_of_a_newer_bench_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    table = pq.read_table(path)
    path.unlink()
    path = path.with_name("newer.parquet")
    about = json.loads(table.schema.metadata[b"bench"]) | {"schema": schema.SCHEMA_VERSION + 1}
    pq.write_table(table.replace_schema_metadata({"bench": json.dumps(about)}), path)
    for read in (reader.read_pieces, reader.read_records):
        with pytest.raises(RecordError, match=f"{path.name}: records of schema 2, this bench"):
            read(tmp_path)


def test_a_file_cut_anywhere_is_named_as_damaged(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    for length in (0, 1, 4, 100, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(RecordError, match=f"{path.name}: damaged records"):
            reader.read_records(tmp_path)
        with pytest.raises(RecordError, match=f"{path.name}: damaged records"):
            reader.read_pieces(tmp_path)


def test_a_flipped_byte_anywhere_is_named_as_damage(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    unseen = []
    for place in range(0, len(whole), 29):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with contextlib.suppress(RecordError):
            reader.read_records(tmp_path)
            unseen.append(place)
    assert unseen == []


def test_damaged_images_and_notes_are_named_too(tmp_path: Path) -> None:
    written(tmp_path)
    (images,) = (tmp_path / "records").glob("*.images")
    images.write_bytes(images.read_bytes()[:-3])
    with pytest.raises(RecordError, match=f"{images.name}: damaged"):
        storage_images.read_images(tmp_path)
    records.write_failure(tmp_path, "c", "why")
    (note,) = (tmp_path / "records").glob("*.failed.json")
    note.write_text("{", encoding="utf-8")
    with pytest.raises(RecordError, match=f"{note.name}: damaged"):
        reader.read_records(tmp_path)


def test_a_write_that_fails_leaves_what_was_there_and_nothing_half(tmp_path: Path) -> None:
    path = written(tmp_path)
    before = sorted((tmp_path / "records").iterdir())
    with no_room(), pytest.raises(SuiteError, match=r"could not be written \(File too large\)"):
        records.write_records(
            tmp_path, "x", frame("d"), [piece("d")], {"d": torch.zeros(9, 1, 3, 3)}
        )
    assert sorted((tmp_path / "records").iterdir()) == before
    same(reader.read_records(tmp_path).frame, frame())
    assert path in before


def test_a_failure_is_noted_and_forgotten_once_the_cell_has_records(tmp_path: Path) -> None:
    records.write_failure(tmp_path, "c", "RuntimeError: why")
    records.write_failure(tmp_path, "other", "ValueError: too")
    written(tmp_path, "c")
    assert reader.read_records(tmp_path).failures == {"other": "ValueError: too"}


def test_forgetting_takes_records_images_and_notes_and_nothing_else(tmp_path: Path) -> None:
    written(tmp_path)
    records.write_failure(tmp_path, "d", "why")
    (tmp_path / "records" / "mine.txt").write_text("kept", encoding="utf-8")
    records.delete_records(tmp_path)
    assert [path.name for path in (tmp_path / "records").iterdir()] == ["mine.txt"]


def test_examples_that_are_there_twice_count_once(tmp_path: Path) -> None:
    written(tmp_path)
    records.write_records(tmp_path, "again", frame(), [piece()], {})
    found = reader.read_records(tmp_path)
    assert len(found.frame) == 4
    assert found.pieces == [piece()]


def test_a_label_with_any_letters_makes_a_plain_file_name(tmp_path: Path) -> None:
    records.write_records(tmp_path, "../ é/x: y*", frame(), [piece()], {})
    (path,) = (tmp_path / "records").glob("*.parquet")
    assert path.name.startswith("x-y-c-0000000")
