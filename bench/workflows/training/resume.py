"""The state of a training run between two epochs, and the progress file it is resumed from.

Both trainers, of models and of attacks, use the same `TrainingState`. The progress file is written
as a whole after every epoch; a resumed run ends with the same weights as an uninterrupted one.
"""

import copy
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from bench.core.errors import SuiteError, nearest
from bench.core.files import write_atomic
from bench.workflows.training.recipe import ComponentSpec

SCHEMA = 2
"""Of the progress file."""


class Stateful(Protocol):
    """A network, an optimiser or a schedule."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state.

        Returns:
            Name -> value.
        """
        ...

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Restore a state.

        Args:
            state_dict: What `state_dict` returned.

        Returns:
            An object that is not used.
        """
        ...


class EpochRecord(Protocol):
    """The measurements of one epoch: a NamedTuple whose first field is the epoch's number."""

    @property
    def epoch(self) -> int:
        """Number of the epoch, from 1."""
        ...

    def __iter__(self) -> Iterator[Any]: ...


E = TypeVar("E", bound=EpochRecord)


class TrainingState(Generic[E]):
    """Everything that the next epoch depends on, and the best weights so far."""

    def __init__(
        self,
        components: Mapping[str, Stateful],
        published: nn.Module,
        *,
        epoch_type: Callable[..., E],
        rank: Callable[[E], Any],
        epochs: int,
        patience: int | None = None,
        recipe: str,
        identity: str,
    ) -> None:
        """Hold the components of a run that is to begin.

        Args:
            components: Name -> network, optimiser or schedule; saved and restored.
            published: The network whose best weights are published.
            epoch_type: Constructor of an epoch from its fields.
            rank: Sort key of an epoch; the largest is the best, of equals the first.
            epochs: Epochs at most.
            patience: Stop after this many epochs without a better one; None: never.
            recipe: Name of the recipe, for messages.
            identity: Text that must be equal for a progress file to be resumed.
        """
        self.components, self.published = components, published
        self._epoch_type, self._rank = epoch_type, rank
        self._epochs, self._patience = epochs, patience
        self._recipe, self._identity = recipe, identity
        self.history: list[E] = []
        self.best_weights: dict[str, Tensor] = {}

    @property
    def best(self) -> E:
        """The epoch with the largest rank; of equals, the first."""
        return max(self.history, key=self._rank)

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done, or the patience is used up."""
        done = len(self.history)
        return done >= self._epochs or (
            self._patience is not None and done > 0 and done - self.best.epoch >= self._patience
        )

    def run(
        self,
        train_epoch: Callable[[int], E],
        on_epoch: Callable[[E], None],
        progress_file: Path | None,
    ) -> None:
        """Train until finished, then load the best weights into the published network.

        Args:
            train_epoch: Trains the epoch of this number, from 1, and returns its measurements.
            on_epoch: Called with the measurements after each epoch, once they are saved.
            progress_file: Resumed from if it exists; rewritten after each epoch. None: neither.

        Raises:
            SuiteError: The progress file is damaged, of another run, or cannot be written.
        """
        if progress_file is not None and progress_file.exists():
            self.resume(progress_file)
        while not self.is_finished:
            epoch = train_epoch(len(self.history) + 1)
            self.end_epoch(epoch)
            if progress_file is not None:
                self.save(progress_file)
            on_epoch(epoch)
        self.published.load_state_dict(self.best_weights)

    def end_epoch(self, epoch: E) -> None:
        """Append an epoch to the history, and copy the weights if it is the best.

        Args:
            epoch: Measurements of the epoch that has just ended.
        """
        self.history.append(epoch)
        if self.best is epoch:
            self.best_weights = copy.deepcopy(self.published.state_dict())

    def save(self, path: Path) -> None:
        """Write the progress file, with the state of the global random generators.

        Args:
            path: File to be replaced atomically.

        Raises:
            SuiteError: The file cannot be written.
        """
        state = {
            "schema": SCHEMA,
            "about": self._identity,
            "components": {name: each.state_dict() for name, each in self.components.items()},
            "best": self.best_weights,
            "history": [tuple(epoch) for epoch in self.history],
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all(),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(path, buffer.getvalue())

    def resume(self, path: Path) -> None:
        """Restore this state and the global random generators from a progress file.

        Args:
            path: File that `save` wrote.

        Raises:
            SuiteError: The file is damaged, or belongs to another run.
        """
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
            same = state["about"] == self._identity and state.get("schema") == SCHEMA
        except Exception as error:  # damaged bytes make the reader raise anything
            raise SuiteError(f"{path}: damaged; delete it and train again") from error
        if not same:
            raise SuiteError(
                f"{path}: holds the progress of another recipe '{self._recipe}', of another "
                "target, or of another version; delete it, or train into another folder"
            )
        for name, component in self.components.items():
            component.load_state_dict(state["components"][name])
        self.best_weights = state["best"]
        self.history = [self._epoch_type(*epoch) for epoch in state["history"]]
        torch.set_rng_state(state["random"])
        torch.cuda.set_rng_state_all(state["random_cuda"])


def build_component(module: ModuleType, spec: ComponentSpec, kind: str, argument: Any) -> Any:
    """Build the optimiser or schedule that a recipe names.

    Args:
        module: `torch.optim` or `torch.optim.lr_scheduler`.
        spec: Class name and keyword arguments.
        kind: Word for messages, "optimiser" or "schedule".
        argument: First positional argument: parameters, or an optimiser.

    Returns:
        The object.

    Raises:
        SuiteError: The class is unknown or refuses its arguments.
    """
    known = [name for name in vars(module) if name[0].isupper()]
    if spec.name not in known:
        raise SuiteError(f"{kind} '{spec.name}' is unknown; {nearest(spec.name, known)}")
    try:
        return getattr(module, spec.name)(argument, **spec.params)
    except (TypeError, ValueError) as error:
        raise SuiteError(f"{kind} '{spec.name}': {error}") from error
