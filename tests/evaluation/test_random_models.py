"""Models that answer at random: verdicts by majority, gradients in expectation, the same bits.

The nets draw from torch's global generator, as a user's do; what they ought to answer is known.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import bench
from bench.analysis import tables
from bench.core import rng
from bench.core.contracts.attack import Attack, AttackSpec
from bench.core.contracts.rule import AttackBatch, Rule
from bench.core.contracts.types import Sweep
from bench.core.errors import SuiteError
from bench.datasets.in_memory import make_data
from bench.engine import stream
from bench.engine.acceleration import accelerate, layers
from bench.evaluation.judge import Vote, judge
from bench.models import dropout_cnn
from bench.models.preflight import checks
from bench.storage import records, schema
from bench.storage.reader import read_records
from bench.suite import plan, reader
from bench.suite.identity import ModelFacts

Net = nn.Module


@pytest.fixture(autouse=True)
def _draws_of_its_own() -> Iterator[None]:
    """The nets here draw globally; what other tests draw stays what it is."""
    with rng.seed_global("randomised"):
        yield


class Noisy(nn.Module):
    """A net that sees each image through Gaussian noise of its own."""

    def __init__(self, net: nn.Module, sigma: float) -> None:
        super().__init__()
        self.net, self.sigma = net, sigma

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + self.sigma * torch.randn_like(x))  # type: ignore[no-any-return]


class Biased(nn.Module):
    """Answers class 1 with probability `share`, whatever it is shown, and class 0 otherwise."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        ones = (torch.rand(len(x)) < self.share).long()
        return 5.0 * nn.functional.one_hot(ones, 3) + 0.0 * x.flatten(1).sum(1, keepdim=True)


class Scripted(nn.Module):
    """The logits that a script says, one entry a pass, for every image."""

    def __init__(self, script: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.script = iter(script)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor(next(self.script)).expand(len(x), -1)


def blank(n: int) -> Tensor:
    return torch.zeros(n, 1, 2, 2)


# ------------------------------------------------------------------------------- the judge's votes


def test_the_answer_is_the_class_most_often_given_with_its_mean_probability() -> None:
    script = [[9.0, 0, 0], [0, 2.0, 0], [0, 1.0, 0]]
    verdict = judge(Scripted(script), blank(2), 4, Vote(3, seed=0))
    of_1 = [1 / (math.exp(9) + 2), *(math.exp(z) / (math.exp(z) + 2) for z in (2.0, 1.0))]
    assert verdict.pred.tolist() == [1, 1]
    assert verdict.agreement.tolist() == pytest.approx([2 / 3] * 2)
    assert verdict.confidence.tolist() == pytest.approx([sum(of_1) / 3] * 2)


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_on_a_tie_the_smaller_class_is_the_answer(order: tuple[int, int]) -> None:
    once = {1: [0.0, 1.0, 0.0], 2: [0.0, 0.0, 8.0]}
    verdict = judge(Scripted([once[k] for k in order]), blank(1), 4, Vote(2, seed=0))
    assert verdict.pred.tolist() == [1]
    assert verdict.agreement.tolist() == [0.5]


def test_one_prediction_that_is_not_finite_spoils_the_verdict() -> None:
    script = [[0.0, 1.0], [0.0, float("nan")], [0.0, 1.0]]
    verdict = judge(Scripted(script), blank(1), 4, Vote(3, seed=0))
    assert verdict.pred.tolist() == [-1]


def test_the_majority_comes_as_often_as_the_binomial_distribution_says() -> None:
    n, predictions, share = 4000, 11, 0.6
    verdict = judge(Biased(share), blank(n), 500, Vote(predictions, seed=0))
    expected = sum(
        math.comb(predictions, k) * share**k * (1 - share) ** (predictions - k)
        for k in range(6, predictions + 1)
    )
    measured = float((verdict.pred == 1).double().mean())
    assert abs(measured - expected) < 4 * math.sqrt(expected * (1 - expected) / n)
    assert float((verdict.agreement == 1).double().mean()) == pytest.approx(
        share**predictions + (1 - share) ** predictions, abs=0.005
    )


def test_a_verdict_depends_on_its_seed_alone_and_leaves_the_global_generator() -> None:
    def asked(seed: int) -> list[int]:
        return judge(Biased(0.5), blank(64), 16, Vote(3, seed)).pred.tolist()

    before = torch.get_rng_state()
    first = asked(1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert asked(1) == first != asked(2)


def test_rounded_to_8_bits_an_image_meets_the_same_draws(digits: Any) -> None:
    x, y = (digits[0][:40] * 255).round() / 255, digits[1][:40]
    evaluation = bench.evaluate(
        Biased(0.5), x, y % 2, attack="noise", eps=1e-9, device="cpu"
    ).records
    attacked = evaluation[evaluation["attacked"]]
    assert (attacked["adv_pred"] == attacked["adv_pred_8bit"]).all()
    assert 0 < attacked["fooled"].sum() < len(attacked)


# ------------------------------------------------------------------ expectation over transformation


class State(NamedTuple):
    x: Tensor


def shown(model: Net, x: Tensor, y: Tensor, samples: int) -> tuple[Tensor, stream.StreamResult]:
    """The gradient (n, c, h, w) that a rule is shown at x, averaged over `samples` looks."""
    seen: list[Tensor] = []

    def step(state: State, gradient: Tensor, items: AttackBatch, params: Any, norm: str) -> State:
        seen.append(gradient)
        return state

    class Params(NamedTuple):
        steps: int = 1
        restarts: int = 1
        loss: str = "cross-entropy"

    rule = Rule(init=lambda items, noise, params, norm: State(items.x), step=step)
    attack = Attack(summary="s", source="s", params=Params, norms=("linf",), rule=rule)
    spec = AttackSpec(name="shown", attack=attack, params=Params(), norm="linf", eps=(0.1,),
                  stop="never", samples=samples, random=True)  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.requires_grad_(False)
    result = stream.run_attack(model, spec, x, y, torch.arange(len(x)), rows=len(x))
    return seen[0], result


def test_the_averaged_gradient_is_the_expected_one_within_its_standard_error(
    linear: Callable[[Tensor, Tensor], Net],
) -> None:
    # Two classes and w: the gradient of the cross-entropy is s(w.(x + sigma z)) w, s the logistic
    # function and w.z normal with deviation |w|: its moments are one-dimensional integrals.
    w, sigma, n = torch.tensor([1.0, -2.0, 0.5, 1.5]), 0.7, 400
    model = Noisy(linear(torch.stack([torch.zeros(4), w]), torch.zeros(2)), sigma)
    x, y = torch.full((n, 1, 2, 2), 0.3), torch.zeros(n, dtype=torch.int64)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    at = float(w.sum()) * 0.3 + sigma * float(w.norm()) * nodes
    share, weights = 1 / (1 + np.exp(-at)), weights / weights.sum()
    expected = float(weights @ share)
    deviation = math.sqrt(float(weights @ share**2) - expected**2)
    for samples in (1, 16):
        gradient, result = shown(model, x, y, samples)
        factors = (gradient.flatten(1) @ w).double() / float(w @ w)
        error = deviation / math.sqrt(samples)
        assert torch.allclose(gradient.flatten(1), factors.float()[:, None] * w, atol=1e-5)
        assert abs(float(factors.mean()) - expected) < 4 * error / math.sqrt(n)
        assert float(factors.std()) == pytest.approx(error, rel=0.15)
        assert result.backwards.unique().tolist() == [samples]


def test_samples_of_a_net_that_answers_alike_change_nothing_but_the_cost(
    lenet: Net, digits: Any
) -> None:
    x, y = digits[0][:24], digits[1][:24]

    def attacked(samples: int) -> bench.Evaluation:
        return bench.evaluate(
            lenet, x, y, eps=[0.05, 0.1], params={"steps": 4}, samples=samples, stop="never",
            copied=False, device="cpu", keep_adversarial=True,
        )  # fmt: skip

    one, two = attacked(1), attacked(2)  # a sum of two equal numbers, halved, is exact
    assert one.adversarial is not None
    assert two.adversarial is not None
    assert torch.equal(one.adversarial, two.adversarial)
    assert one.table["samples"].tolist() == [1, 1]
    assert two.table["samples"].tolist() == [2, 2]
    passes = "forwards_per_example"
    assert two.table[passes].tolist() == (2 * one.table[passes]).tolist() == [8.0, 8.0]


def test_a_restart_of_a_net_that_answers_at_random_is_judged_by_its_mean_answer() -> None:
    evaluation = bench.evaluate(
        Biased(0.3), blank(8), torch.zeros(8, dtype=torch.int64), predictions=51, device="cpu",
        params={"steps": 3, "restarts": 2},
    ).table.iloc[0]  # fmt: skip
    assert evaluation["forwards_per_example"] == 2 * (3 + 51)


# -------------------------------------------------------------------------------- the whole path


def noisy_run(lenet: Net, digits: Any, **settings: Any) -> bench.Evaluation:
    x, y = digits[0][:32], digits[1][:32]
    keys = {"eps": [0.05, 0.15], "params": {"steps": 3}, "predictions": 5, "samples": 2} | settings
    return bench.evaluate(Noisy(lenet, 0.3), x, y, device="cpu", keep_adversarial=True, **keys)


def test_the_same_seed_gives_the_same_bits_whatever_was_drawn_before(
    lenet: Net, digits: Any
) -> None:
    first = noisy_run(lenet, digits)
    torch.rand(17)
    again, other = noisy_run(lenet, digits), noisy_run(lenet, digits, seed=1)
    pd.testing.assert_frame_equal(first.records, again.records)
    assert first.adversarial is not None
    assert again.adversarial is not None
    assert other.adversarial is not None
    assert torch.equal(first.adversarial, again.adversarial)
    assert not torch.equal(first.adversarial, other.adversarial)


def test_one_lucky_draw_is_no_success_and_ends_no_attack() -> None:
    y = torch.zeros(64, dtype=torch.int64)
    evaluation = bench.evaluate(
        Biased(0.25), blank(64), y, predictions=101, params={"steps": 4}, device="cpu"
    ).table.iloc[0]
    assert evaluation["stop"] == "never"
    assert evaluation["forwards_per_example"] == 4
    assert evaluation["robust_accuracy"] == evaluation["clean_accuracy"] == 1.0
    assert evaluation["unstable"] == 64


def test_the_table_says_how_a_verdict_came_about_and_how_often_it_was_not_unanimous(
    lenet: Net, digits: Any
) -> None:
    evaluation = noisy_run(lenet, digits)
    row = evaluation.table.iloc[1]
    cell = evaluation.records[evaluation.records["cell"] == row["cell"]]
    assert (row["samples"], row["predictions"]) == (2, 5)
    assert row["unstable"] == (cell["agreement"] < 1).sum() > 0
    assert set((cell["agreement"] * 5).round(4)) <= {1.0, 2.0, 3.0, 4.0, 5.0}
    assert "the class that most of 5 predictions give, the smaller class on a tie" in row["caveats"]
    assert "results depend on its rows" in row["caveats"]
    total = evaluation.table["unstable"].sum()
    assert tables.describe_split_votes(evaluation.table) == [
        f"Noisy: its 5 predictions of an image were not unanimous on {total} of 64 images, all "
        "cells taken together."
    ]


def test_a_net_found_to_answer_at_random_is_named_with_the_remedy(lenet: Net, digits: Any) -> None:
    x, y = digits
    data = make_data("digits", x, y, ())
    loaded = checks.preflight("net", Noisy(lenet, 0.3), data, torch.device("cpu"))
    (finding,) = loaded.findings
    assert loaded.random
    assert "`predictions`" in finding
    assert "`samples`" in finding
    voting = checks.preflight("net", Noisy(lenet, 0.3), data, torch.device("cpu"), predictions=10)
    assert (voting.findings, voting.random) == ((), True)
    assert not checks.preflight("net", lenet, data, torch.device("cpu")).random


def test_records_made_before_there_were_votes_were_unanimous(
    lenet: Net, digits: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = bench.evaluate(lenet, digits[0][:8], digits[1][:8], device="cpu").records
    piece = schema.Piece(frame["cell"].iloc[0], 0, 8, 8, 1.0, 1.0, 1.0, 8, "cpu")
    before = tuple(name for name in schema.COLUMNS if name != "agreement")
    monkeypatch.setattr(schema, "COLUMNS", before)
    records.write_records(tmp_path, "old", frame, [piece], {})
    monkeypatch.undo()
    assert read_records(tmp_path).frame["agreement"].tolist() == [1.0] * 8


# ----------------------------------------------------------------------------- no copy, no surprise


class Stubborn(nn.Sequential):
    """A net whose plain dropout layers its author keeps on, whatever mode it is set to."""

    def train(self, mode: bool = True) -> "Stubborn":
        super().train(mode)
        for layer in self.modules():
            layer.training = layer.training or isinstance(layer, nn.Dropout)
        return self

    def eval(self) -> "Stubborn":
        return self.train(False)


def test_dropout_that_lasts_is_not_exchanged_away() -> None:
    net = dropout_cnn.build("always").eval()
    own = layers.fuse_layers(net, on_cpu=True).eval()
    x = torch.rand(2, 1, 28, 28)
    assert not torch.equal(own(x), own(x))


@pytest.mark.parametrize("kind", ["lasting", "stubborn"])
def test_no_copy_agrees_with_a_net_that_answers_at_random(kind: str) -> None:
    modules = dropout_cnn.build("always" if kind == "lasting" else "training")
    net = (modules if kind == "lasting" else Stubborn(*modules)).eval()
    accelerated = accelerate.accelerate_model(net, torch.rand(16, 1, 28, 28), 8, ahead=0.0)
    assert accelerated.model is net
    assert "its logits are off" in accelerated.dropped


def test_bfloat16_which_needs_a_copy_is_refused(lenet: Net, digits: Any) -> None:
    with pytest.raises(SuiteError, match="with Noisy, which answers at random; use precision"):
        noisy_run(lenet, digits, precision="bfloat16")


# --------------------------------------------------------------------------- suites and identities

HEAD = """
schema = 1
name = "s"
[data]
name = "digits"
[[models]]
name = "lenet"
weights = "digits"
"""
ENTRY = '[[attacks]]\nname = "{}"\nnorm = "linf"\neps = [0.1, 0.2]\n'
FACTS = ModelFacts(10, (1, 28, 28), 64, "m", "d")
RANDOM = FACTS._replace(random=True, predictions=10)


def task(
    facts: ModelFacts = RANDOM,
    name: str = "pgd",
    lines: str = "",
    sweep: Sweep = "independent",
) -> plan.AttackTask:
    read = reader.parse_suite(HEAD + ENTRY.format(name) + lines, "s.toml", Path())
    return plan.plan_task("lenet", read.attacks[0], facts, 0, sweep)


def identity(facts: ModelFacts = RANDOM, name: str = "pgd", lines: str = "") -> str:
    return task(facts, name, lines).cells[0].identity


def test_a_suite_says_how_many_samples_and_predictions() -> None:
    text = HEAD + "predictions = 10\n" + ENTRY.format("pgd") + "samples = 20\n"
    read = reader.parse_suite(text, "s.toml", Path())
    assert (read.models[0].predictions, read.attacks[0].samples) == (10, 20)
    facts = plan.collect_declared_facts(read)["lenet"]
    assert (facts.predictions, facts.random) == (10, True)


@pytest.mark.parametrize(
    ("model", "name", "line", "sentence"),
    [
        ("", "pgd", "samples = 0", r"attacks\[0\].samples: expected at least 1, got 0"),
        ("", "noise", "samples = 2", r"attacks\[0\].samples: expected 1: an attack with a loop"),
        ("predictions = 0", "pgd", "", r"models\[0\].predictions: expected at least 1, got 0"),
    ],
)
def test_a_number_that_cannot_be_is_one_sentence(
    model: str, name: str, line: str, sentence: str
) -> None:
    with pytest.raises(SuiteError, match=sentence):
        reader.parse_suite(f"{HEAD}{model}\n{ENTRY.format(name)}{line}\n", "s.toml", Path())


def test_evaluate_refuses_the_same_numbers(lenet: Net, digits: Any) -> None:
    with pytest.raises(SuiteError, match="predictions: expected at least 1, got 0"):
        bench.evaluate(lenet, *digits, predictions=0)
    with pytest.raises(SuiteError, match="samples: expected at least 1, got 0"):
        bench.evaluate(lenet, *digits, samples=0)


def test_of_a_net_that_answers_alike_one_sample_is_the_identity_that_always_was() -> None:
    assert identity(FACTS, lines="samples = 1") == identity(FACTS)
    assert identity(FACTS, lines="samples = 2") != identity(FACTS)


def test_samples_predictions_and_the_batch_belong_to_the_identity_of_what_was_drawn() -> None:
    changes = [
        identity(), identity(lines="samples = 2"), identity(RANDOM._replace(predictions=11)),
        identity(RANDOM._replace(rows=32)), identity(lines="batch_size = 7"), identity(FACTS),
    ]  # fmt: skip
    assert len(set(changes)) == len(changes)


def test_all_eps_of_a_net_that_answers_at_random_run_to_the_last_step_in_one_stream() -> None:
    random, plain = task(sweep="nested"), task(FACTS, sweep="nested")
    assert random.linked
    assert (random.spec.stop, random.spec.sweep, random.spec.random) == (
        "never",
        "independent",
        True,
    )
    assert (plain.spec.stop, plain.spec.sweep) == ("first-success", "nested")


def test_samples_are_counted_and_named_among_the_traits() -> None:
    one, many = (
        task(lines="params = { steps = 3 }"),
        task(lines="samples = 20\nparams = { steps = 3 }"),
    )
    assert [cell.passes for cell in one.cells + many.cells] == [3.0, 3.0, 60.0, 60.0]
    assert many.cells[0].traits["samples"] == "20"
    assert "samples" not in one.cells[0].traits


@pytest.mark.parametrize(
    ("facts", "name", "lines", "sentences"),
    [
        (FACTS, "pgd", "samples = 2", ()),
        (RANDOM, "pgd", "samples = 2",
         ("most of 10 predictions", "depend on its rows", "one lucky draw")),
        (RANDOM, "noise", "", ("most of 10 predictions", "depend on its rows")),
        (RANDOM._replace(predictions=1), "fgsm", "",
         ("a single prediction", "depend on its rows", "one lucky draw", "follows a single draw")),
        (RANDOM, "fmn", "samples = 2",
         ("most of 10 predictions", "depend on its rows", "an attack of fixed budget")),
    ],
)  # fmt: skip
def test_a_reader_is_told_what_random_answers_mean(
    facts: ModelFacts, name: str, lines: str, sentences: tuple[str, ...]
) -> None:
    caveats = task(facts, name, lines).cells[0].caveats
    assert len(caveats) == len(sentences)
    assert all(part in caveat for part, caveat in zip(sentences, caveats, strict=True))
