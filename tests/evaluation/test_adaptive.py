"""Adaptive attacks: a loss, features and gradients of the user's own, on a quantised model."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import bench
from bench.core.contracts.adaptation import Adaptation, UserFunction
from bench.core.errors import SuiteError
from bench.engine.adaptation import AdaptedModel
from bench.models import lenet as lenet_architecture
from bench.models.published_weights import WEIGHTS
from bench.storage.environment import hash_user_files
from bench.suite import plan
from bench.suite.reader import parse_attack, parse_suite

Batch = tuple[Tensor, Tensor]
N, EPS = 100, 0.2
MINE = """
import torch


class Quantise(torch.nn.Module):
    def forward(self, x):
        return torch.round(x * 7) / 7


class Defended(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.quantise = Quantise()
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))

    def forward(self, x):
        return self.net(self.quantise(x))


def make():
    return Defended()


def straight_through(x):
    return x


def my_loss(logits, labels, images):
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    return others - logits.gather(1, labels[:, None])[:, 0]


NUMBER = 3
"""


class Quantise(nn.Module):
    """Eight levels: the gradient is zero almost everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.round(x * 7) / 7


class InPlaceQuantise(nn.Module):
    """The same, written into the input."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(7).round_().div_(7)


class Defended(nn.Module):
    """The published LeNet for digits behind a quantiser."""

    def __init__(self, quantise: nn.Module | None = None) -> None:
        super().__init__()
        self.quantise = quantise or Quantise()
        self.lenet = lenet_architecture.build()
        self.lenet.load_state_dict(load_file(WEIGHTS / "lenet-digits.safetensors"))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.lenet(self.quantise(x + 0))
        return logits


def straight_through(x: Tensor) -> Tensor:
    return x


def hinge(logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    return others - logits.gather(1, labels[:, None])[:, 0]


@pytest.fixture(scope="module")
def defended() -> nn.Module:
    return Defended().eval()


@pytest.fixture
def batch(digits: Batch) -> Batch:
    return digits[0][:N], digits[1][:N]


def attack(model: nn.Module, batch: Batch, **settings: Any) -> Any:
    given: dict[str, Any] = {
        "attack": "pgd", "eps": EPS, "device": "cpu", "allow": ["zero-gradient"], "audit": False,
        "params": {"steps": 10},
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bench.RobustnessWarning)
        return bench.evaluate(model, *batch, **(given | settings))


def robust_accuracy(evaluation: Any) -> float:
    return float(evaluation.table["robust_accuracy"].iloc[0])


def forbid_hooks(model: nn.Module) -> bool:
    """Whether no module of a model has a hook."""
    return not any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        for module in model.modules()
    )


def test_pgd_fails_behind_a_quantiser_and_the_audit_says_so(
    defended: nn.Module, batch: Batch
) -> None:
    blind = attack(defended, batch, audit=True)
    assert robust_accuracy(blind) > 0.8
    assert any("zero or non-finite gradient" in sentence for sentence in blind.findings)


def test_a_straight_through_gradient_breaks_it(defended: nn.Module, batch: Batch) -> None:
    before = {key: value.clone() for key, value in defended.state_dict().items()}
    adapted = attack(defended, batch, backward={"quantise": straight_through})
    assert robust_accuracy(adapted) < 0.1
    assert forbid_hooks(defended)
    assert all(torch.equal(value, before[key]) for key, value in defended.state_dict().items())
    again = defended(batch[0])  # the judge is the model itself
    assert again.argmax(1).tolist() == adapted.records["clean_pred"].tolist()


def test_a_loss_of_the_users_is_ascended_and_named(defended: nn.Module, batch: Batch) -> None:
    settings = {"backward": {"quantise": straight_through}}
    adapted = attack(defended, batch, params={"steps": 10, "loss": hinge}, **settings)
    built_in = attack(defended, batch, params={"steps": 10, "loss": "logit-difference"}, **settings)
    assert adapted.records["adv_pred"].tolist() == built_in.records["adv_pred"].tolist()
    assert f"the loss is {__name__}:hinge" in adapted.table["caveats"].iloc[0]
    assert robust_accuracy(attack(defended, batch, params={"steps": 10, "loss": flee})) > 0.9


def flee(logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
    """A loss that makes the label likelier: an attack that ascends it breaks nothing."""
    return logits.gather(1, labels[:, None])[:, 0]


def test_autoattacks_gradients_can_be_replaced(defended: nn.Module, batch: Batch) -> None:
    short = {"steps": 5, "targets": 1, "queries": 2}
    settings = {"attack": "autoattack", "params": short}
    images = batch[0][:20], batch[1][:20]
    blind = attack(defended, images, **settings)
    adapted = attack(defended, images, backward={"quantise": straight_through}, **settings)
    assert robust_accuracy(adapted) < robust_accuracy(blind) / 2


def test_features_are_the_outputs_of_the_named_modules(lenet: nn.Module, digits: Batch) -> None:
    x, y = digits[0][:8], digits[1][:8]
    names = [name for name, _ in lenet.named_modules() if name]
    first, last = names[0], names[-1]
    wanted: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda m, i, o, name=name: wanted.__setitem__(name, o))
        for name, module in lenet.named_modules()
        if name in (first, last)
    ]
    with torch.no_grad():
        lenet(x)
    for handle in handles:
        handle.remove()
    seen: dict[str, Tensor] = {}

    def loss(logits: Tensor, labels: Tensor, images: Tensor, features: Any) -> Tensor:
        seen.update(features)
        assert torch.equal(images, x)
        sums: Tensor = features[first].flatten(1).sum(1)
        return sums

    adaptation = Adaptation(loss=UserFunction("loss", loss), features=(first, last))
    model = AdaptedModel(lenet, adaptation)
    images = x.clone().requires_grad_()
    losses = model.make_objective(lambda *_: torch.zeros(0))(model(images), y, y)
    (gradient,) = torch.autograd.grad(losses.sum(), images)
    assert gradient.abs().sum() > 0
    assert seen.keys() == {first, last}
    assert all(torch.allclose(seen[name], wanted[name]) for name in seen)


@pytest.mark.parametrize("kind", [Quantise, InPlaceQuantise])
def test_the_forward_is_the_modules_and_the_backward_the_stand_ins(
    kind: Callable[[], nn.Module],
) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quantise = kind()

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.quantise(3 * x).flatten(1)
            return logits

    net, x = Net(), torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    backward = (("quantise", UserFunction("square", lambda z: z**2)),)
    images = x.clone().requires_grad_()
    logits = AdaptedModel(net, Adaptation(backward=backward))(images)
    (gradient,) = torch.autograd.grad(logits.sum(), images)
    assert torch.equal(logits, net(x))
    assert torch.allclose(gradient, 18 * x)  # of (3 x) ** 2


def test_hooks_are_removed_where_the_model_raises() -> None:
    class Broken(Defended):
        def forward(self, x: Tensor) -> Tensor:
            self.quantise(x)
            raise RuntimeError("broken")

    net = Broken()
    backward = (("quantise", UserFunction("straight", straight_through)),)
    with pytest.raises(RuntimeError, match="broken"):
        AdaptedModel(net, Adaptation(backward=backward))(torch.zeros(1, 1, 8, 8))
    assert forbid_hooks(net)


def test_a_loss_that_is_not_finite_on_one_example_leaves_the_others_alone(
    defended: nn.Module, batch: Batch
) -> None:
    images = batch[0][:20], batch[1][:20]

    def sometimes(logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
        return torch.where(labels == 3, torch.nan, 1.0) * hinge(logits, labels, images)

    settings = {"backward": {"quantise": straight_through}}
    whole = attack(defended, images, params={"steps": 5, "loss": hinge}, **settings)
    spoilt = attack(defended, images, params={"steps": 5, "loss": sometimes}, **settings)
    others = (images[1] != 3).numpy()
    assert (whole.records["fooled"] == spoilt.records["fooled"])[others].all()
    assert spoilt.table["nonfinite_examples"].iloc[0] == (images[1] == 3).sum()


# ------------------------------------------------------------------------------------- mistakes


def mean_loss(logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
    return hinge(logits, labels, images).mean()


def whole_loss(logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
    return hinge(logits, labels, images).long()


def detached_loss(logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
    return hinge(logits.detach(), labels, images)


def infinite_loss(logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
    return hinge(logits, labels, images) * torch.nan


def raising_loss(logits: Tensor, labels: Tensor, images: Tensor) -> Tensor:
    raise KeyError("nothing here")


def no_tensor(logits: Tensor, labels: Tensor, images: Tensor) -> Any:
    return 1.0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"params": {"loss": mean_loss}}, r"mean_loss: expected a loss per example.*got float32"),
        ({"params": {"loss": whole_loss}}, r"whole_loss: expected .* floating-point.* got int64"),
        ({"params": {"loss": detached_loss}}, r"detached_loss: expected a differentiable loss"),
        ({"params": {"loss": infinite_loss}}, r"infinite_loss: expected finite losses, got nan"),
        ({"params": {"loss": raising_loss}}, r"raising_loss: raised on the first images"),
        ({"params": {"loss": no_tensor}}, r"no_tensor: expected a loss per example.* got float"),
        ({"params": {"loss": straight_through}}, r"a function of \(logits, labels, images"),
        ({"params": {"loss": hinge}, "features": ["lenet"]}, r"of \(.*, features\)"),
        ({"features": ["lenet"]}, r"features: expected a function as params.loss"),
        ({"backward": {"quantize": straight_through}}, r"no module .quantize.; did you mean"),
        ({"backward": {"quantise": torch.sum}}, r"expected a tensor of the shape.* got shape \(\)"),
        ({"backward": {"quantise": 3}}, r"quantise: expected a function as 'file.py:NAME'"),
        ({"attack": "square", "backward": {"quantise": straight_through}}, r"follows gradients"),
        ({"attack": "apgd_t", "params": {"loss": hinge}}, r"expected an attack whose loss can be"),
        ({"attack": lambda m, x, y: x, "params": {"loss": hinge}}, r"expected an iterative attack"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(
    settings: dict[str, Any], says: str, defended: nn.Module, batch: Batch
) -> None:
    with pytest.raises(SuiteError, match=says):
        attack(defended, (batch[0][:4], batch[1][:4]), **({"params": {}} | settings))


def test_the_finding_of_a_zero_gradient_names_the_keys_that_adapt_an_attack(
    defended: nn.Module, batch: Batch
) -> None:
    found = attack(defended, (batch[0][:8], batch[1][:8]), params={"steps": 1})
    (zero,) = [finding for finding in found.findings if "zero-gradient" in finding]
    assert "`backward` in its table" in zero
    assert "`loss` in its params" in zero


# -------------------------------------------------------------------------------- suites, identity

SUITE = """
schema = 1
name = "adaptive"
[data]
name = "digits"
[[models]]
name = "mine.py:make"
[[attacks]]
name = "pgd"
norm = "linf"
eps = [0.2]
{keys}
"""
KEYS = """
params = { loss = "mine.py:my_loss" }
backward = { "quantise" = "mine.py:straight_through" }
"""


def identity(folder: Path, keys: str = KEYS) -> str:
    suite = parse_suite(SUITE.replace("{keys}", keys), "suite.toml", folder)
    facts = plan.collect_declared_facts(suite)["mine.py:make"]
    known = facts._replace(model_fingerprint="m", data_fingerprint="d")
    return plan.plan_tasks(suite, {"mine.py:make": known})[0].cells[0].identity


def test_the_code_of_the_users_functions_belongs_to_the_identity(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    first = identity(tmp_path)
    assert identity(tmp_path) == first
    assert identity(tmp_path, "") != first
    (tmp_path / "mine.py").write_text(MINE + "# a comment\n", encoding="utf-8")
    assert identity(tmp_path) == first
    other = MINE.replace("    return x\n", "    return 2 * x\n")
    (tmp_path / "mine.py").write_text(other, encoding="utf-8")
    assert identity(tmp_path) != first


def test_an_entry_without_adaptation_has_the_identity_that_it_had() -> None:
    entry = parse_attack({"name": "pgd", "norm": "linf", "eps": [0.1]}, "test")
    assert entry.adaptation is None
    assert entry.params.loss == "cross-entropy"


def test_the_file_of_a_loss_is_among_those_that_the_manifest_hashes(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    text = SUITE.replace("{keys}", 'params = { loss = "mine.py:my_loss" }').replace(
        'name = "mine.py:make"', 'name = "lenet"\nweights = "digits"'
    )
    assert set(hash_user_files(parse_suite(text, "suite.toml", tmp_path))) == {"mine.py"}


def test_a_suite_runs_an_adaptive_attack(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    text = SUITE.replace("{keys}", KEYS).replace(
        'name = "mine.py:make"', 'name = "mine.py:make"\nallow = ["zero-gradient"]'
    )
    (tmp_path / "suite.toml").write_text(text.replace('"digits"', '"digits"\nlimit = 20'))
    row = bench.run(str(tmp_path / "suite.toml"), tmp_path / "run").table.iloc[0]
    assert row["status"] == "ok"
    assert "the gradient of module 'quantise' is that of mine.py:straight_through" in row["caveats"]
    assert "the loss is mine.py:my_loss" in row["caveats"]


TWO = """
schema = 1
name = "two"
[data]
name = "digits"
limit = 20
[[models]]
name = "mine.py:make"
label = "defended"
allow = ["zero-gradient"]
[[models]]
name = "lenet"
label = "plain"
weights = "digits"
[[attacks]]
name = "pgd"
label = "BPDA"
norm = "linf"
eps = [0.2]
params = { steps = 2 }
source = SOURCE
backward = { "MODULE" = "mine.py:straight_through" }
"""


def run_two(folder: Path, module: str, source: str = "[]") -> pd.DataFrame:
    (folder / "mine.py").write_text(MINE, encoding="utf-8")
    text = TWO.replace("MODULE", module).replace("SOURCE", source)
    (folder / "two.toml").write_text(text.replace("source = []\n", ""), encoding="utf-8")
    return bench.run(str(folder / "two.toml"), folder / "run", device="cpu").table


def test_a_model_without_the_module_is_skipped_with_a_reason_and_the_other_attacked(
    tmp_path: Path,
) -> None:
    table = run_two(tmp_path, "quantise").set_index("model")
    assert table["status"].to_dict() == {"defended": "ok", "plain": "skipped"}
    assert table.loc["plain", "reason"] == (
        "the model has no module 'quantise', which the attack is adapted to"
    )


def test_it_is_the_source_that_must_have_the_module(tmp_path: Path) -> None:
    table = run_two(tmp_path, "quantise", '"each"').set_index(["model", "attack"])
    status = table["status"].to_dict()
    assert {key for key, value in status.items() if value == "ok"} == {
        ("defended", "BPDA from defended"), ("plain", "BPDA from defended"),
    }  # fmt: skip
    assert set(status.values()) == {"ok", "skipped"}


def test_a_module_that_no_model_has_is_one_mistake(tmp_path: Path) -> None:
    for source in ("[]", '"each"'):
        with pytest.raises(SuiteError) as raised:
            run_two(tmp_path, "quantize", source)
        (only,) = raised.value.problems
        assert only.startswith(
            "attack 'BPDA': backward: no model that it attacks has a module 'quantize'; "
            "did you mean 'quantise'?"
        )
    assert not (tmp_path / "run" / "records").exists()


def test_an_unknown_function_or_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    for keys, says in (
        ('params = { loss = "mine.py:my_los" }', "did you mean 'my_loss'"),
        ('params = { loss = "mine.py:NUMBER" }', "expected a function, got int 'mine.py:NUMBER'"),
        ('params = { loss = "none.py:my_loss" }', "none.py"),
        ('backward = { "quantise" = "mine.py:straight" }', "did you mean 'straight_through'"),
    ):
        with pytest.raises(SuiteError) as raised:
            parse_suite(SUITE.replace("{keys}", keys), "suite.toml", tmp_path)
        assert says in str(raised.value)
