"""Scores of detectors: their precision, their noise, and that they are those of one model."""

import threading
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bench
from bench.core.errors import SuiteError
from bench.evaluation import make_evaluator
from bench.models.preflight.checks import LoadedModel

Batch = tuple[Tensor, Tensor]
EPS = 0.35
ALLOWED = ["not-float32", "score-gradient", "random", "zero-gradient"]


class Pair(nn.Module):
    """Two pixels a and b: class 1 where 2 a + 3 b > 1.7; the score is 1 - a."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.flatten(1).unbind(1)
        return torch.stack([torch.zeros_like(a), 2 * a + 3 * b - 1.7], 1), 1 - a


def pairs(n: int = 8) -> Batch:
    """Examples of class 1 around a = b = 0.6, which eps = 0.35 brings across the boundary."""
    near = torch.linspace(0.58, 0.62, n)
    return torch.stack([near, near.flip(0)], 1)[:, None, None], torch.ones(n, dtype=torch.int64)


def evaluate(model: nn.Module, batch: Batch, **settings: Any) -> bench.Evaluation:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bench.RobustnessWarning)
        return bench.evaluate(model, *batch, **{"device": "cpu", "audit": False, **settings})


class Classifier(nn.Module):
    """A model without its score."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[0]  # type: ignore[no-any-return]


def benchmark(models: dict[str, nn.Module], batch: Batch, **settings: Any) -> bench.Benchmark:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bench.RobustnessWarning)
        return bench.benchmark(models, batch, **settings)


def detector(rejected: str, threshold: float = 0.6, **fields: Any) -> dict[str, Any]:
    return {"output": 1, "threshold": threshold, "rejected": rejected, **fields}


class Mixed(nn.Module):
    """A net whose score is of another type than its logits, or changes in other ways."""

    def __init__(self, logits: torch.dtype = torch.float32, score: torch.dtype = torch.float32):
        super().__init__()
        self.logits, self.score = logits, score

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, score = Pair()(x)
        return logits.to(self.logits), score.to(self.score)


@pytest.mark.parametrize(
    ("logits", "score", "beyond"),
    [
        (torch.float16, torch.float32, 2e-5),
        (torch.bfloat16, torch.float32, 1e-4),
        (torch.float32, torch.float64, 1e-9),
    ],
)
def test_a_score_is_compared_in_its_own_precision(
    logits: torch.dtype, score: torch.dtype, beyond: float
) -> None:
    class Near(Mixed):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            answer, far = super().forward(x)
            return answer, torch.full_like(far, 0.5) + beyond

    found = evaluate(
        Near(logits, score), pairs(), eps=0.1, detector=detector("robust", 0.5), allow=ALLOWED
    )
    assert found.records["clean_pred"].tolist() == [2] * 8
    exact = evaluate(
        Near(logits, score), pairs(), eps=0.1, allow=ALLOWED,
        detector=detector("robust", 0.5 + 2 * beyond),
    )  # fmt: skip
    assert exact.records["clean_pred"].tolist() == [1] * 8


def test_a_model_in_training_mode_is_given_back_in_it_and_never_asked_in_it() -> None:
    class Dropping(Pair):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            logits, score = super().forward(x)
            return self.drop(logits), score

    settings = {"eps": EPS, "params": {"steps": 10}, "detector": detector("robust")}
    model = Dropping().train()
    model.drop.eval()
    found = evaluate(model, pairs(), **settings)
    assert (model.training, model.drop.training) == (True, False)
    model.train()
    again = evaluate(model, pairs(), **settings)
    assert (model.training, model.drop.training) == (True, True)
    expected = evaluate(Pair(), pairs(), **settings).records["adv_pred"]
    assert expected.equals(found.records["adv_pred"])
    assert expected.equals(again.records["adv_pred"])


def load(model: nn.Module, **settings: Any) -> LoadedModel:
    evaluator = make_evaluator.from_tensors(
        model, *pairs(), torch.device("cpu"), detector=detector("robust", 1.0), **settings
    )
    (loaded,) = evaluator.models.values()
    return loaded


def test_noise_and_batches_are_found_in_a_score_that_is_small_beside_the_logits() -> None:
    class Large(Pair):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            logits, score = super().forward(x)
            return logits * 1e5, 1 + (score - 0.5) * 0.1

    class Noisy(Large):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            logits, score = super().forward(x)
            return logits, score + 0.01 * torch.randn_like(score)

    class Batched(Large):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            logits, score = super().forward(x)
            return logits, score - score.mean() + 1

    class Two(Large):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            logits, score = super().forward(x)
            return logits, score + 0.01 * torch.is_grad_enabled()

    assert not load(Large()).random
    assert load(Noisy()).random
    assert any("scores differ by" in each for each in load(Batched()).findings)
    assert any("(gradient-mode)" in each for each in load(Two()).findings)
    assert not any("gradient" in each or "batch" in each for each in load(Large()).findings)


HIDDEN = threading.local()
"""Python does not show what is in it."""
HIDDEN.offset = 0.0


class Hidden(Pair):
    """A detector whose score depends on what no fingerprint can see."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, score = super().forward(x)
        return logits, score * (1 + HIDDEN.offset)


def test_the_scores_of_the_first_images_belong_to_the_identity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def identity() -> str:
        found = evaluate(Hidden(), pairs(), eps=0.1, detector=detector("robust", 5.0))
        assert not (found.records["clean_pred"] == 2).any()
        return str(found.table["cell"][0])

    first = identity()
    assert identity() == first
    before = load(Hidden()).fingerprint
    monkeypatch.setattr(HIDDEN, "offset", 7.0)
    assert load(Hidden()).fingerprint == before
    assert identity() != first


def test_a_score_that_moves_during_the_run_ends_it_before_an_image_is_rejected() -> None:
    class Remembering(Pair):
        calls = 0

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            type(self).calls += 1
            logits, score = super().forward(x)
            return logits, score + 1e-3 * max(0, self.calls - 60)

    with pytest.raises(SuiteError, match="changes its answers during the run: the score of clean"):
        evaluate(
            Remembering(), pairs(), eps=0.1, params={"steps": 60, "restarts": 2},
            detector=detector("robust", 5.0),
        )  # fmt: skip


class Source(Pair):
    """Sure of its class; lowering or raising its score is another way than leaving the class."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.flatten(1).unbind(1)
        logits = torch.stack([torch.zeros_like(a), 30 * a + 20 * b - 17], 1)
        return logits, 0.9 + self.slope * (a - 0.7) if self.slope > 0 else 1.3 - a


@pytest.mark.parametrize("rejected", ["robust", "error"])
@pytest.mark.parametrize("budget", [None, 3])
def test_a_transfer_is_crafted_on_the_classifier_of_its_source(
    rejected: str, budget: int | None
) -> None:
    source = Source(-1 if rejected == "robust" else 0.1)
    settings = {"eps": EPS, "device": "cpu", "detector": detector(rejected, 0.9)}
    entry = {
        "name": "pgd",
        "params": {"steps": 6, "random_start": False},
        "source": ["source", "judged"],
    }
    entry |= {} if budget is None else {"victim_queries": budget}
    found = benchmark({"judged": Pair(), "source": source}, pairs(), attacks=[entry], **settings)
    records = found.records[found.records["model"] == "judged"].set_index("attack")
    expected = evaluate(
        Pair(), pairs(), source=Classifier(source), params=entry["params"],
        victim_queries=budget, **settings,
    ).records  # fmt: skip
    for name in ("adv_pred", "fooled", "linf", "l2"):
        crafted = records.loc["pgd from source", name]
        assert crafted.tolist() == expected[name].tolist()
    own = evaluate(Pair(), pairs(), params=entry["params"], stop="never", **settings).records
    if budget is None:  # the judged model itself is attacked with its detector
        assert records.loc["pgd from judged", "l2"].tolist() == own["l2"].tolist()
    assert set(found.table["source"]) == {"source", "judged"}
