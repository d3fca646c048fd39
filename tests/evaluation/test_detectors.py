"""Models that reject images: what counts as robust, and attacks that evade the score."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bench
from bench.core import registry
from bench.core.contracts.attack import EnsembleAttack, ExternalAttack, Part
from bench.core.contracts.detector import Detector
from bench.core.contracts.types import Threat
from bench.core.errors import SuiteError
from bench.engine.functional.logits import predict_class
from bench.engine.rejection import RejectingModel, merge_rejection
from bench.evaluation import make_evaluator, metrics
from bench.suite import plan
from bench.suite.caveats import list_caveats
from bench.suite.identity import ModelFacts
from bench.suite.reader import parse_attack

Batch = tuple[Tensor, Tensor]
EPS = 0.35
UNUSED = ["rejection", "rejected_is_robust", "cell", "model"]


class Pair(nn.Module):
    """Two pixels a and b: class 1 where 2 a + 3 b > 1.7; the score is 1 - a."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.flatten(1).unbind(1)
        return torch.stack([torch.zeros_like(a), 2 * a + 3 * b - 1.7], 1), 1 - a


class Classifier(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[0]  # type: ignore[no-any-return]


class Scored(nn.Module):
    """A classifier with the score of a function of the images."""

    def __init__(self, net: nn.Module, score: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.score = net, score

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.net(x), "score": self.score(x)}


def energy(x: Tensor) -> Tensor:
    return (x[..., 1:] - x[..., :-1]).square().flatten(1).mean(1, keepdim=True)


def pairs(n: int = 8) -> Batch:
    """Examples of class 1 around a = b = 0.6, which eps = 0.35 brings across the boundary."""
    near = torch.linspace(0.58, 0.62, n)
    return torch.stack([near, near.flip(0)], 1)[:, None, None], torch.ones(n, dtype=torch.int64)


def evaluate(model: nn.Module, batch: Batch, **settings: Any) -> bench.Evaluation:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bench.RobustnessWarning)
        return bench.evaluate(model, *batch, **{"device": "cpu", "audit": False, **settings})


def detector(rejected: str, threshold: float = 0.6, **fields: Any) -> dict[str, Any]:
    return {"output": 1, "threshold": threshold, "rejected": rejected, **fields}


def step_of_sign(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *_: object) -> Tensor:
    x = x.clone().requires_grad_()
    nn.functional.cross_entropy(model(x), y, reduction="sum").backward()
    assert x.grad is not None
    return (x + threat.eps * x.grad.sign()).clamp(0, 1).detach()


@dataclasses.dataclass(frozen=True)
class NoParams:
    """No parameters."""


UNAWARE = ExternalAttack(
    summary="one step", source="a test", params=NoParams, norms=("linf",), run=step_of_sign
)


def parts(params: NoParams, norm: str) -> Sequence[Part]:
    built = [registry.find("attacks", name) for name in ("noise", "apgd")]
    return [
        Part("blind", "unaware", UNAWARE, params),
        *(Part(name, name, each, each.params()) for name, each in zip("ab", built, strict=True)),
    ]


TWO_PARTS = EnsembleAttack(
    summary="one step, then others", source="a test", params=NoParams, norms=("linf",), parts=parts
)


# ----------------------------------------------------------------------------------- the verdicts


@pytest.mark.parametrize("rejected", ["robust", "error"])
def test_a_detector_that_never_rejects_changes_no_record(
    lenet: nn.Module, digits: Batch, rejected: str
) -> None:
    batch = digits[0][:16], digits[1][:16]
    scored = Scored(lenet, energy)
    never = {"output": "score", "threshold": 1e9, "rejected": rejected}
    for attack in ("pgd", "apgd_t"):
        settings = {"attack": attack, "eps": [0, 0.1], "params": {"steps": 5}}
        plain = evaluate(lenet, batch, **settings).records
        found = evaluate(scored, batch, detector=never, **settings).records
        # Where a rejection is an error, what resists is attacked again.
        others = [*UNUSED, "forwards", "backwards"] if rejected == "error" else UNUSED
        assert plain.drop(columns=others).equals(found.drop(columns=others))
        assert (found["rejection"] == 10).all()
        assert (plain["rejection"] == -1).all()


@pytest.mark.parametrize("rejected", ["robust", "error"])
def test_a_detector_that_rejects_everything_has_no_clean_accuracy_and_no_robust_one(
    rejected: str,
) -> None:
    found = evaluate(Pair(), pairs(), eps=EPS, detector=detector(rejected, -1.0))
    assert found.records["clean_pred"].tolist() == [2] * 8
    row = found.table.iloc[0]
    assert (row["clean_correct"], row["robust_correct"], row["attacked"]) == (0, 0, 0)


@pytest.mark.parametrize("rejected", ["robust", "error"])
def test_without_labels_a_rejected_clean_image_is_not_classified_correctly(
    rejected: str,
) -> None:
    x, y = pairs()
    evaluator = make_evaluator.from_tensors(
        Pair(), x, y, torch.device("cpu"), detector=detector(rejected, 0.4)
    )
    unlabelled = dataclasses.replace(evaluator.data, labels=None)
    evaluator = dataclasses.replace(evaluator, data=unlabelled)
    (label,) = evaluator.models
    clean = evaluator.clean_pass(label)
    turned_down = Pair()(x)[1] > 0.4
    assert 0 < int(turned_down.sum()) < len(x)
    assert torch.equal(clean.pred == 2, turned_down)
    assert torch.equal(clean.pred != clean.label, turned_down)
    assert clean.label.tolist() == [1] * len(x)


@pytest.mark.parametrize("rejects", ["above", "below"])
def test_a_score_of_exactly_the_threshold_is_accepted(rejects: str) -> None:
    x, y = pairs(1)
    score = float(Pair()(x)[1])
    beyond = {"above": -torch.inf, "below": torch.inf}[rejects]
    just = float(torch.nextafter(torch.tensor(score), torch.tensor(beyond)))
    for threshold, accepted in ((score, 1), (just, 0)):
        given = detector("robust", threshold, rejects=rejects)
        found = evaluate(Pair(), (x, y), eps=0, detector=given)
        assert found.table["clean_correct"].tolist() == [accepted]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_class_of_rejection_is_predicted_exactly_where_the_score_is_beyond(
    dtype: torch.dtype,
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(400, 3, generator=generator) * 10 ** torch.linspace(-6, 4, 400)[:, None]
    logits[::7] -= 1e4
    score = torch.randn(400, generator=generator) * 10 ** torch.linspace(4, -7, 400)
    score[::5] = 0
    answer = torch.cat([logits, score[:, None]], 1).to(dtype)
    net = nn.Identity()
    for above in (True, False):
        model = RejectingModel(net, 3, threshold=0.0, above=above, spares=True)
        predicted = predict_class(model(answer))
        rejected = answer[:, -1] > 0 if above else answer[:, -1] < 0
        assert torch.equal(predicted == 3, rejected)
        assert torch.equal(predicted[~rejected], predict_class(answer[:, :-1])[~rejected])
        for label in torch.arange(3).expand(400, 3).unbind(1):
            merged = predict_class(merge_rejection(model(answer), label))
            spared = rejected | (predicted == label)
            assert torch.equal(merged == label, spared)
            assert torch.equal(merged[~spared], predicted[~spared])


# ------------------------------------------------------------------------------------ the attacks


def test_an_attack_that_knows_the_score_evades_it_and_one_that_does_not_is_rejected() -> None:
    given = detector("robust")
    blind = evaluate(Pair(), pairs(), attack=UNAWARE, eps=EPS, detector=given)
    assert blind.table["fooled"].tolist() == [0]
    assert (blind.records["adv_pred"] == 2).all()
    assert "does not know the detector" in blind.table["caveats"][0]
    assert evaluate(Classifier(Pair()), pairs(), attack=UNAWARE, eps=EPS).table["fooled"][0] == 8
    for attack, least in (("pgd", 6), ("apgd", 8)):
        aware = evaluate(Pair(), pairs(), attack=attack, eps=EPS, detector=given)
        assert aware.table["fooled"][0] >= least, attack
        assert (aware.records["adv_pred"] == 0).sum() == aware.table["fooled"][0]
        assert "does not know the detector" not in aware.table["caveats"][0]


def test_where_a_rejection_is_an_error_causing_one_is_a_success() -> None:
    found = evaluate(Pair(), pairs(), attack="pgd", eps=0.25, detector=detector("error"))
    assert found.table["robust_correct"].tolist() == [0]
    assert (found.records["adv_pred"] == 2).any()  # 0.25 does not reach the boundary
    spared = evaluate(Pair(), pairs(), attack="pgd", eps=0.25, detector=detector("robust"))
    assert spared.table["robust_correct"].tolist() == [8]


@pytest.mark.parametrize(("attack", "steps"), [("hopskipjump", 200), ("ddn", 50)])
def test_searches_return_images_that_are_accepted(attack: str, steps: int) -> None:
    found = evaluate(
        Pair(), pairs(), attack=attack, norm="l2", eps=0.6, detector=detector("robust"),
        params={"steps": steps},
    )  # fmt: skip
    assert found.table["fooled"].tolist() == [8]
    assert (1 - found.records["distance"]).gt(0.3).all()  # a + b have to fall by 0.39 in all


@pytest.mark.parametrize("target", ["next", "least-likely"])
def test_no_target_is_the_class_of_rejection(lenet: nn.Module, digits: Batch, target: str) -> None:
    scored = Scored(lenet, lambda x: energy(x) - 100)  # far below: the least of all logits
    found = evaluate(
        scored, (digits[0][:30], digits[1][:30]), eps=0.1, goal="targeted", target=target,
        params={"steps": 3}, detector={**detector("robust", 0.0), "output": "score"},
    )  # fmt: skip
    assert found.records["target"].between(0, 9).all()
    assert found.records["fooled"].equals(
        found.records["attacked"] & (found.records["adv_pred"] == found.records["target"])
    )


def test_the_outcome_of_an_ensemble_and_of_restarts_is_that_of_the_records(
    lenet: nn.Module, digits: Batch
) -> None:
    scored = Scored(lenet, energy)
    threshold = float(energy(digits[0]).quantile(0.9))
    batch = digits[0][:10], digits[1][:10]
    given = {**detector("robust", threshold), "output": "score"}
    for attack, params in ((TWO_PARTS, {}), ("pgd", {"steps": 4, "restarts": 2})):
        found = evaluate(
            scored, batch, detector=given, attack=attack, eps=[0.05, 0.1], params=params
        )
        for eps, rows in found.records.groupby("eps"):
            right = rows["clean_pred"] == rows["label"]
            withstood = right & rows["adv_pred"].isin([10]) | (rows["adv_pred"] == rows["label"])
            row = found.table[found.table["eps"] == eps].iloc[0]
            assert row["robust_correct"] == (withstood & right).sum()
            assert row["fooled"] == (right & ~withstood).sum()
            assert row["clean_correct"] == right.sum()
            assert metrics.rejected_examples(rows, "clean_pred").equals(rows["clean_pred"] == 10)


def test_a_grid_search_goes_on_where_the_image_is_rejected(lenet: nn.Module, digits: Batch) -> None:
    scored = Scored(lenet, lambda x: x.flatten(1).sum(1))  # what leaves the frame lowers it
    batch = digits[0][:20], digits[1][:20]
    threshold = float(batch[0].flatten(1).sum(1).min()) - 1e-3
    given = {**detector("robust", threshold), "output": "score", "rejects": "below"}
    settings = {
        "attack": "rotation_translation", "norm": "rotation-translation", "eps": 1.0,
        "params": {"angles": 5, "shifts": 3}, "batch_size": 1,
    }  # fmt: skip
    found = evaluate(scored, batch, detector=given, **settings).records
    plain = evaluate(lenet, batch, **settings).records
    assert 0 < found["fooled"].sum() <= plain["fooled"].sum()
    assert not (found["fooled"] & (found["adv_pred"] == 10)).any()
    assert (found["parameters"] != plain["parameters"])[found["fooled"]].any()


def test_results_do_not_depend_on_the_batch(lenet: nn.Module, digits: Batch) -> None:
    given = {**detector("robust", float(energy(digits[0]).quantile(0.9))), "output": "score"}
    batch = digits[0][:20], digits[1][:20]
    one, other = (
        evaluate(
            Scored(lenet, energy), batch, eps=0.1, params={"steps": 5}, batch_size=size,
            detector=given, copied=False,
        ).records
        for size in (3, 20)
    )  # fmt: skip
    assert one["adv_pred"].equals(other["adv_pred"])
    assert one["fooled"].equals(other["fooled"])


def test_images_of_another_model_are_judged_with_the_detector() -> None:
    plain = Classifier(Pair())
    found = evaluate(Pair(), pairs(), source=plain, eps=EPS, detector=detector("robust"))
    assert found.table["fooled"].tolist() == [0]
    assert (found.records["adv_pred"] == 2).all()
    assert "does not know the detector" in found.table["caveats"][0]


def test_another_model_with_an_equal_detector_does_not_know_the_one_that_is_judged() -> None:
    judged = ModelFacts(
        2, (1, 1, 2), model_fingerprint="a", detector=Detector(**detector("robust"))
    )
    other = judged._replace(model_fingerprint="b")
    entry = parse_attack({"name": "pgd", "norm": "linf", "eps": [0.1]}, "a test")
    own, transfer = (
        " ".join(list_caveats(entry, 0.1, "independent", judged, crafting))
        for crafting in (judged, other)
    )
    assert "does not know the detector" not in own
    assert "does not know the detector" in transfer


# ------------------------------------------------------------------------- what a user gets wrong


def test_threshold_counting_and_side_are_part_of_the_identity() -> None:
    settings = [
        detector("robust"), detector("error"), detector("robust", 0.61),
        detector("robust", rejects="below", threshold=-5.0),
    ]  # fmt: skip
    cells = [
        evaluate(Pair(), pairs(), eps=0.1, detector=each).table["cell"][0] for each in settings
    ]
    assert len(set(cells)) == 4
    again = evaluate(Pair(), pairs(), eps=0.1, detector=Detector(**settings[0]))
    assert again.table["cell"][0] == cells[0]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"treshold": 0.5}, "treshold: unknown key; did you mean 'threshold'?"),
        ({"rejected": "robst"}, "'robust' or 'error' (did you mean 'robust'?), got 'robst'"),
        ({"output": 2}, "a tuple of 2 has no output 2"),
        ({"output": 0}, "expected a score an image in output 0, (8,) or (8, 1), got (8, 2)"),
        ({"threshold": float("nan")}, "threshold: expected a finite number, got nan"),
    ],
)
def test_a_mistake_in_the_entry_is_one_sentence(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(SuiteError) as caught:
        evaluate(Pair(), pairs(), eps=0.1, detector={**detector("robust"), **fields})
    assert said in str(caught.value)


@pytest.mark.parametrize("given", [0.6, "above 0.6", [0.6]])
def test_a_detector_that_is_no_mapping_is_refused(given: object) -> None:
    with pytest.raises(SuiteError, match=r"^detector: expected a mapping with the keys output"):
        evaluate(Pair(), pairs(), eps=0.1, detector=given)


def test_a_score_that_is_missing_not_finite_or_without_a_gradient_is_said(
    lenet: nn.Module, digits: Batch
) -> None:
    batch = digits[0][:16], digits[1][:16]
    given = {**detector("robust", 0.5), "output": "score"}
    with pytest.raises(SuiteError, match="got one tensor"):
        evaluate(lenet, batch, eps=0.1, detector=given)
    with pytest.raises(SuiteError, match="expected finite scores, got NaN or infinity on 16 of 16"):
        evaluate(Scored(lenet, lambda x: x[:, 0, 0, 0] / 0), batch, eps=0.1, detector=given)
    with pytest.raises(SuiteError, match='expected access = "gradient", got "scores"'):
        evaluate(Scored(lenet, energy), batch, eps=0.1, access="scores", detector=given)
    model = Scored(lenet, lambda x: energy(x).detach())
    with pytest.warns(
        bench.RobustnessWarning,
        match=r"no gradient of its score on 16 of 16(?s:.*)\(score-gradient\)",
    ):
        bench.evaluate(
            model, *batch, eps=0.1, params={"steps": 2}, audit=False, device="cpu", detector=given
        )


def test_a_score_that_is_not_finite_under_attack_is_a_violation() -> None:
    class Lost(Pair):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            logits, score = super().forward(x)
            return logits, torch.where(score > 0.5, torch.nan, score)

    found = evaluate(Lost(), pairs(), attack=UNAWARE, eps=EPS, detector=detector("robust"))
    assert (found.records["violation"] != "").all()
    assert not found.records["fooled"].any()


def test_a_model_whose_score_is_random_is_random() -> None:
    class Noisy(Pair):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            logits, score = super().forward(x)
            return logits, score + torch.randn_like(score)

    evaluator = make_evaluator.from_tensors(
        Noisy(), *pairs(), torch.device("cpu"), detector=detector("robust")
    )
    (loaded,) = evaluator.models.values()
    assert loaded.random


def test_a_model_that_writes_into_its_input_or_takes_one_size_alone_is_converted() -> None:
    class Writing(Pair):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x.mul_(1.0).add_(0.0).clamp_(0.01, 1))

    class Fixed(Pair):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            if len(x) != 4:
                raise RuntimeError("expected 4 images")
            return super().forward(x)

    settings = {"eps": EPS, "params": {"steps": 10}, "detector": detector("robust")}
    expected = evaluate(Pair(), pairs(), **settings).records
    for model in (Writing(), Fixed()):
        found = evaluate(model, pairs(), **settings).records
        assert found["adv_pred"].equals(expected["adv_pred"])


class HalfLogits(Pair):
    """Classifies in half precision and scores in single precision."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, score = super().forward(x)
        return logits.half(), score


def test_logits_in_half_precision_are_found_beside_a_score_in_single_precision() -> None:
    given = detector("robust")
    with pytest.raises(SuiteError, match="expected float32 logits, got float16"):
        evaluate(HalfLogits(), pairs(), eps=EPS, detector=given)
    allowed = evaluate(HalfLogits(), pairs(), eps=EPS, detector=given, allow=["not-float32"])
    assert any("(not-float32, allowed" in each for each in allowed.findings)


class Unreachable(nn.Module):
    """As `Pair` with steeper logits, and a score that rises with both pixels, up to 1."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.flatten(1).unbind(1)
        return torch.stack([torch.zeros_like(a), 8 * a + 12 * b - 6.8], 1), (a + b) / 2


@pytest.mark.parametrize("attack", ["fgsm", "pgd", "apgd", TWO_PARTS])
@pytest.mark.parametrize("stop", ["first-success", "never"])
def test_a_score_that_never_rejects_does_not_lead_attacks_away_from_the_classifier(
    attack: str | EnsembleAttack, stop: str
) -> None:
    """Next to it class 0 has a probability of 0.003, and so hardly any weight."""
    never = detector("error", 1.01)
    found = evaluate(Unreachable(), pairs(), attack=attack, eps=[0.01, 0.35], stop=stop,
                     detector=never)  # fmt: skip
    assert found.table["robust_correct"].tolist() == [8, 0]
    assert found.table["violations"].tolist() == [0, 0]
    broken = found.records[found.records["eps"] == 0.35]
    assert (broken["adv_pred"] == 0).all()


def test_what_is_attacked_twice_is_planned_counted_and_identified_so() -> None:
    entry = parse_attack({"name": "pgd", "norm": "linf", "eps": [0.35]}, "a test")
    once, twice = (
        plan.plan_task(
            "net", entry,
            ModelFacts(2, (1, 1, 2), model_fingerprint="a", detector=Detector(**detector(way))),
            0, "independent",
        ).cells[0]
        for way in ("robust", "error")
    )  # fmt: skip
    assert (twice.passes, twice.gradients) == (2 * (once.passes or 0), 2 * (once.gradients or 0))
    assert twice.identity != once.identity
    steps = {"steps": 4}
    found = evaluate(Unreachable(), pairs(), eps=0.05, params=steps, detector=detector("error", 2))
    assert found.table["backwards_per_example"].tolist() == [8]
