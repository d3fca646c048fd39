"""Planted truths: attacks that are broken in a known way, and what must be said of each.

The net has two classes and one weight: class 1 where the first of four pixels is above 0.5. So
what every image is worth can be seen by eye.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import bench
from bench.core import registry
from bench.core.contracts.attack import Attack, AttackSpec
from bench.core.errors import ContractError
from bench.engine import timing
from bench.evaluation import chunk, metrics
from bench.evaluation.crafting import Examples
from bench.evaluation.judge import judge

FREE = timing.Floor(0.0, 0.0)
EPS = 0.2


@dataclass(frozen=True, kw_only=True)
class Params:
    pass


class Step(nn.Module):
    """Class 1 where the first pixel is above `edge`; with all that an attack could change."""

    def __init__(self, edge: float = 0.5) -> None:
        super().__init__()
        self.edge = nn.Parameter(torch.tensor(edge))
        self.register_buffer("shift", torch.tensor(0.0))
        self.register_buffer("unsaved", torch.tensor(0.0), persistent=False)
        self.dropout = nn.Dropout(0.99)

    def forward(self, x: Tensor) -> Tensor:
        score = self.dropout(10 * (x[:, 0, 0, 0] - self.edge - self.shift - self.unsaved))
        return torch.stack([-score, score], 1)


X = torch.full((4, 1, 2, 2), 0.4)
Y = torch.tensor([0, 0, 1, 0])  # example 2 is wrong without any attack
ATTACKED = [True, True, False, True]


def measured(run: Any, *, x: Tensor = X, model: nn.Module | None = None, **settings: Any) -> Any:
    """The records, one frame for each eps, of the attack made of `run`."""
    model = model or Step().eval()
    about = {key: settings.pop(key) for key in ("budget", "norms") if key in settings}
    target = settings.pop("target", torch.full_like(Y, -1))
    rows = settings.pop("rows", 4)
    attack = Attack(
        summary="s", source="s", run=run, **{"params": Params, "norms": ("linf",)} | about
    )
    settings = {"norm": "linf", "eps": (EPS,)} | settings
    spec = AttackSpec(name="planted", attack=attack, params=Params(), **settings)
    pred, confidence, _, agreement = judge(model, x, 4)[:4]
    examples = Examples(torch.arange(4), x, Y, target, pred, confidence, agreement)
    return chunk.evaluate_chunk(model, spec, examples, rows, FREE)


def one(run: Any, **settings: Any) -> pd.DataFrame:
    (frame,) = measured(run, **settings).records
    return frame


def shift(by: float) -> Callable[..., Tensor]:
    """The attack that adds `by` to every pixel."""
    return lambda model, x, y, threat, params, noise: x + by


def outcomes(frame: pd.DataFrame) -> tuple[list[bool], list[bool]]:
    return frame["fooled"].tolist(), metrics.robust_examples(frame).tolist()


# -------------------------------------------------------------------------------- sound attacks


def test_a_success_is_seen_on_all_that_was_attacked_and_on_nothing_else() -> None:
    frame = one(shift(0.15))
    assert outcomes(frame) == (ATTACKED, [False] * 4)
    assert frame["adv_pred"].tolist() == [1, 1, 0, 1]
    assert frame["linf"].tolist() == pytest.approx([0.15, 0.15, 0, 0.15])
    assert frame["l2"].tolist() == pytest.approx([0.3, 0.3, 0, 0.3])
    assert frame["l1"].tolist() == pytest.approx([0.6, 0.6, 0, 0.6])
    assert frame["l0"].tolist() == [4, 4, 0, 4]
    assert (frame["violation"] == "").all()


def test_an_attack_that_returns_the_image_leaves_the_clean_count() -> None:
    frame = one(lambda model, x, *rest: x)
    assert outcomes(frame) == ([False] * 4, [True, True, False, True])
    assert frame["adv_pred"].equals(frame["clean_pred"])
    assert frame["confidence"].equals(frame["clean_confidence"])


def test_a_clean_error_is_not_attacked_and_not_robust_even_if_it_would_turn_right() -> None:
    seen = []

    def run(model: nn.Module, x: Tensor, y: Tensor, *rest: Any) -> Tensor:
        seen.extend(y.tolist())
        return x + 0.15  # would set example 2 right

    frame = one(run)
    assert seen == [0, 0, 0]
    assert frame["attacked"].tolist() == ATTACKED
    assert not metrics.robust_examples(frame)[2]
    assert frame["adv_pred"][2] == frame["clean_pred"][2] == 0


def test_an_example_of_the_target_class_is_not_attacked_and_only_the_target_is_success() -> None:
    target = torch.tensor([1, 0, 0, 1])
    frame = one(shift(0.15), goal="targeted", target=target)
    assert frame["attacked"].tolist() == [True, False, False, True]
    assert frame["fooled"].tolist() == [True, False, False, True]
    assert metrics.eligible_examples(frame).tolist() == [True, False, False, True]
    assert not one(shift(0.05), goal="targeted", target=target)["fooled"].any()


def test_a_target_is_what_a_targeted_attack_is_given() -> None:
    given = []

    def run(model: nn.Module, x: Tensor, y: Tensor, *rest: Any) -> Tensor:
        given.extend(y.tolist())
        return x

    one(run, goal="targeted", target=torch.tensor([1, 1, 1, 1]))
    assert given == [1, 1, 1]


def test_at_eps_0_nothing_is_run() -> None:
    frames = measured(shift(0.15), eps=(0.0, EPS)).records
    assert outcomes(frames[0]) == ([False] * 4, [True, True, False, True])
    assert (frames[0]["forwards"] == 0).all()
    assert frames[1]["fooled"].tolist() == ATTACKED


def test_the_image_rounded_to_8_bits_is_judged_too() -> None:
    x, edge = torch.full((4, 1, 2, 2), 127 / 255), 127.3 / 255
    frame = one(shift(0.4 / 255), x=x, model=Step(edge).eval())  # rounds back to 127
    assert frame["fooled"].tolist() == ATTACKED
    assert frame["adv_pred"].tolist() == [1, 1, 0, 1]
    assert frame["adv_pred_8bit"].tolist() == [0, 0, 0, 0]
    assert metrics.robust_examples_8bit(frame).tolist() == ATTACKED
    frame = one(shift(0.6 / 255), x=x, model=Step(edge).eval())  # rounds on to 128
    assert frame["adv_pred_8bit"].tolist() == [1, 1, 0, 1]


# ------------------------------------------------------------------------------------ violations


def spoilt(value: float) -> Callable[..., Tensor]:
    """The attack that succeeds, and puts `value` into the last pixel of the second image."""

    def run(model: nn.Module, x: Tensor, *rest: Any) -> Tensor:
        x = x + 0.15
        x[1, 0, 1, 1] = value
        return x

    return run


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (float("nan"), "image is not finite"),
        (float("inf"), "image is not finite"),
        (0.7, r"linf distance (0\.3|0\.2999\d+|0\.3000\d+), allowed 0\.200003"),
        (1.01, r"pixels in \[0\.55, 1\.01\], allowed \[0, 1\]"),
        (-0.001, r"pixels in \[-0\.001, 0\.55\], allowed \[0, 1\]"),
    ],
)
def test_an_image_outside_the_threat_model_is_a_violation_and_never_a_success(
    value: float, sentence: str
) -> None:
    frame = one(spoilt(value))
    assert frame["violation"].tolist()[0::2] == ["", ""]
    assert re.fullmatch(sentence, frame["violation"][1])
    assert outcomes(frame) == ([True, False, False, True], [False, True, False, False])


def test_the_ball_is_as_large_as_float32_needs_and_no_larger() -> None:
    assert (one(shift(EPS + 2e-6))["violation"] == "").all()
    assert (one(shift(EPS + 1e-5))["violation"] != "").tolist() == ATTACKED


def test_a_net_that_breaks_on_the_image_is_a_violation_and_no_success() -> None:
    class Fragile(Step):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).masked_fill((x[:, :1, 0, 0] > 0.5), torch.nan)

    frame = one(shift(0.15), model=Fragile().eval())
    assert frame["violation"][0] == "the model's output is not finite"
    assert frame["adv_pred"].tolist() == [-1, -1, 0, -1]
    assert outcomes(frame) == ([False] * 4, [True, True, False, True])


# ------------------------------------------------------------------------------- broken promises


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        (lambda x: x[:, 0], r"expected .*\(3, 1, 2, 2\) torch.float32, got \(3, 2, 2\)"),
        (lambda x: x[:2], r"got \(2, 1, 2, 2\)"),
        (lambda x: x.double(), "got .* torch.float64"),
        (lambda x: x.numpy(), "a tensor, got ndarray"),
        (lambda x: None, "a tensor, got NoneType"),
    ],
)
def test_what_is_no_batch_of_images_ends_the_cell(result: Any, sentence: str) -> None:
    with pytest.raises(ContractError, match=sentence):
        one(lambda model, x, *rest: result(x))


def test_an_exception_of_the_attack_is_not_swallowed(tmp_path: Path) -> None:
    file = tmp_path / "planted.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from bench import Attack\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Params:\n"
        "    pass\n"
        "def run(model, x, y, threat, params, noise):\n"
        "    raise ZeroDivisionError('planted')\n"
        "ATTACK = Attack(summary='s', source='s', params=Params, norms=('linf',), run=run)\n"
    )
    with pytest.raises(ZeroDivisionError, match="planted"):
        bench.evaluate(Step(), X, Y, attack=f"{file}:ATTACK", eps=EPS, device="cpu")


def test_an_image_changed_in_place_is_measured_from_the_original() -> None:
    def run(model: nn.Module, x: Tensor, *rest: Any) -> Tensor:
        return x.add_(0.5)

    x = X.clone()
    frame = one(run, x=x)
    assert torch.equal(x, X)
    assert frame["linf"].tolist() == pytest.approx([0.5, 0.5, 0, 0.5])
    assert (frame["violation"] != "").tolist() == ATTACKED


def test_labels_changed_in_place_do_not_reach_the_records() -> None:
    def run(model: nn.Module, x: Tensor, y: Tensor, *rest: Any) -> Tensor:
        y.fill_(1)
        return x + 0.15

    frame = one(run)
    assert frame["label"].tolist() == [0, 0, 1, 0]
    assert frame["fooled"].tolist() == ATTACKED


def test_a_net_put_into_training_mode_is_judged_in_evaluation_mode_and_given_back() -> None:
    def run(model: nn.Module, x: Tensor, *rest: Any) -> Tensor:
        model.train()
        return x + 0.15

    model = Step().eval()
    frame = one(run, model=model)  # dropout would set nearly every score to 0: class 0
    assert frame["fooled"].tolist() == ATTACKED
    assert [module.training for module in model.modules()] == [False, False]


def test_every_batch_finds_the_net_in_evaluation_mode_whatever_the_last_one_did() -> None:
    modes = []

    def run(model: nn.Module, x: Tensor, *rest: Any) -> Tensor:
        modes.append(model.dropout.training)
        model.train()
        return x

    one(run, rows=1)
    assert modes == [False, False, False]


def test_an_attack_finds_frozen_parameters_and_gives_them_back() -> None:
    wants = []

    def run(model: nn.Module, x: Tensor, *rest: Any) -> Tensor:
        wants.append(model.edge.requires_grad)
        model.requires_grad_(True)
        x = x.requires_grad_()
        model(x).sum().backward()
        return x

    model = Step().eval()
    one(run, model=model)
    assert wants == [False]
    assert model.edge.requires_grad
    assert model.edge.grad is None


@pytest.mark.parametrize("what", ["edge", "shift", "unsaved"])
def test_a_changed_weight_or_buffer_is_put_back_and_ends_the_cell(what: str) -> None:
    def run(model: nn.Module, x: Tensor, *rest: Any) -> Tensor:
        getattr(model, what).data.fill_(0.1)
        return x

    model = Step().eval()
    with pytest.raises(ContractError, match=f"the attack changed the model: {what}"):
        one(run, model=model)
    assert (model.edge.item(), model.shift.item(), model.unsaved.item()) == (0.5, 0.0, 0.0)


def test_an_attack_that_raises_leaves_no_changed_weight_behind() -> None:
    def run(model: nn.Module, x: Tensor, *rest: Any) -> Tensor:
        model.edge.data.fill_(0.1)
        model.train()
        raise ZeroDivisionError

    model = Step().eval()
    with pytest.raises(ZeroDivisionError):
        one(run, model=model)
    assert model.edge.item() == 0.5
    assert not model.training


def test_an_attack_that_reseeds_the_world_leaves_the_callers_world() -> None:
    def run(model: nn.Module, x: Tensor, *rest: Any) -> Tensor:
        torch.manual_seed(1)
        return x

    before = torch.get_rng_state()
    one(run)
    assert torch.equal(torch.get_rng_state(), before)


# ------------------------------------------------------------------------------ least distance


def test_an_attack_that_seeks_the_least_distance_runs_once_and_is_read_at_every_eps() -> None:
    calls = []

    def run(model: nn.Module, x: Tensor, *rest: Any) -> Tensor:
        calls.append(len(x))
        distances = torch.tensor([0.12, 0.25, 0.4])
        return x + distances[:, None, None, None]

    eps = (0.3, 0.1, 0.2, 0.4)
    frames = measured(run, eps=eps, budget="minimum").records
    assert calls == [3]
    won = dict(zip(eps, (frame["fooled"].tolist() for frame in frames), strict=True))
    assert won[0.1] == [False, False, False, False]
    assert won[0.2] == [True, False, False, False]
    assert won[0.3] == [True, True, False, False]
    assert won[0.4] == [True, True, False, True]
    assert all((frame["violation"] == "").all() for frame in frames)


def test_what_is_too_far_at_an_eps_is_read_as_the_clean_image() -> None:
    frame = one(shift(0.3), budget="minimum")
    assert outcomes(frame) == ([False] * 4, [True, True, False, True])
    assert (frame["linf"] == 0).all()


def test_a_least_distance_that_is_nan_is_a_violation_at_every_eps() -> None:
    frames = measured(spoilt(float("nan")), eps=(0.1, 0.3), budget="minimum").records
    for frame in frames:
        assert frame["violation"].tolist() == ["", "image is not finite", "", ""]
        assert not frame["fooled"][1]


# ------------------------------------------------------------------------------------ a lying copy


def led(copy: nn.Module | None, attack: str = "bim", **settings: Any) -> chunk.VerifiedChunk:
    """What is measured where a rule attacks the planted net, led by `copy`."""
    rule = registry.find("attacks", attack)
    params = rule.params(**settings.pop("params", {"steps": 10}))
    source, target, model = (settings.pop(key, None) for key in ("source", "target", "model"))
    settings = {"norm": "linf", "eps": (EPS,)} | settings
    spec = AttackSpec(name=attack, attack=rule, params=params, **settings)
    target = torch.full_like(Y, -1) if target is None else target
    model = model or Step().eval()
    pred, confidence, _, agreement = judge(model, X, 4)[:4]
    examples = Examples(torch.arange(4), X, Y, target, pred, confidence, agreement)
    return chunk.evaluate_chunk(model, spec, examples, 4, FREE, source=source, accelerated=copy)


LED: list[dict[str, Any]] = [
    {},
    {"eps": (0.05, EPS, 0.3)},
    {"eps": (0.05, EPS, 0.3), "sweep": "nested"},
    {"attack": "pgd", "params": {"steps": 5, "restarts": 3}, "eps": (0.09, 0.12, EPS)},
    {"attack": "fgsm", "params": {}, "eps": (0.05, EPS), "sweep": "nested"},
    {"goal": "targeted", "target": torch.tensor([1, 1, 0, 1])},
    {"source": Step(0.52).eval()},
]


@pytest.mark.parametrize("settings", LED, ids=lambda settings: " ".join(settings))
@pytest.mark.parametrize("edge", [0.42, 0.47, 0.5])
def test_a_copy_that_takes_what_stands_for_fooled_changes_no_verdict(
    edge: float, settings: dict[str, Any]
) -> None:
    honest, misled = led(None, **settings), led(Step(edge).eval(), **settings)
    for ours, theirs in zip(misled.records, honest.records, strict=True):
        cost = ["forwards", "backwards"]
        assert ours.drop(columns=cost).equals(theirs.drop(columns=cost))
        assert (ours[cost] >= theirs[cost]).to_numpy().all()
    assert torch.equal(misled.x_adv, honest.x_adv)
    assert honest.records[-1]["fooled"].tolist() == ATTACKED


def test_without_a_stop_a_lie_changes_no_more_than_when_the_first_success_was_seen() -> None:
    honest, misled = led(None, stop="never"), led(Step(0.45).eval(), stop="never")
    seen = ["first_success_step"]
    (ours,), (theirs,) = misled.records, honest.records
    assert ours.drop(columns=seen).equals(theirs.drop(columns=seen))
    assert (ours[seen].to_numpy() <= theirs[seen].to_numpy()).all()


def test_the_passes_that_a_lie_cost_are_counted_and_an_honest_copy_costs_none() -> None:
    def passes(copy: nn.Module | None) -> list[float]:
        (frame,) = led(copy).records
        assert frame["forwards"].equals(frame["backwards"])
        return frame["forwards"].tolist()

    assert passes(None) == passes(Step().eval()) == [6, 6, 0, 6]  # 0.4 + 5 * 0.02 is not above 0.5
    assert passes(Step(0.45).eval()) == [10, 10, 0, 10]  # the copy takes 0.46 for a success


class Tiring(Step):
    """Easier to fool in its first answers than in later ones, as a random net may seem."""

    asked = 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked += 1
        return super().forward(x + 0.05 if self.asked <= 5 else x)


def test_a_net_that_stands_in_for_itself_is_not_attacked_twice() -> None:
    def passes(copied: bool) -> list[float]:
        net = Tiring().eval()
        (frame,) = led(net if copied else None, model=net).records
        assert not frame["fooled"].any()
        return frame["forwards"].tolist()

    assert passes(copied=False) == passes(copied=True) == [4, 4, 0, 4]


class Rough(Step):
    """Easier to fool where float32 products may be rounded to TF32."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.05 if torch.backends.cuda.matmul.allow_tf32 else x)


@pytest.mark.parametrize("copied", [True, False])
@pytest.mark.parametrize("settings", [{}, {"stop": "never", "sweep": "nested"}], ids=str)
def test_what_is_fooled_in_tf32_alone_is_attacked_on(
    settings: dict[str, Any], copied: bool
) -> None:
    net = Rough().eval()
    copy = Rough().eval() if copied else None
    small, large = led(copy, model=net, precision="tf32", eps=(0.06, EPS), **settings).records
    assert large["fooled"].tolist() == ATTACKED
    assert not small["fooled"].any()


def test_a_copy_that_never_takes_the_net_for_fooled_is_judged_by_its_last_iterates() -> None:
    (frame,) = led(Step(0.9).eval()).records
    assert frame["fooled"].tolist() == ATTACKED
    assert frame["linf"].tolist() == pytest.approx([EPS, EPS, 0, EPS])
    assert frame["first_success_step"].tolist() == [10, 10, -1, 10]


# ----------------------------------------------------------------------------------- bookkeeping


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_the_passes_of_a_foreign_loop_are_shared_by_its_examples(rows: int) -> None:
    def run(model: nn.Module, x: Tensor, *rest: Any) -> Tensor:
        for _ in range(3):
            x = x.detach().requires_grad_()
            torch.autograd.grad(model(x).sum(), x)
        return x

    frame = one(run, rows=rows)
    assert frame["forwards"].tolist() == [3, 3, 0, 3]
    assert frame["backwards"].tolist() == [3, 3, 0, 3]


def test_the_costs_name_how_many_were_attacked() -> None:
    costs = measured(shift(0.15), eps=(0.0, EPS)).costs
    assert [cost.attacked for cost in costs] == [0, 3]
    assert costs[1].seconds > 0


def test_the_images_kept_are_those_returned_and_clean_where_nothing_was_attacked() -> None:
    kept = measured(shift(0.15), eps=(0.0, EPS)).x_adv
    assert torch.equal(kept[0], X)
    assert torch.equal(kept[1], X + 0.15 * torch.tensor(ATTACKED).view(4, 1, 1, 1))


@pytest.fixture(autouse=True)
def _unchanged() -> Iterator[None]:
    """No test may reach the module's own images and labels."""
    x, y = X.clone(), Y.clone()
    yield
    assert torch.equal(X, x)
    assert torch.equal(Y, y)
