"""An attack on a source that shows its iterates: at which steps, which images, and what ends it."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.core import registry
from bench.core.contracts.attack import AttackSpec
from bench.engine import stream
from bench.engine.functional import norms
from bench.engine.stream_result import StreamResult
from bench.engine.victim_queries import choose_intervals

N = 5
EPS = (0.05, 0.2)


class Victim:
    """Notes what it is shown; is fooled by the image of one number of each example, if any."""

    def __init__(self, fooled_at: Sequence[int] = (0,) * N) -> None:
        self.fooled_at = fooled_at
        self.shown: dict[tuple[int, int], list[Tensor]] = {}

    def ask(self, eps: Tensor, example: Tensor, images: Tensor) -> Tensor:
        answers = []
        for at, number, image in zip(eps.tolist(), example.tolist(), images, strict=True):
            seen = self.shown.setdefault((at, number), [])
            seen.append(image.clone())
            answers.append(len(seen) == self.fooled_at[number])
        return torch.tensor(answers, dtype=torch.bool)

    @property
    def counts(self) -> dict[tuple[int, int], int]:
        return {place: len(images) for place, images in self.shown.items()}


Run = Callable[..., StreamResult]


@pytest.fixture
def run(lenet: nn.Module, digits: tuple[Tensor, Tensor]) -> Run:
    """(victim, budget, name, params, settings) -> result of an attack on LeNet in float64."""
    net, x, y = lenet.double().requires_grad_(False), digits[0][:N].double(), digits[1][:N]

    def attack(
        victim: Victim | None,
        budget: int,
        name: str = "bim",
        params: dict[str, Any] | None = None,
        rows: int = 64,
        model: nn.Module = net,
        **settings: Any,
    ) -> StreamResult:
        record = registry.find("attacks", name)
        spec = AttackSpec(
            name=name, attack=record, params=record.params(**(params or {})),
            **{"norm": "linf", "eps": EPS, "stop": "never", **settings}, victim_queries=budget,
        )  # fmt: skip
        ask = None if victim is None else victim.ask
        return stream.run_attack(model, spec, x, y, torch.arange(N), rows, ask_victim=ask)

    return attack


def test_a_budget_is_divided_among_the_restarts_and_never_exceeded() -> None:
    for steps in range(1, 61):
        for rounds in (1, 2, 3, 7):
            for budget in range(rounds, 61):
                intervals = choose_intervals(budget, steps, rounds)
                made = [-(-steps // interval) for interval in intervals]
                assert len(made) == rounds
                assert min(made) >= 1
                assert sum(made) <= budget
                if rounds == 1:
                    assert intervals == [-(-steps // budget)]


@pytest.mark.parametrize(
    ("steps", "budget", "at"),
    [(10, 50, range(1, 11)), (10, 4, (3, 6, 9, 10)), (9, 3, (3, 6, 9)), (10, 1, (10,))],
)
def test_iterates_are_shown_every_few_steps_and_the_returned_image_at_last(
    steps: int, budget: int, at: Sequence[int], run: Run
) -> None:
    victim = Victim()
    found = run(victim, budget, params={"steps": steps, "alpha": 0.01})
    ends = [run(None, 0, params={"steps": k, "alpha": 0.01}).x_adv for k in at]
    for (eps, example), images in victim.shown.items():
        assert len(images) == len(at)
        for image, end in zip(images, ends, strict=True):
            torch.testing.assert_close(image, end[eps, example], rtol=0, atol=1e-12)
        assert torch.equal(images[-1], found.x_adv[eps, example])
    assert len(victim.shown) == N * len(EPS)


def test_the_first_success_on_the_victim_ends_the_search_with_that_image(run: Run) -> None:
    fooled_at = (1, 4, 0, 10, 2)
    victim = Victim(fooled_at)
    found = run(victim, 10)
    for (eps, example), images in victim.shown.items():
        assert len(images) == (fooled_at[example] or 10)
        assert torch.equal(found.x_adv[eps, example], images[-1])
        assert found.forwards[eps, example] == len(images)  # one step for each query


@pytest.mark.parametrize("name", ["pgd", "mifgsm", "apgd", "apgd_t", "raw_gradient", "fgsm"])
def test_the_returned_image_is_the_last_that_was_shown(name: str, run: Run) -> None:
    victim = Victim((1, 2, 3, 0, 0))
    short = {"steps": 7} if name != "fgsm" else {}
    found = run(victim, 20, name, short)
    assert max(victim.counts.values()) <= 20
    for (eps, example), images in victim.shown.items():
        assert torch.equal(found.x_adv[eps, example], images[-1])
    assert len(victim.shown) == N * len(EPS)


def test_a_restart_follows_where_the_victim_and_not_the_source_withstood(run: Run) -> None:
    params = {"steps": 6, "restarts": 3}
    victim = Victim((1, 3, 5, 0, 0))
    found = run(victim, 7, "pgd", params)  # 3, 2 and 2 of 6 steps each
    assert victim.counts == {
        (eps, example): count
        for eps in range(len(EPS))
        for example, count in enumerate((1, 3, 5, 7, 7))
    }
    assert found.forwards[0].tolist() == [2, 6, 12, 18, 18]
    starts = [images[0] for images in victim.shown.values()]
    assert not torch.equal(starts[3], victim.shown[0, 3][3])  # other noise


@pytest.mark.parametrize("name", ["pgd", "apgd"])
def test_neither_images_nor_queries_depend_on_the_batch(name: str, run: Run) -> None:
    results, counts = [], []
    for rows in (64, 3, 1):
        victim = Victim((2, 0, 7, 1, 0))
        params = {"steps": 8, "restarts": 2}
        results.append(run(victim, 12, name, params, rows).x_adv)
        counts.append(victim.counts)
    assert counts[0] == counts[1] == counts[2]
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=0, atol=1e-12)


class Short(nn.Module):
    """A model that runs out of memory with more than two images."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 2:
            raise RuntimeError("not enough memory")
        logits: Tensor = self.net(x)
        return logits


def test_no_image_is_shown_again_after_memory_ran_out(lenet: nn.Module, run: Run) -> None:
    plain, short = Victim((3, 0, 2, 0, 0)), Victim((3, 0, 2, 0, 0))
    run(plain, 5)
    found = run(short, 5, model=Short(lenet.double().requires_grad_(False)))
    assert found.rows <= 2
    assert short.counts == plain.counts


def test_iterates_outside_the_ball_are_not_shown(run: Run, digits: tuple[Tensor, Tensor]) -> None:
    victim = Victim()
    run(victim, 50, "apgd", {"steps": 20}, norm="l1", eps=(6.0,))
    x = digits[0][:N].double()
    for (_, example), images in victim.shown.items():
        far = norms.distance(torch.stack(images), x[example].expand(len(images), 1, 28, 28), "l1")
        assert (far <= 6 + 1e-6).all()
        assert 1 < len(images) < 20  # the first of its three balls are larger
