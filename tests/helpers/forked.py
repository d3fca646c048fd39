"""Python code in a process that is forked from this one, which has imported torch already: a new
interpreter would take seconds to import what the tests have imported."""

import os
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

import torch

from bench.reporting import run_output  # imported before the first fork, as every run draws

__all__ = ["run_forked", "run_output"]


def run_forked(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a folder, without the network.

    The process has its own descriptors 1 and 2 and its own streams; its exit status is that of the
    code. Where there is a GPU, whose state no fork may share, a new interpreter is started.
    """
    if torch.cuda.is_available():
        environment = os.environ | {"BENCH_OFFLINE": "1"}
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=folder, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch has threads
            process = os.fork()
        if not process:
            status = 1
            try:
                _become(folder, out.fileno(), err.fileno())
                status = _status_of(code)
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8"))
    return subprocess.CompletedProcess([code], status, *texts)


def _become(folder: Path, out: int, err: int) -> None:
    """Make this process one that was started in the folder, with these descriptors as streams."""
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(  # noqa: SIM115
        2, "w", encoding="utf-8", closefd=False, buffering=1
    )
    warnings.resetwarnings()
    warnings.simplefilter("ignore")
    os.chdir(folder)
    sys.path.insert(0, "")
    os.environ["BENCH_OFFLINE"] = "1"


def _status_of(code: str) -> int:
    """Run the code and return the exit status that an interpreter would have."""
    try:
        exec(compile(code, "<forked>", "exec"), {"__name__": "__main__"})
        status: object = 0
    except SystemExit as ended:
        status = ended.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        if stream is not None and not stream.closed:
            stream.flush()
    return status if isinstance(status, int) else 1
