"""Models whose forward does more than map images to logits: a copy changes no outcome of them.

Each is attacked by gradients (PGD) and by scores (Square) with the faster copy and without it; the
images that are fooled and what the model says of them must be the same. `python
tests/properties/test_hostile_models.py` prints the table.
"""

import copy
import dataclasses
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

import bench
from bench.core import registry
from bench.core.contracts.attack import AttackSpec
from bench.engine import timing
from bench.engine.acceleration import accelerate, calibration, layers
from bench.evaluation import chunk, crafting, verify
from bench.evaluation.crafting import Examples
from bench.evaluation.judge import judge
from bench.evaluation.verify import SPOT_CHECKS
from bench.execution import runner
from bench.execution.events import Event
from bench.execution.options import RunOptions
from bench.suite import reader

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
CLASSES, SIDE, IMAGES = 4, 8, 20
BRIGHT = 0.6
"""A mean that no probe has, and attacked images may."""
FREE = timing.Floor(0.0, 0.0)
SWITCH = {"on": False, "calls": 0}
"""What one of the forwards reads outside of its module."""


class Net(nn.Module):
    """A small convolutional net with all that is exchanged; the hostile ones change its images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6)
        self.pool, self.drop, self.out = nn.MaxPool2d(2), nn.Dropout(0.3), nn.Linear(54, CLASSES)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.odd(x))

    def body(self, x: Tensor) -> Tensor:
        z = self.pool(self.norm(self.conv(4 * x - 2)).relu())
        return 3 * self.out(self.drop(z).flatten(1))

    def odd(self, x: Tensor) -> Tensor:
        return x


def coarse(x: Tensor) -> Tensor:
    """Three levels of grey, whose gradient is zero."""
    return torch.round(2 * x) / 2 + 0 * x


class GradMode(Net):
    def odd(self, x: Tensor) -> Tensor:
        return 0.5 + 0.2 * (x - 0.5).sign() + 0 * x if torch.is_grad_enabled() else x


class NoGradMode(Net):
    def odd(self, x: Tensor) -> Tensor:
        return x if torch.is_grad_enabled() else coarse(x)


class RarelyGradMode(Net):
    """Looks at the mode for images alone that no probe shows."""

    def odd(self, x: Tensor) -> Tensor:
        edge = 2.0 if torch.is_grad_enabled() else BRIGHT
        return torch.where(x.mean((1, 2, 3), keepdim=True) > edge, 1 - x, x)


class Purified(Net):
    """A step up its own confidence first."""

    def odd(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            confidence = self.body(at).logsumexp(1).sum()
            (gradient,) = torch.autograd.grad(confidence, at)
        return (x + 0.05 * gradient.sign()).clamp(0, 1)


class DataDependent(Net):
    def forward(self, x: Tensor) -> Tensor:
        logits = self.body(x)
        return torch.stack([2 * z if float(z.detach().max()) > 1 else z.flip(0) for z in logits])


class CountsInABuffer(Net):
    def odd(self, x: Tensor) -> Tensor:
        self.seen.add_(1)
        return x


class StatisticsInABuffer(Net):
    def odd(self, x: Tensor) -> Tensor:
        self.seen = 0.9 * self.seen + 0.1 * x.detach().mean()
        return x


class LooksAtGradient(Net):
    def odd(self, x: Tensor) -> Tensor:
        return coarse(x) if x.requires_grad else x


class LooksAtLeaf(Net):
    def odd(self, x: Tensor) -> Tensor:
        return x if x.is_leaf else 0.5 * x


class LooksAtTraining(Net):
    def odd(self, x: Tensor) -> Tensor:
        return 0.5 * x if self.training else x


class LooksAtBatch(Net):
    def odd(self, x: Tensor) -> Tensor:
        return x if len(x) > 1 else x.clamp(0.1, 0.9)


class LooksAtGlobal(Net):
    def odd(self, x: Tensor) -> Tensor:
        return 1 - x if SWITCH["on"] else x


class CountsInAGlobal(Net):
    def odd(self, x: Tensor) -> Tensor:
        SWITCH["calls"] += 1
        return x


class LooksAtAProxy(Net):
    """Does something else where it is followed symbolically."""

    def odd(self, x: Tensor) -> Tensor:
        return x.clamp(0.1, 0.9) if torch.is_tensor(x) else x


class InPlaceInside(Net):
    def odd(self, x: Tensor) -> Tensor:
        return (x + 0).sub_(0.1).div_(0.9)


class Autocast(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.body(x).float()


class Checkpointed(Net):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = checkpoint(self.body, x, use_reentrant=False)
        return logits


class CheckpointedAnew(Net):
    """The older kind, of which torch gives no gradient here."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = checkpoint(self.body, x, use_reentrant=True)
        return logits


class InferenceInside(Net):
    def odd(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            edge = float(x.detach().mean())
        return x - 0.1 * edge


class HalfWithoutGradient(Net):
    def odd(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            back = x.flip(3)
        return 0.7 * x + 0.3 * back


class OwnCall(Net):
    def __call__(self, x: Tensor) -> Tensor:
        logits: Tensor = super().__call__(x)
        return logits.flip(1)


def hooked() -> nn.Module:
    """Hooks on the whole net, on a layer that is folded away and on one that is turned."""
    net = Net()
    net.register_forward_pre_hook(lambda module, given: (given[0].clamp(0.05, 0.95),))
    net.norm.register_forward_hook(lambda module, given, got: got * (1 + (got > 3)))
    net.conv.register_forward_hook(lambda module, given, got: got + 0.1)
    return net


def rarely_hooked() -> nn.Module:
    """A hook that shows on images alone that no probe shows."""
    net = Net()

    def darker(module: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
        (x,) = given
        return (torch.where(x.mean((1, 2, 3), keepdim=True) > BRIGHT, 1 - x, x),)

    net.register_forward_pre_hook(darker)
    return net


def replaced() -> nn.Module:
    net = Net()
    plain = net.forward
    net.forward = lambda x: plain(1 - x)  # type: ignore[method-assign]
    return net


class Twice(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def parametrised() -> nn.Module:
    net = Net()
    parametrize.register_parametrization(net.conv, "weight", Twice())
    return net


def on_conv(how: Callable[..., Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        net = Net()
        how(net.conv)
        return net

    return make


ZOO: dict[str, Callable[[], nn.Module]] = {
    "nothing": Net,
    "branch on grad mode": GradMode,
    "branch on no-grad mode": NoGradMode,
    "branch on grad mode, rare": RarelyGradMode,
    "purification by gradients": Purified,
    "control flow on values": DataDependent,
    "counter in a buffer": CountsInABuffer,
    "statistics in a buffer": StatisticsInABuffer,
    "hooks": hooked,
    "hook, rare": rarely_hooked,
    "forward of the instance": replaced,
    "call of its own": OwnCall,
    "parametrisation": parametrised,
    "weight norm": on_conv(parametrizations.weight_norm),
    "weight norm, old": on_conv(nn.utils.weight_norm),
    "spectral norm": on_conv(parametrizations.spectral_norm),
    "spectral norm, old": on_conv(nn.utils.spectral_norm),
    "checkpoint": Checkpointed,
    "checkpoint, re-entrant": CheckpointedAnew,
    "autocast": Autocast,
    "inference mode": InferenceInside,
    "no_grad for a half": HalfWithoutGradient,
    "x.requires_grad": LooksAtGradient,
    "x.is_leaf": LooksAtLeaf,
    "self.training": LooksAtTraining,
    "batch size": LooksAtBatch,
    "global": LooksAtGlobal,
    "counter in a global": CountsInAGlobal,
    "is_tensor": LooksAtAProxy,
    "in place, inside": InPlaceInside,
}
FAILS = ("counter in a buffer", "checkpoint, re-entrant")
"""Those that cannot be attacked: answering changes the model, and torch gives no gradient."""
ATTACKS: dict[str, dict[str, Any]] = {
    "pgd": {"steps": 4},
    "square": {"steps": 12},
}
MORE: dict[str, dict[str, Any]] = {
    **ATTACKS,
    "autoattack": {"steps": 3, "targets": 2, "queries": 8},
    "fgsm": {},
    "fmn": {"steps": 6},
}
OUTCOME = ["attacked", "fooled", "clean_pred", "adv_pred", "adv_pred_8bit", "violation"]


@pytest.fixture(autouse=True)
def _untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layout and rows are taken by rule: what was timed differs from machine to machine."""
    monkeypatch.setattr(calibration, "recall", lambda key: None)


@pytest.fixture(autouse=True)
def _switched_off() -> Iterator[None]:
    yield
    SWITCH.update(on=False, calls=0)


def build_net(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        net = ZOO[name]().eval()
        with torch.no_grad():
            net.norm.running_mean.uniform_(-0.2, 0.2)
            net.norm.running_var.uniform_(0.5, 2.0)
    return net


def images() -> Tensor:
    x = torch.rand(IMAGES, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return 0.1 + 0.8 * x


def attack_spec(attack: str, **settings: Any) -> AttackSpec:
    record = registry.find("attacks", attack)
    params = record.params(**settings.pop("params", MORE[attack]))
    settings = {"norm": "linf", "eps": (0.05, 0.15)} | settings
    return AttackSpec(name=attack, attack=record, params=params, **settings)


def examples(net: nn.Module) -> Examples:
    """The images, with what the net says of them for labels."""
    x, ids = images(), torch.arange(IMAGES)
    pred, confidence, _, agreement = judge(net, x, 16)[:4]
    return Examples(ids, x, pred, torch.full_like(ids, -1), pred, confidence, agreement)


def measured(
    net: nn.Module, accelerated: accelerate.AcceleratedModel | None, attack: str
) -> chunk.VerifiedChunk:
    led = None if accelerated is None else accelerated.model
    return chunk.evaluate_chunk(net, attack_spec(attack), examples(net), 16, FREE, accelerated=led)


def accelerate_net(net: nn.Module) -> accelerate.AcceleratedModel:
    """The copy as it leads in a run, its layout and rows by rule."""
    return accelerate.accelerate_model(
        net, images()[: accelerate.PROBED], 16, fixed=True, ahead=0.0
    )


def both(name: str, attack: str) -> list[pd.DataFrame | str]:
    """Outcomes with a copy and without; where the attack fails, the error in words."""
    results: list[pd.DataFrame | str] = []
    for copied in (True, False):
        net = build_net(name)
        try:
            result = measured(net, accelerate_net(net) if copied else None, attack)
        except Exception as error:  # compared, in words
            results.append(f"{type(error).__name__}: {error}".splitlines()[0])
        else:
            results.append(pd.concat(result.records, ignore_index=True)[OUTCOME])
    return results


def robust(result: pd.DataFrame | str) -> str:
    """Robust images at the larger eps, for people."""
    if isinstance(result, str):
        return f"fails: {result[:70]}"
    larger = result.iloc[IMAGES:]
    return f"{int((larger['attacked'] & ~larger['fooled']).sum())} of {IMAGES}"


@pytest.mark.parametrize("name", ZOO)
def test_outcomes_with_a_copy_are_those_without(name: str) -> None:
    for attack in ATTACKS:
        ours, theirs = both(name, attack)
        assert type(ours) is type(theirs), (ours, theirs)
        if isinstance(ours, pd.DataFrame) and isinstance(theirs, pd.DataFrame):
            pd.testing.assert_frame_equal(ours, theirs)
            assert ours["attacked"].all()
        else:
            assert ours == theirs
            assert name in FAILS


def test_purification_works_under_square_and_under_an_ensemble_with_a_copy() -> None:
    net, x = build_net("purification by gradients"), images()[:10]
    y = judge(net, x, 16).pred
    small = {"steps": 3, "targets": 2, "queries": 8}
    results = [
        bench.evaluate(
            net, x, y, attack="autoattack", eps=0.02, params=small, batch_size=16, device="cpu",
            copied=copied,
        )
        for copied in (True, False)
    ]  # fmt: skip
    assert [result.table["status"].item() for result in results] == ["ok", "ok"]
    ours, theirs = (result.records[OUTCOME] for result in results)
    pd.testing.assert_frame_equal(ours, theirs)
    assert 0 < ours["fooled"].sum() < len(ours)


# -------------------------------------------------------------------------- what is not exchanged

MODES = {
    "nothing": True,
    "checkpoint": False,
    "branch on grad mode": False,
    "branch on no-grad mode": False,
    "branch on grad mode, rare": False,
    "purification by gradients": False,
    "autocast": False,
    "inference mode": False,
    "no_grad for a half": False,
    "global": True,
}


@pytest.mark.parametrize("name", MODES)
def test_a_forward_that_asks_for_torchs_modes_or_sets_them_is_not_made_a_graph(name: str) -> None:
    before = sys.getprofile()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = layers._trace_without_modes(build_net(name))
    assert (graph is not None) == MODES[name]
    assert sys.getprofile() is before


def test_a_hook_on_every_module_leaves_the_model_itself_to_lead() -> None:
    net = build_net("nothing")
    handle = nn.modules.module.register_module_forward_hook(lambda *given: None)
    try:
        accelerated = accelerate_net(net)
    finally:
        handle.remove()
    assert accelerated.model is net
    assert accelerated.dropped.startswith("hooks on all modules")


# ------------------------------------------------------------------------- a copy that goes wrong


class Fails(nn.Module):
    """A copy that gives up after some calls."""

    def __init__(self, net: nn.Module, calls: int) -> None:
        super().__init__()
        self.net, self.left = copy.deepcopy(net), calls

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise ValueError("no more of this\nsays the copy")
        logits: Tensor = self.net(x)
        return logits


def same(ours: chunk.VerifiedChunk, theirs: chunk.VerifiedChunk) -> None:
    for one, other in zip(ours.records, theirs.records, strict=True):
        pd.testing.assert_frame_equal(one[OUTCOME], other[OUTCOME])
    assert torch.equal(ours.x_adv, theirs.x_adv)


@pytest.mark.parametrize("attack", ["pgd", "square", "autoattack", "fgsm", "fmn"])
@pytest.mark.parametrize("calls", [0, 6])
def test_where_a_copy_raises_in_an_attack_the_model_itself_is_attacked(
    attack: str, calls: int
) -> None:
    net = build_net("nothing")
    ours = measured(net, accelerate_net(net)._replace(model=Fails(net, calls).eval()), attack)
    same(ours, measured(net, None, attack))
    if calls == 0 or attack != "fgsm":
        assert "raised ValueError" in ours.dropped
        assert "\n" not in ours.dropped


def test_an_attack_that_raises_itself_is_not_blamed_on_the_copy() -> None:
    net = build_net("nothing")
    fgsm = registry.find("attacks", "fgsm")
    assert fgsm.rule is not None

    def broken(*given: Any) -> Any:
        raise KeyError("of the attack")

    rule = dataclasses.replace(fgsm.rule, step=broken)
    spoilt = dataclasses.replace(fgsm, rule=rule)
    own = dataclasses.replace(attack_spec("fgsm"), attack=spoilt)
    with pytest.raises(KeyError, match="of the attack"):
        chunk.evaluate_chunk(
            net, own, examples(net), 16, FREE, accelerated=accelerate_net(net).model
        )


@pytest.mark.parametrize("attack", ["square", "pgd", "autoattack"])
def test_a_copy_that_froze_what_has_changed_since_is_found_out_and_dropped(attack: str) -> None:
    net = build_net("global")
    accelerated = accelerate_net(net)
    assert accelerated.exchanged
    SWITCH["on"] = True
    ours = measured(net, accelerated, attack)
    same(ours, measured(net, None, attack))
    assert ours.dropped.startswith("on images that it left standing its logits are off by")
    SWITCH["on"] = False
    assert measured(net, accelerated, attack).dropped == ""


class Counts(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.rows = copy.deepcopy(net), 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        logits: Tensor = self.net(x)
        return logits


def test_a_copy_is_held_against_its_model_on_as_many_survivors_as_is_said() -> None:
    net = build_net("nothing").requires_grad_(False)
    led, chosen, own = Counts(net), examples(net), attack_spec("square")
    raw = crafting.craft(net, own, chosen, 64, led)
    crafted, led.rows = led.rows, 0
    verified = verify.craft_and_verify(net, own, chosen, 64, accelerated=led)
    left = [int((each.pred == chosen.label).sum()) for each in verified.predictions]
    assert max(left) > SPOT_CHECKS
    assert led.rows - crafted == sum(min(SPOT_CHECKS, each) for each in left)
    assert torch.equal(verified.output.x_adv, raw.x_adv)
    assert verified.output.dropped == ""


LATE = """
import torch
from torch import nn

class Late(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
        self.mine, self.copied = id(self), 0

    def forward(self, x):
        if bool((x < 0).any()):
            x = -x
        self.copied += id(self) != self.mine
        if self.copied > 15:
            raise RuntimeError("copied too often")
        return self.body(x)

def make():
    torch.manual_seed(0)
    return Late()
"""


def test_a_run_says_which_copy_was_dropped_and_keeps_it_in_its_provenance(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(LATE)
    attack = '[[attacks]]\nname = "pgd"\nnorm = "linf"\neps = [0.02]\nparams.steps = 30\n'
    file = tmp_path / "s.toml"
    file.write_text(
        'schema = 1\nname = "s"\n[data]\nname = "digits"\nlimit = 12\n[[models]]\n'
        f'name = "late.py:make"\nlabel = "late"\nweights = "random"\n{attack}'
        f'{attack}label = "again"\nstop = "never"\n'
    )
    events: list[Event] = []
    runner.run_suite(
        reader.read_suite(file), tmp_path / "out", RunOptions(device="cpu"), events.append
    )
    notes = [event.text for event in events if event.what == "note"]
    (dropped,) = [note for note in notes if "copied too often" in note]
    assert dropped.startswith("late · ")
    assert "failed" not in [event.what for event in events]
    document = json.loads((tmp_path / "out" / "provenance.json").read_text(encoding="utf-8"))
    (entry,) = document["sessions"][-1]["copies"]["late"]
    assert entry["dropped"] == "it raised RuntimeError: copied too often"


if __name__ == "__main__":
    calibration.recall = lambda key: None  # type: ignore[assignment]
    print("| forward | copy | PGD with | PGD without | Square with | Square without |")
    for each in ZOO:
        net = build_net(each)
        accelerated = accelerate_net(net)
        kind = (
            "the model itself"
            if accelerated.model is net
            else "exchanged"
            if accelerated.exchanged
            else "plain"
        )
        cells = [robust(result) for attack in ATTACKS for result in both(each, attack)]
        print(f"| {each} | {kind} | " + " | ".join(cells) + f" | {accelerated.dropped}")
