"""Models as users write them: each kind has the numbers of its plain twin, or says what to do."""

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import bench
from bench.core.errors import RobustnessWarning, SuiteError

COLUMNS = ["example", "label", "clean_pred", "adv_pred", "fooled", "confidence", "linf", "l2"]


class Answering(nn.Module):
    """A net whose output is wrapped by a function."""

    def __init__(self, net: nn.Module, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.wrap = net, wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.net(x))


class FixedBatch(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        return self.net(x.view(32, 1, 28, 28))


class Brighten(nn.Module):
    """Writes into its input, with a gradient of one everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(1.0)


@dataclasses.dataclass
class Answer:
    logits: Tensor
    hidden: Tensor


class Pair(NamedTuple):
    scores: Tensor
    loss: float


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A group of one process, which DistributedDataParallel needs."""
    file = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def evaluate(model: Any, digits: tuple[Tensor, Tensor], **settings: Any) -> Any:
    x, y = digits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RobustnessWarning)
        defaults = {"attack": "pgd", "eps": 0.1, "params": {"steps": 2}, "copied": False}
        settings = {**defaults, **settings}
        return bench.evaluate(model, x[:20], y[:20], device="cpu", audit=False, **settings)


def refused(model: Any, digits: tuple[Tensor, Tensor], **settings: Any) -> str:
    with pytest.raises(SuiteError) as caught:
        evaluate(model, digits, **settings)
    (only,) = caught.value.problems
    assert "\n" not in only
    return only


TWIN: list[pd.DataFrame] = []
"""The records of the plain net, once they were asked for."""
KINDS: dict[str, tuple[Callable[[nn.Module], Any], dict[str, Any], str]] = {
    "a tuple": (lambda net: Answering(net, lambda z: (z, {"aux": 1})), {}, "item 0 of its output"),
    "a tuple, named": (lambda net: Answering(net, lambda z: (z[:, :5], z)), {"output": 1}, ""),
    "a named tuple": (lambda net: Answering(net, lambda z: Pair(z, 0.5)), {}, "item 0"),
    "a dict": (lambda net: Answering(net, lambda z: {"out": z}), {}, "(output)"),
    "a dict, named": (
        lambda net: Answering(net, lambda z: {"main": z, "aux": 2 * z}), {"output": "main"}, ""
    ),
    "logits among others": (
        lambda net: Answering(net, lambda z: Answer(z, z[:, :5])), {}, "attribute 'logits'"
    ),
    "DataParallel": (nn.DataParallel, {}, ""),
    "DistributedDataParallel": (nn.parallel.DistributedDataParallel, {}, ""),
    "compiled": (lambda net: torch.compile(net, backend="eager"), {}, ""),
    "a part compiled": (
        lambda net: nn.Sequential(nn.Identity(), torch.compile(net, backend="eager")), {}, ""
    ),
    "compiled in DataParallel": (
        lambda net: nn.DataParallel(torch.compile(net, backend="eager")), {}, ""
    ),
    "a fixed batch": (FixedBatch, {}, "(fixed-batch)"),
    "an in-place first layer": (
        lambda net: nn.Sequential(Brighten(), net), {}, "writes-to-input"
    ),
    "training mode": (lambda net: net.train(), {}, ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("group")
def test_a_model_as_written_has_the_numbers_of_its_plain_twin(
    kind: str, lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    if not TWIN:
        TWIN.append(evaluate(lenet, digits).records[COLUMNS])
    (expected,) = TWIN
    wrap, settings, said = KINDS[kind]
    model = wrap(lenet)
    modes = [module.training for module in model.modules()]
    found = evaluate(model, digits, **settings)
    pd.testing.assert_frame_equal(found.records[COLUMNS], expected, rtol=1e-5)
    assert said in " ".join(found.findings)
    assert bool(said) == bool([each for each in found.findings if each.startswith("model")])
    assert [module.training for module in model.modules()] == modes


def test_batch_norm_left_in_training_mode_is_evaluated_by_its_statistics_and_not_changed(
    lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    net = nn.Sequential(nn.BatchNorm2d(1), lenet).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    found = evaluate(net, digits)
    assert all(module.training for module in net.modules())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    expected = evaluate(net.eval(), digits)
    pd.testing.assert_frame_equal(found.records[COLUMNS], expected.records[COLUMNS])


def test_a_script_has_the_numbers_of_its_net(
    lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is deprecated
        script = torch.jit.trace(lenet, digits[0][:2], check_trace=False)
    expected = evaluate(lenet, digits).records[COLUMNS]
    found = evaluate(script, digits).records[COLUMNS]
    pd.testing.assert_frame_equal(found, expected, rtol=1e-5)


class Both(nn.Module):
    """Two classes of digits: below five, and the others."""

    def __init__(self, net: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.change = net, change

    def forward(self, x: Tensor) -> Tensor:
        z = self.net(x)
        return self.change(z[:, 5:].amax(1) - z[:, :5].amax(1))


@pytest.mark.parametrize(
    ("output", "change"),
    [("binary", lambda z: z), ("binary", lambda z: z[:, None]), ("sigmoid", torch.sigmoid)],
)
def test_a_binary_classifier_of_one_score_is_one_of_two_logits(
    lenet: nn.Module, digits: tuple[Tensor, Tensor], output: str, change: Callable[[Tensor], Tensor]
) -> None:
    x, y = digits
    two = Both(lenet, lambda z: torch.stack([torch.zeros_like(z), z], 1))
    labels = (y > 4).long()
    expected = evaluate(two, (x, labels)).records
    found = evaluate(Both(lenet, change), (x, labels), output=output).records
    same = ["example", "label", "clean_pred"] + ["fooled"] * (output == "binary")
    pd.testing.assert_frame_equal(found[same], expected[same])


@pytest.mark.parametrize("access", ["gradient", "scores"])
def test_probabilities_that_are_read_as_logits_of_two_classes_are_found(
    lenet: nn.Module, digits: tuple[Tensor, Tensor], access: str
) -> None:
    data = digits[0], (digits[1] > 4).long()
    settings: dict[str, Any] = {"access": access, "attack": "noise", "params": {}}

    def findings(change: Callable[[Tensor], Tensor], output: str) -> str:
        net = Both(lenet, change)
        return " ".join(evaluate(net, data, output=output, **settings).findings)

    found = findings(torch.sigmoid, "binary")
    assert 'if they are probabilities of class 1, say output = "sigmoid"' in found
    assert "(binary-probabilities)" in found
    assert "binary-probabilities" not in findings(lambda z: z, "binary")
    assert "binary-probabilities" not in findings(lambda z: z.sigmoid() / 5 + 0.5, "sigmoid")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_another_precision_is_refused_unless_it_is_declared(
    lenet: nn.Module, digits: tuple[Tensor, Tensor], dtype: torch.dtype
) -> None:
    expected = evaluate(lenet, digits).records["clean_pred"]
    said = refused(lenet.to(dtype), digits)
    assert "expected float32 parameters; convert it with model.float()" in said
    assert 'allow = ["not-float32"]' in said
    found = evaluate(lenet, digits, allow=["not-float32"])
    assert f"computes in {str(dtype)[6:]}: images are converted" in " ".join(found.findings)
    assert (found.records["clean_pred"] == expected).mean() > 0.95


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_a_quantised_net_is_attacked_by_scores_and_said_to_have_no_gradient(
    lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    net = torch.ao.quantization.quantize_dynamic(lenet, {nn.Linear}, torch.qint8)
    found = evaluate(net, digits, attack="noise", params={}, access="scores")
    assert found.table["status"].tolist() == ["ok"]
    said = " ".join(evaluate(net, digits).findings)
    assert "zero-gradient" in said


def several(net: nn.Module) -> nn.Module:
    return Answering(net, lambda z: {"main": z, "aux": z})


def bug(z: Tensor) -> Tensor:
    return z.no_such_thing()  # type: ignore[operator, no-any-return]


REFUSED: dict[str, tuple[Callable[[nn.Module], Any], dict[str, Any], str]] = {
    "several tensors": (
        several, {}, "got a dict of 'main' (16, 10), 'aux' (16, 10); say which they are, such as "
        'output = "main" in its entry',
    ),
    "an output that is not there": (
        several, {"output": "mian"}, "returns a dict without output 'mian'; did you mean 'main'?",
    ),
    "no tensor": (lambda net: Answering(net, lambda z: "text"), {}, "got a str of nothing"),
    "an output of a plain tensor": (
        lambda net: net, {"output": 0}, "expected output 0, but the model returns one tensor",
    ),
    "one score": (
        lambda net: Answering(net, lambda z: z[:, 0]), {},
        "expected at least 2 classes, got 1 output an image; for a binary classifier say output = "
        '"binary" in its entry if it is a logit (class 1 where it is positive), or output = '
        '"sigmoid" if it is the probability of class 1',
    ),
    "logits for probabilities": (
        lambda net: Answering(net, lambda z: z[:, 0]), {"output": "sigmoid"},
        "expected probabilities in [0, 1], got",
    ),
    "many scores for one": (
        lambda net: net, {"output": "binary"},
        "is for one score an image, (n,) or (n, 1) with n = 16, got (16, 10)",
    ),
    "a bug": (
        lambda net: Answering(net, bug), {},
        "AttributeError: 'Tensor' object has no attribute 'no_such_thing' (test_as_written.py:",
    ),
    "a colour net": (
        lambda net: nn.Sequential(nn.Conv2d(3, 1, 1), net), {},
        "takes colour images (3 channels), and data given has grey images (1 channel); repeat the "
        "channel (x.expand(-1, 3, -1, -1)) in the model's first layer, or choose other data",
    ),
    "a colour net without convolution": (
        lambda net: nn.Sequential(nn.Flatten(), nn.Linear(3 * 784, 10)), {},
        "takes colour images (3 channels), and data given has grey images",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_evaluated_is_refused_with_what_to_do(
    kind: str, lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    wrap, settings, said = REFUSED[kind]
    assert said in refused(wrap(lenet), digits, **settings)


def test_a_grey_net_refuses_colour_images_with_what_to_do(
    lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    said = refused(lenet[1:], (digits[0].expand(-1, 3, -1, -1), digits[1]))
    assert "takes grey images (1 channel), and data given has colour images (3 channels)" in said
    assert "x.mean(1, keepdim=True)" in said
