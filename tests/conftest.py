"""What several test files share: real data, a real net, and a net whose robustness is known."""

from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import matplotlib
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.core import registry
from bench.core.contracts.attack import AttackSpec
from bench.datasets import digits as digits_dataset
from bench.engine import process_cache, stream
from bench.models import lenet as architecture
from bench.models.published_weights import WEIGHTS

hypothesis.settings.register_profile("same", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("same")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """The tests run on one thread, so that they are as fast and as exact on any machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def no_memory_of_other_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache for the tests: no calibration of the user is read or written, neither by a
    process that a test starts. matplotlib's list of fonts, which takes long, stays."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MPLCONFIGDIR", matplotlib.get_cachedir())
        environment.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def nothing_recalled() -> None:
    """No test sees what another one found out about the same model."""
    process_cache.clear()


@pytest.fixture(scope="session")
def _digits() -> tuple[Tensor, Tensor]:
    data = digits_dataset.load(limit=200)
    assert data.labels is not None
    return data.read(0, 200), data.labels


@pytest.fixture
def digits(_digits: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The first 200 test images, (200, 1, 28, 28), and their labels; a copy for each test."""
    x, y = _digits
    return x.clone(), y.clone()


@pytest.fixture
def lenet() -> nn.Module:
    """LeNet with the weights published for the digits, in evaluation mode; one for each test."""
    model = architecture.build()
    model.load_state_dict(load_file(WEIGHTS / "lenet-digits.safetensors"))
    return model.eval()


@pytest.fixture
def linear() -> Callable[[Tensor, Tensor], nn.Module]:
    """(w (classes, c * h * w), b (classes,)) -> the net with logits w x + b, which hides nothing:
    what the best attack on it does is a formula."""

    def build(w: Tensor, b: Tensor) -> nn.Module:
        layer = nn.Linear(w.shape[1], w.shape[0])
        with torch.no_grad():
            layer.weight.copy_(w)
            layer.bias.copy_(b)
        return nn.Sequential(nn.Flatten(), layer).eval()

    return build


@pytest.fixture
def attacked() -> Callable[..., stream.StreamResult]:
    """(model, x, y, attack, eps, settings of the spec, params=...) -> what the engine returns.

    eps is one number or several; `examples` are the ids 0..n-1 unless given; `copy`, if any, is the
    accelerated model.
    """

    def run(
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        attack: str,
        eps: float | tuple[float, ...],
        *,
        rows: int = 64,
        examples: Tensor | None = None,
        copy: nn.Module | None = None,
        params: dict[str, Any] | None = None,
        **settings: Any,
    ) -> stream.StreamResult:
        record = registry.find("attacks", attack)
        many = eps if isinstance(eps, tuple) else (eps,)
        settings = {"norm": "linf"} | settings
        chosen = record.params(**(params or {}))
        spec = AttackSpec(name=attack, attack=record, params=chosen, eps=many, **settings)
        ids = torch.arange(len(x)) if examples is None else examples
        return stream.run_attack(model, spec, x, y, ids, rows, accelerated=copy)

    return run
