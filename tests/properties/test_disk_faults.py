"""A whole run on a disk that fails at any of its writes: one sentence, and the next run ends where
an undisturbed one does."""

import errno
import itertools
import json
import os
import time
from collections.abc import Iterator
from datetime import datetime, tzinfo
from pathlib import Path

import pytest
import survivors

from bench.core import files, lock
from bench.core.errors import SuiteError
from bench.evaluation import chunk_sizes
from bench.evaluation.audit import probe_models
from bench.execution import manifest_builder

EVERY = int(os.environ.get("BENCH_FAULTS_EVERY", "7"))
"""One fault in so many is injected; a prime, so that all steps are met. With 1, every one."""


@pytest.fixture(autouse=True)
def much_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `survivors.prepare`: eight examples per chunk, no probes."""
    monkeypatch.setattr(chunk_sizes, "CHUNK_EXAMPLES", 8)
    unprobed = lambda *asked: probe_models.describe_unprobed(asked[3], "left out")  # noqa: E731
    monkeypatch.setattr(probe_models, "probe_model", unprobed)


def run(folder: Path) -> None:
    survivors.attempt(folder.parent, folder)


class Disk:
    """Counts what makes a write last, a sync or a renaming, and lets one of them fail."""

    def __init__(self, patch: pytest.MonkeyPatch, fails: int, code: int = errno.ENOSPC) -> None:
        self.calls, self.fails, self.code = 0, fails, code
        sync, replace = os.fsync, Path.replace
        patch.setattr(os, "fsync", lambda place: self._counted(lambda: sync(place)))
        patch.setattr(
            Path, "replace", lambda one, other: self._counted(lambda: replace(one, other))
        )

    def _counted(self, step):  # type: ignore[no-untyped-def]
        self.calls += 1
        if self.calls == self.fails:
            raise OSError(self.code, os.strerror(self.code))
        return step()


def count_steps(folder: Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, fails=0)
        run(folder)
    return disk.calls


def faults(folder: Path, every: int) -> Iterator[int]:
    """Inject them one by one, each into a run of its own; the steps that were faulty."""
    wanted = survivors.outcome(folder / "whole")
    codes = (errno.ENOSPC, errno.EROFS, errno.EIO)
    for at in range(1, count_steps(folder / "counted") + 1, every):
        out = folder / f"at-{at}"
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, at, codes[at % len(codes)])
            with pytest.raises(SuiteError, match="could not be written") as raised:
                run(out)
        assert disk.calls >= at
        assert "\n" not in str(raised.value)
        run(out)
        assert survivors.outcome(out) == wanted
        assert not list(out.rglob(f"*{files.PARTIAL}"))
        yield at


def test_a_run_on_a_disk_that_fails_once_is_finished_by_the_next(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    done = list(faults(tmp_path, EVERY))
    print(f"{len(done)} faults injected, as many runs finished by the next one")
    assert done == list(range(1, 1 + EVERY * len(done), EVERY))
    assert EVERY * len(done) > 30


class Jumping(datetime):
    """A clock that somebody sets: to the epoch, eighty years on, and back again."""

    years = itertools.cycle((1970, 2106, 2000))

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:
        return datetime(next(cls.years), 1, 1, tzinfo=tz)


def test_a_clock_that_jumps_changes_no_record_of_a_run_that_is_cut_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "whole")
    for module in (manifest_builder, lock):
        monkeypatch.setattr(module, "datetime", Jumping)
    monkeypatch.setattr(time, "time", lambda: Jumping.now().timestamp())
    out = tmp_path / "jumped"
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, fails=20)
        with pytest.raises(SuiteError):
            run(out)
    assert list((out / "records").glob("*.parquet"))  # it was cut in the middle
    run(out)
    assert survivors.outcome(out) == survivors.outcome(tmp_path / "whole")
    sessions = json.loads((out / "provenance.json").read_text(encoding="utf-8"))["sessions"]
    assert sorted(each["started"] for each in sessions) != [each["started"] for each in sessions]
