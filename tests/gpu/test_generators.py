"""Global generators are seeded and restored on the GPUs in use; no other GPU is touched."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from bench.core import rng


class Gpus:
    """In place of `torch.cuda`: four GPUs with a generator each, of which some hold memory."""

    def __init__(self, used: tuple[int, ...], current: int = 0, initialized: bool = True) -> None:
        self.used, self.current, self.initialized = used, current, initialized
        self.default_generators = [torch.Generator() for _ in range(4)]
        self.touched: set[int] = set()
        self.noted: list[int] = []

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return self.initialized

    def device_count(self) -> int:
        return len(self.default_generators)

    def current_device(self) -> int:
        return self.current

    def memory_reserved(self, device: int) -> int:
        return 512 if device in self.used else 0

    def get_rng_state(self, device: int) -> Tensor:
        self.touched.add(device)
        return self.default_generators[device].get_state()

    def set_rng_state(self, state: Tensor, device: int) -> None:
        self.touched.add(device)
        self.default_generators[device].set_state(state)

    def manual_seed_all(self, seed: int) -> None:
        assert not self.initialized
        self.noted.append(seed)

    def draw(self) -> list[float]:
        """The next number of each generator, which this moves."""
        return [float(torch.rand((), generator=each)) for each in self.default_generators]


@pytest.fixture
def seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        yield


def pretend(gpus: Gpus, monkeypatch: pytest.MonkeyPatch) -> None:
    def module(device: str) -> Gpus:
        return gpus if device == "cuda" else Absent((), initialized=False)

    monkeypatch.setattr(torch, "get_device_module", module)
    # What torch's own `fork_rng` and `manual_seed` would ask.
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: gpus.touched.update(range(4)))


class Absent(Gpus):
    def is_available(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("used", "current", "touched"), [((), 0, {0}), ((2,), 2, {2}), ((1, 3), 0, {0, 1, 3})]
)
def test_only_gpus_in_use_are_seeded_and_restored(
    used: tuple[int, ...], current: int, touched: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = Gpus(used, current)
    pretend(gpus, monkeypatch)
    before = [each.get_state() for each in gpus.default_generators]
    with rng.seed_global("here"):
        first = gpus.draw()
        assert {index for index in range(4) if first[index] == first[current]} == touched
    with rng.seed_global("here"):
        again = gpus.draw()
    assert all(again[index] == first[index] for index in touched)
    assert gpus.touched == touched
    for index in touched:
        assert torch.equal(gpus.default_generators[index].get_state(), before[index])


def test_where_no_gpu_was_used_none_is_and_the_noted_seed_is_noted_again(
    seeded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = Gpus((), initialized=False)
    pretend(gpus, monkeypatch)
    with rng.seed_global("here"):
        assert gpus.noted == [rng.fold("here") % 2**63]
    assert gpus.noted[1:] == [5]  # of torch.manual_seed(5), before
    assert not gpus.touched
