"""Bad attacks in a suite: each fails by name, and the numbers of the sound ones are their own."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import module as modules

import bench
from bench.core import registry
from bench.core.contracts.attack import Attack, AttackSpec
from bench.core.errors import ContractError
from bench.engine import timing
from bench.evaluation import chunk, crafting, process_state
from bench.evaluation.crafting import Examples
from bench.evaluation.judge import judge

BAD = {
    "left = model.register_forward_hook(lambda m, i, o: o * -1)": "forward hooks",
    "model.register_full_backward_hook(lambda m, i, o: None)": "backward hooks",
    "model.last.register_forward_pre_hook(lambda m, i: (i[0] * 0,))": ("forward pre hooks of last"),
    "model.forward = lambda x: -model.last(model.first(x))": "the model: forward",
    "model.last = nn.Linear(16, 10)": "the model: last",
    "model.last.weight.data.neg_()": "the model: last.weight",
    "model.scale = -1.0": "the model: scale",
    "object.__setattr__(model, '__class__', nn.Sequential)": "the model: __class__",
    "nn.modules.module.register_module_forward_hook(lambda m, i, o: o * -1)": (
        "forward hooks of every module"
    ),
    "type(model).forward = lambda self, x: -self.last(self.first(x))": "mine.py.Net.forward",
    "nn.Linear.forward = lambda self, x: functional.linear(x, -self.weight)": "Linear.forward",
    "nn.ReLU.__call__ = lambda self, x: -x": "ReLU.__call__",
    "globals()['helper'] = lambda x: -x": "mine.py.helper",
    "functional.cross_entropy = lambda x, *a, **k: -x.sum(1)": "functional.cross_entropy",
    "functional.linear = lambda x, w, b=None: -(x @ w.T)": "functional.linear",
    "torch.argmax = torch.argmin": "torch.argmax",
    "torch.Tensor.argmax = torch.Tensor.argmin": "torch.Tensor.argmax",
    "torch.Tensor.softmax = lambda self, d: -self": "torch.Tensor.softmax",
    "norms.distance = lambda a, b, n: a.flatten(1)[:, 0] * 0": "norms.distance",
    "torch.set_default_dtype(torch.float64)": "torch.set_default_dtype",
    "torch.set_default_device('meta')": "the default device",
    "torch.set_grad_enabled(False)": "torch.set_grad_enabled",
    "KEPT.append(torch.inference_mode()); KEPT[-1].__enter__()": "torch.inference_mode",
    "torch.autocast('cpu').__enter__()": "torch.autocast('cpu')",
    "torch.autograd.set_detect_anomaly(True)": "torch.autograd.set_detect_anomaly",
    "torch.set_num_threads(2)": "torch.set_num_threads",
    "torch.use_deterministic_algorithms(True)": "torch.use_deterministic_algorithms",
    "torch.backends.cudnn.benchmark = True": "torch.backends.cudnn.benchmark",
    "torch.set_float32_matmul_precision('medium')": "torch.set_float32_matmul_precision",
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'": "fp32_precision",
    "Mode().__enter__()": "a torch dispatch mode",
    "torch.autograd.graph.saved_tensors_hooks(torch.zeros_like, lambda x: x).__enter__()": (
        "torch.autograd.graph.saved_tensors_hooks"
    ),
}
"""What an attack does before it returns the image -> what its failure names."""
HARMLESS = (
    "x.zero_(); y.zero_(); return x0",
    "model.train(); model(x); return x",
    "model.requires_grad_(True); model(x).sum().backward(); return x",
    "model.register_forward_hook(lambda m, i, o: -o).remove(); return x",
    "warnings.simplefilter('error'); os.environ['BAD'] = '1'; os.chdir('/'); return x",
    "signal.signal(signal.SIGINT, signal.SIG_IGN); return x",
    "torch.set_printoptions(precision=1); return x",
    "REUSED[: len(x)] = x; return REUSED[: len(x)]",
)
INTERRUPT = signal.getsignal(signal.SIGINT)  # ignored where a shell runs the tests behind
CODE = """
import os, signal, warnings
from dataclasses import dataclass

import bench
import torch
from bench.engine.functional import norms
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

KEPT = []
REUSED = torch.zeros(60, 1, 28, 28)


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def helper(x):
    return x


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU())
        self.last, self.scale = nn.Linear(16, 10), 1.0

    def forward(self, x):
        self.seen = helper(self.first(x))
        return self.last(self.seen) * self.scale


@dataclass(frozen=True, kw_only=True)
class Params:
    pass


def attack(run):
    return bench.Attack(summary="s", source="s", params=Params, norms=("linf",), run=run)
"""


COLUMNS = [
    "status", "n", "clean_correct", "robust_correct", "fooled", "violations",
    "mean_confidence_fooled", "mean_linf", "forwards_per_example",
]  # fmt: skip
"""What a sound attack's row says, but for its times."""


class Tables(NamedTuple):
    """Rows of two runs by the labels of their attacks."""

    beside: pd.DataFrame
    """Bad and harmless attacks, and sound ones after every few of the bad."""
    alone: pd.DataFrame
    """The sound ones."""


def write_suite(folder: Path, entries: list[str]) -> str:
    head = (
        'schema = 1\nname = "s"\n[data]\nname = "digits"\nlimit = 60\n[[models]]\n'
        'name = "mine.py:Net"\nlabel = "net"\nweights = "net.pt"\n'
    )
    (folder / "s.toml").write_text(head + "".join(entries), encoding="utf-8")
    return str(folder / "s.toml")


def sound_entry(number: int) -> str:
    """FGSM or PGD with a radius that no other entry has, so that each is attacked anew."""
    name, more = (("fgsm", ""), ("pgd", "params = { steps = 2 }\n"))[number % 2]
    eps = f"{0.02 + 0.008 * number:.3f}"
    head = f'[[attacks]]\nname = "{name}"\nlabel = "sound {number}"\n'
    return head + f'norm = "linf"\neps = [{eps}]\n{more}'


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory, _digits: tuple[Tensor, Tensor]) -> Tables:
    """A sound attack follows every four bad ones, whose traces it would show."""
    folder = tmp_path_factory.mktemp("bad")
    code, entries, alone = CODE, [], []
    for number, body in enumerate([*(f"{bad}; return x" for bad in BAD), *HARMLESS]):
        code += f"\n\ndef f{number}(model, x, y, threat, params, noise):\n x0 = x.clone(); {body}\n"
        code += f"A{number} = attack(f{number})\n"
        entries.append(
            f'[[attacks]]\nname = "mine.py:A{number}"\nlabel = "{number}"\nnorm = "linf"\n'
            "eps = [0.1]\n"
        )
        if number < len(BAD) and number % 4 == 3:
            alone.append(sound_entry(len(alone)))
            entries.append(alone[-1])
    (folder / "mine.py").write_text(code, encoding="utf-8")
    torch.save(train_net(*_digits), folder / "net.pt")
    return Tables(*(
        bench.run(write_suite(folder, some), out=folder / out, batch_size=32, device="cpu")
        .table.set_index("attack")
        for out, some in (("beside", entries), ("alone", alone))
    ))  # fmt: skip


def train_net(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Weights of the suite's net, after a few steps on the images that it is asked about."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.ModuleDict(
            {
                "first": nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU()),
                "last": nn.Linear(16, 10),
            }
        )
    optimiser = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        optimiser.zero_grad()
        functional.cross_entropy(net["last"](net["first"](x)), y).backward()
        optimiser.step()
    return net.state_dict()


def test_every_bad_attack_fails_by_the_name_of_what_it_changed(tables: Tables) -> None:
    assert len(BAD) % 4 == 0  # no bad attack comes after the last sound one
    wrong = {}
    for number, (body, name) in enumerate(BAD.items()):
        row = tables.beside.loc[str(number)]
        named = "the attack changed" in row["reason"] and name in row["reason"]
        if row["status"] != "failed" or not named:
            wrong[body] = (row["status"], row["reason"])
    assert wrong == {}


def test_the_numbers_of_sound_attacks_are_their_own_whatever_ran_before(tables: Tables) -> None:
    beside = tables.beside.loc[tables.alone.index, COLUMNS]
    pd.testing.assert_frame_equal(
        beside, tables.alone[COLUMNS], check_exact=True, check_dtype=False
    )
    robust = tables.alone["robust_correct"].astype(int)  # they have something to lose
    assert 0 < robust.min() < 30 < robust.max() < tables.alone["clean_correct"].min()


def test_what_changes_no_number_fails_no_cell(tables: Tables) -> None:
    first = len(BAD)
    rows = tables.beside.loc[[str(first + number) for number in range(len(HARMLESS))]]
    rows.index = pd.Index(HARMLESS)
    assert rows[rows["status"] != "ok"]["reason"].to_dict() == {}
    assert (rows["violations"] == 0).all()
    assert (rows["robust_correct"] == 59).all()
    assert (rows["clean_correct"] == 59).all()


def test_the_process_is_as_it_was(tables: Tables) -> None:
    assert torch.autocast_increment_nesting() == 1
    assert torch.autocast_decrement_nesting() == 0
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    assert torch.get_num_threads() == 1
    assert not modules._global_forward_hooks
    assert functional.cross_entropy.__module__ == "torch.nn.functional"
    assert torch.argmax is not torch.argmin
    assert "argmax" not in vars(torch.Tensor)
    assert "BAD" not in os.environ
    assert Path.cwd() != Path("/")
    assert signal.getsignal(signal.SIGINT) is INTERRUPT
    assert process_state.ProcessState().restore() == []


# -------------------------------------------------------------- what cannot be copied or put back


class Net(nn.Module):
    """A plane through the images, which keeps what it must not."""

    def __init__(self, copied: bool = True) -> None:
        super().__init__()
        self.last = nn.Linear(4, 2)
        self.scale, self.table, self.mean = 1.0, [1.0], torch.zeros(4)
        self.copied = copied
        with torch.no_grad():
            self.last.weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 4))
            self.last.bias.copy_(torch.tensor([2.0, -2.0]))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Net":
        if not self.copied:
            raise TypeError("cannot be copied")
        own = Net()
        own.load_state_dict(self.state_dict())
        return own.eval()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(x.flatten(1) - self.mean) * self.scale * self.table[0]
        return logits


X = torch.full((4, 1, 2, 2), 0.4)


def measured(model: nn.Module, run: Callable[..., Tensor], x: Tensor = X, **keys: Any) -> Any:
    """The records of one whole attack on `model`, whose clean answers are its labels."""
    attack = Attack(
        summary="s", source="s", params=type("Params", (), {}), norms=("linf",), run=run
    )
    curve = AttackSpec(name="a", attack=attack, params=None, norm="linf", eps=(0.2,), **keys)
    clean = judge(model, x, 4)
    nobody = torch.full((len(x),), -1)
    ids = torch.arange(len(x))
    examples = Examples(ids, x, clean.pred, nobody, clean.pred, clean.confidence, clean.agreement)
    return chunk.evaluate_chunk(model, curve, examples, 4, timing.Floor(1.0, 2.0)).records[0]


CHANGES: dict[str, Callable[[Any], Any]] = {
    "scale": lambda net: setattr(net, "scale", -1.0),
    "table": lambda net: net.table.__setitem__(0, -1.0),
    "mean": lambda net: net.mean.fill_(1.0),
    "last": lambda net: setattr(net, "last", nn.Linear(4, 2)),
    "last.weight": lambda net: net.last.weight.data.neg_(),
    "forward": lambda net: setattr(net, "forward", lambda x: -x.flatten(1)[:, :2]),
    "forward hooks of last": lambda net: net.last.register_forward_hook(lambda m, i, o: -o),
}


@pytest.mark.parametrize("copied", [True, False])
@pytest.mark.parametrize("name", CHANGES)
def test_a_model_lent_itself_is_put_back_and_a_copy_is_not_the_judges(
    name: str, copied: bool
) -> None:
    model = Net(copied).eval()
    given = []

    def run(theirs: nn.Module, x: Tensor, *rest: Any) -> Tensor:
        given.append(theirs is model)
        CHANGES[name](theirs)
        return x

    before = model(X)
    with pytest.raises(ContractError, match=f"the attack changed the model: {name}"):
        measured(model, run)
    assert given == [not copied]
    assert torch.equal(model(X), before)
    assert "forward" not in vars(model)


def test_a_copy_that_answers_otherwise_is_not_attacked() -> None:
    class Two(Net):
        def __deepcopy__(self, memo: dict[int, Any]) -> "Net":
            own = super().__deepcopy__(memo)
            own.scale = 1.0001
            return own

    model = Two().eval()
    given = []
    measured(model, lambda theirs, x, *rest: given.append(theirs) or x)  # type: ignore[func-returns-value]
    assert given == [model]


HIDDEN = [1.0]


class Hidden(nn.Module):
    """A model that reads what lies outside it, where nothing is compared."""

    def forward(self, x: Tensor) -> Tensor:
        score = HIDDEN[0] * (x.flatten(1).sum(1, keepdim=True) - 2)
        return torch.cat([-score, score], 1)


def test_a_change_that_nobody_can_put_back_fails_the_cell() -> None:
    def run(model: nn.Module, x: Tensor, *rest: Any) -> Tensor:
        HIDDEN[0] = -1.0
        return x

    with pytest.raises(ContractError, match="the model answers otherwise after the attack"):
        measured(Hidden(), run)
    HIDDEN[0] = 1.0


def test_an_image_that_is_x_itself_is_no_success_and_a_model_that_says_so_is_not_believed() -> None:
    class Turning(nn.Module):
        """Which answers otherwise from some call on."""

        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            score = (x.flatten(1).sum(1, keepdim=True) - 2) * (1 if self.calls < 4 else -1)
            return torch.cat([-score, score], 1)

    with pytest.raises(ContractError, match="example 0: the clean image was class 0 before"):
        measured(Turning(), lambda model, x, *rest: x)


@pytest.mark.parametrize("size", [1e-7, 0.1])
def test_a_verdict_that_hangs_on_the_batch_makes_no_success_of_x(size: float) -> None:
    class Batched(nn.Module):
        """Where the largest image of the batch tips what is close to the border."""

        def forward(self, x: Tensor) -> Tensor:
            total = x.flatten(1).sum(1, keepdim=True)
            score = total - 2 + size * (total.max() - 1.6)
            return torch.cat([-score, score], 1) + 1.0

    x = torch.full((4, 1, 2, 2), 0.4)
    x[1] = 0.5 - size / 100
    frame = measured(
        Batched(), lambda model, x, *rest: torch.cat([x[:1] + 0.15, x[1:]]), x, random=False
    )
    assert not frame["fooled"].iloc[1:].any()
    assert frame["adv_pred"].iloc[1:].equals(frame["clean_pred"].iloc[1:])


WRAPPED = """
import torch
from bench.evaluation.process_state import ProcessState

state, plain = ProcessState(), torch.manual_seed
import torch._dynamo
assert torch.manual_seed.__wrapped__ is plain
assert state.restore() == []
"""


def test_what_torch_wraps_itself_when_a_part_of_it_is_first_imported_is_no_change(
    warm: ForkServerContext,
) -> None:
    process = warm.Process(target=exec, args=(WRAPPED, {}))
    process.start()
    process.join(120)
    assert process.exitcode == 0


def test_a_users_rule_is_held_to_the_same(lenet: nn.Module) -> None:
    found = registry.find("attacks", "fgsm")

    def step(*given: Any) -> Any:
        torch.set_default_dtype(torch.float64)
        return found.rule.step(*given)

    attack = replace(found, rule=replace(found.rule, step=step, init=found.rule.init))
    curve = AttackSpec(name="fgsm", attack=attack, params=found.params(), norm="linf", eps=(0.1,))
    x, ids = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0)), torch.arange(2)
    pred, confidence, _, agreement = judge(lenet, x, 2)[:4]
    examples = Examples(ids, x, pred, ids - ids - 1, pred, confidence, agreement)
    with pytest.raises(ContractError, match=r"every other cell relies on: torch\.set_default_dt"):
        crafting.craft(lenet, curve, examples, 2)
    assert torch.get_default_dtype() == torch.float32
