"""The child of an isolated run: an ordinary run that says what it is about to do, and lives.

It is started by `bench.execution.backends.subprocess`, which watches it from outside and holds its
folder.
"""

import contextlib
import ctypes
import functools
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.core.errors import RecordError, SuiteError
from bench.engine import heartbeat, malloc
from bench.evaluation.evaluator import Evaluator
from bench.evaluation.stages import Stage, Watch
from bench.execution import options as execution_options
from bench.execution import runner
from bench.execution.result_writer import ResultWriter
from bench.execution.work import WorkUnit, attempt
from bench.suite import plan
from bench.suite.reader import parse_suite

DONE = "done"
"""The last that a child says, if it came to its end."""
PR_SET_PDEATHSIG = 1
"""prctl's name for: which signal comes when the parent ends. See `man prctl`."""


class Orders(NamedTuple):
    """What a child needs to know."""

    text: str
    base: Path
    out: Path
    options: execution_options.RunOptions
    threads: int
    lost: frozenset[str]
    alone: frozenset[str]
    """Identities of cells that are tried one at a time."""
    unwell: Mapping[str, str]
    """Models that are not asked again, certified nor probed -> why."""


def run_for(orders: Orders, pipe: Connection, beats: Any) -> None:
    """Do the run, and say so."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which kills this one
    _bind_to_parent()
    with contextlib.suppress(OSError):  # where memory runs out, this process is the one to go
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    malloc.keep_freed_memory()
    torch.set_num_threads(orders.threads)

    def beat() -> None:
        beats.value += 1

    with heartbeat.heartbeats(beat) as life:

        def enter(stage: Stage) -> str:
            life.forget()
            if stage.kind in ("resume", "certify", "probe") and stage.model in orders.unwell:
                return orders.unwell[stage.model]
            pipe.send(stage)
            return ""

        watch = Watch(enter, orders.lost)
        work = functools.partial(_work, orders.alone, enter, pipe.send)
        try:
            suite = parse_suite(orders.text, "the suite", orders.base)
            runner.run_held(suite, orders.out, orders.options, pipe.send, work, watch)
        except SuiteError as error:
            pipe.send(SuiteError(str(error)))
        except RecordError as error:
            pipe.send(RecordError(str(error)))
        except BaseException:  # a bug, whose trace the parent shows
            pipe.send(RuntimeError(f"in the isolated process:\n{traceback.format_exc()}"))
        else:
            pipe.send(DONE)


def _bind_to_parent() -> None:
    """End with the parent: a run whose parent is gone no longer holds its folder, and must not
    write into it. Where the kernel does not see to it, a thread does, as far as it is let."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a C library that has it not
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _work(
    alone: Collection[str],
    enter: Callable[[Stage], str],
    say: Callable[[frozenset[str]], None],
    session: Evaluator,
    todo: Iterable[WorkUnit],
    ledger: ResultWriter,
) -> None:
    """As `parts.in_process`, saying before each stream of cells that it begins, and after it which
    failed for what they raised."""
    todo = list(todo)
    asked: set[str] = set()
    for part in todo:
        if part.task.model not in asked:
            asked.add(part.task.model)
            _ask(session, part.task.model, todo, enter)
        ledger.begin(part)
        for task in _streams(ledger.left(part), alone):
            radii = {cell.identity: cell.eps_text for cell in task.cells}
            enter(Stage("part", part.name, task.model, radii, together=task.linked))
            for outcome in attempt(session, task, part.first, part.last):
                ledger.enter(part, outcome)
                if outcome.frame is None:
                    say(frozenset(outcome.cells))
        ledger.tell(session.reasons, session.notes)
        ledger.finish(part)


def _ask(
    session: Evaluator, model: str, todo: Iterable[WorkUnit], enter: Callable[[Stage], str]
) -> None:
    """The model's answers to all clean images, which every cell of it needs."""
    own = [part.task for part in todo if part.task.model == model]
    radii = {cell.identity: cell.eps_text for task in own for cell in task.cells}
    enter(Stage("clean", f"{model}, asked about clean images", model, radii))
    try:
        session.clean_pass(model)
    except BaseException:  # a stranger's model: each of its cells meets that again, and tells it
        return


def _streams(task: plan.AttackTask, alone: Collection[str]) -> Iterator[plan.AttackTask]:
    """The cells of a task that may share a stream, and each of the others by itself."""
    cells = {cell.identity for cell in task.cells}
    if cells - set(alone):
        yield task.only(cells - set(alone))
    for cell in task.cells:
        if cell.identity in alone:
            yield task.only({cell.identity})
