"""Runs that are killed, disks that are full, bytes that flip: nothing that was finished is lost."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from record_files import frame, piece, same, written

from bench.core import files, lock
from bench.core.errors import RecordError, SuiteError
from bench.storage import reader, records
from bench.storage.schema import Piece

SURVIVORS = Path(__file__).parents[1] / "helpers" / "survivors.py"
STEPS = ("mkdir", "open", "write", "flush", "fsync", "rename", "fsync of the folder")
ERRORS = (errno.ENOSPC, errno.EROFS, errno.EIO)


class Faulty:
    """An open file of which one method fails."""

    def __init__(self, file: Any, name: str, error: OSError) -> None:
        self._file, self._name, self._error = file, name, error

    def __enter__(self) -> "Faulty":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        if name == self._name:
            raise self._error
        return getattr(self._file, name)


def failing(error: OSError) -> Callable[..., Any]:
    def step(*_: object, **__: object) -> None:
        raise error

    return step


def inject(monkeypatch: pytest.MonkeyPatch, step: str, code: int) -> None:
    """Let one step of writing a file fail, as the system would."""
    error = OSError(code, os.strerror(code))
    if step in ("mkdir", "open"):
        monkeypatch.setattr(Path, step, failing(error))
    elif step in ("write", "flush"):
        real = Path.open
        monkeypatch.setattr(Path, "open", lambda self, mode: Faulty(real(self, mode), step, error))
    elif step == "rename":
        monkeypatch.setattr(Path, "replace", failing(error))
    else:
        calls = iter([0] if step == "fsync" else [1, 0])
        sync = os.fsync
        monkeypatch.setattr(
            os, "fsync", lambda place: sync(place) if next(calls, 1) else failing(error)()
        )


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0x20
    path.write_bytes(content)


# ------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("code", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("step", STEPS)
def test_a_fault_in_any_step_of_a_write_is_one_sentence_and_the_next_write_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int
) -> None:
    written(tmp_path, "a")
    with monkeypatch.context() as patch:
        inject(patch, step, code)
        with pytest.raises(SuiteError, match="could not be written") as raised:
            written(tmp_path, "b")
    assert os.strerror(code) in str(raised.value)
    assert "\n" not in str(raised.value)
    whole = reader.read_records(tmp_path).frame
    # The file is there once it is renamed, although it may not last until the folder is synced.
    assert set(whole["cell"]) <= {"a", "b"}
    same(whole[whole["cell"] == "a"].reset_index(drop=True), frame("a"))
    written(tmp_path, "b")
    assert {p.cell for p in records.recover_records(tmp_path).pieces} == {"a", "b"}
    assert not list(tmp_path.rglob(f"*{files.PARTIAL}"))
    assert len(reader.read_records(tmp_path).frame) == 8


def test_a_folder_that_cannot_be_synced_by_its_file_system_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject(monkeypatch, "fsync of the folder", errno.EINVAL)
    assert files.write_atomic(tmp_path / "a", b"1").read_bytes() == b"1"


def test_two_that_write_one_file_at_once_do_not_share_a_temporary_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = Path.replace
    monkeypatch.setattr(Path, "replace", lambda a, b: (seen.append(a.name), real(a, b))[1])
    for _ in range(2):
        files.write_atomic(tmp_path / "a", b"")
    assert len(set(seen)) == 2


# ------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("damage", [torn, flipped], ids=["cut short", "one byte flipped"])
@pytest.mark.parametrize("kind", ["*.parquet", "*.images"])
def test_a_damaged_file_is_set_aside_and_its_chunk_is_to_be_made_again(
    tmp_path: Path, kind: str, damage: Callable[[Path], None]
) -> None:
    written(tmp_path, "a")
    written(tmp_path, "b")
    (path,) = (p for p in (tmp_path / "records").glob(kind) if "-a-" in p.name)
    damage(path)
    recovered = records.recover_records(tmp_path)
    assert recovered.pieces == [piece("b")]
    assert [path.name in note and f"{path.name}.damaged" in note for note in recovered.notes] == [
        True
    ]
    assert path.with_name(f"{path.name}.damaged").is_file()
    written(tmp_path, "a")
    assert len(reader.read_records(tmp_path).frame) == 8
    assert records.recover_records(tmp_path).notes == []


def test_damaged_images_of_a_chunk_set_all_its_cells_aside(tmp_path: Path) -> None:
    images = {"a": torch.zeros(1, 1, 2, 2), "b": torch.ones(1, 1, 2, 2)}
    records.write_records(tmp_path, "x", frame("a"), [piece("a"), piece("b")], images)
    torn(next((tmp_path / "records").glob("*.images")))
    assert records.recover_records(tmp_path).pieces == []


def test_a_damaged_certificate_or_note_is_set_aside_too(tmp_path: Path) -> None:
    records.write_failure(tmp_path, "c", "why")
    note = tmp_path / "records" / "c.failed.json"
    note.write_text("{", encoding="utf-8")
    bound = tmp_path / "records" / f"c-0000000-{files.short_hash(b'1')}.certificates"
    bound.write_bytes(b"2")
    assert len(records.recover_records(tmp_path).notes) == 2
    assert not note.exists()
    assert not bound.exists()


def test_a_file_that_may_not_be_read_is_named_and_stays_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path)
    monkeypatch.setattr(Path, "read_bytes", failing(PermissionError(errno.EACCES, "no")))
    with pytest.raises(RecordError, match="may not be read"):
        records.recover_records(tmp_path)
    assert path.is_file()


def test_a_failure_is_forgotten_before_the_records_come_so_that_no_kill_leaves_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records.write_failure(tmp_path, "c", "why")
    monkeypatch.setattr(records, "write_atomic", failing(KeyboardInterrupt()))  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        records.write_records(tmp_path, "x", frame(), [Piece(*piece())], {})
    assert reader.read_records(tmp_path).failures == {}


# --------------------------------------------------------------------------------------------- lock


def refused(folder: Path) -> str:
    with pytest.raises(SuiteError) as raised, lock.hold_lock(folder, print):
        pass
    return str(raised.value)


def test_a_second_run_into_a_folder_refuses_and_names_the_first(tmp_path: Path) -> None:
    with lock.hold_lock(tmp_path, print):
        sentence = refused(tmp_path)
        assert f"process {os.getpid()}, since 2" in sentence
        assert "host " in sentence
        assert len(reader.read_records(tmp_path).frame) == 0  # who reads is not asked
    with lock.hold_lock(tmp_path, print):
        pass
    assert not (tmp_path / lock.FILE).exists()


def test_a_lock_ends_with_the_process_that_was_killed(tmp_path: Path) -> None:
    words = (
        "import sys, time, pathlib; from bench.core import lock\n"
        "with lock.hold_lock(pathlib.Path(sys.argv[1]), print):\n"
        "    print('held', flush=True); time.sleep(99)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", words, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert f"process {other.pid}," in refused(tmp_path)
        other.kill()
    assert (tmp_path / lock.FILE).exists()
    with lock.hold_lock(tmp_path, print):
        assert str(os.getpid()) in (tmp_path / lock.FILE).read_text(encoding="utf-8")


@pytest.mark.parametrize("code", lock.NO_LOCKS, ids=errno.errorcode.get)
def test_where_there_are_no_locks_the_run_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(OSError(code, "no locks")))
    notes: list[str] = []
    with lock.hold_lock(tmp_path, notes.append):
        assert len(notes) == 1
        assert "has no locks" in notes[0]
    with pytest.raises(BrokenPipeError), lock.hold_lock(tmp_path, failing(BrokenPipeError())):  # type: ignore[arg-type]
        pass  # what the listener raises is no fault of the folder


@pytest.mark.parametrize("code", ERRORS, ids=errno.errorcode.get)
def test_a_lock_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    with monkeypatch.context() as full:
        full.setattr(Path, "write_text", failing(OSError(code, os.strerror(code))))
        assert os.strerror(code) in refused(tmp_path)
    with lock.hold_lock(tmp_path, print):  # what could not be signed is not held
        pass


# -------------------------------------------------------------------------------------------- kills


def survived(folder: Path, kills: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(SURVIVORS), str(folder), str(kills)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert len(report["outcomes"]) > 0
    assert all(outcome == report["whole"] for outcome in report["outcomes"])
    return report


def test_a_run_killed_fifty_times_has_the_records_of_one_that_was_not(tmp_path: Path) -> None:
    report = survived(tmp_path, 50)
    assert report["hits"] >= 50
    assert len(set(report["stages"])) > 4  # of 0 to 6 files: they hit early and late
