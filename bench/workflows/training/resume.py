"""What an interrupted training goes on from: one file, written whole after every epoch."""

import io
from pathlib import Path
from typing import Any

import torch

from bench.core.errors import SuiteError
from bench.core.files import write_atomic


def save(path: Path, about: str, state: dict[str, Any]) -> None:
    """Keep `state` and the state of the random generators; `about` says whose it is.

    Raises: SuiteError if the file cannot be written.
    """
    buffer = io.BytesIO()
    random = {"random": torch.get_rng_state(), "random_cuda": torch.cuda.get_rng_state_all()}
    torch.save({"about": about, **state, **random}, buffer)
    write_atomic(path, buffer.getvalue())


def load(path: Path, about: str, recipe: str) -> dict[str, Any]:
    """What was saved, if it is of the same training; the generators are as they were then.

    Raises: SuiteError if the file is damaged, or belongs to another training.
    """
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        same = state["about"] == about
    except Exception as error:  # what a reader trips over in damaged bytes can be anything
        raise SuiteError(f"{path}: damaged; delete it and train again") from error
    if not same:
        raise SuiteError(
            f"{path}: holds the progress of another recipe '{recipe}', or of another target; "
            "delete it, or train into another folder"
        )
    torch.set_rng_state(state["random"])
    torch.cuda.set_rng_state_all(state["random_cuda"])
    return state
