"""TF32 is on or off as bench says, whatever the process has set, and is left as it was.

torch has two APIs for it that each refuse to read what the other has set, on a processor, too. What
is set here is set in a process of its own, as torch cannot return to its defaults.
"""

import inspect
from multiprocessing.context import ForkServerContext

import pytest
import torch

from bench.engine.float32_precision import allow_tf32

NEWER = "torch.backends.fp32_precision"
pytestmark = pytest.mark.skipif(
    not hasattr(torch.backends, "fp32_precision"), reason="this torch has one API alone"
)
READ = (
    "torch.backends.cuda.matmul.allow_tf32", "torch.backends.cudnn.allow_tf32",
    "torch.get_float32_matmul_precision()", "torch.backends.fp32_precision",
    "torch.backends.cuda.matmul.fp32_precision", "torch.backends.cudnn.fp32_precision",
    "torch.backends.cudnn.conv.fp32_precision", "torch.backends.cudnn.rnn.fp32_precision",
    "torch.backends.mkldnn.fp32_precision", "torch.backends.mkldnn.matmul.fp32_precision",
    "torch.backends.mkldnn.conv.fp32_precision", "torch.backends.mkldnn.rnn.fp32_precision",
)  # fmt: skip
"""Every way to ask torch how it rounds float32 products."""
SET = (
    "",
    "torch.backends.fp32_precision = 'tf32'",
    "torch.backends.fp32_precision = 'ieee'",
    "torch.backends.fp32_precision = 'bf16'",
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "torch.backends.cudnn.fp32_precision = 'ieee'",
    "torch.backends.cudnn.conv.fp32_precision = 'tf32'",
    "torch.backends.cudnn.conv.fp32_precision = 'none'",
    "torch.backends.cudnn.rnn.fp32_precision = 'ieee'",
    "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
    "torch.backends.mkldnn.conv.fp32_precision = 'tf32'",
    "torch.backends.cuda.matmul.allow_tf32 = True",
    "torch.backends.cudnn.allow_tf32 = False",
    "torch.set_float32_matmul_precision('high')",
    "torch.set_float32_matmul_precision('medium')",
    "torch.backends.cudnn.allow_tf32 = False; torch.backends.fp32_precision = 'tf32'",
    "torch.set_float32_matmul_precision('medium'); torch.backends.fp32_precision = 'ieee'",
    "torch.backends.cuda.matmul.fp32_precision = 'ieee'; torch.backends.fp32_precision = 'tf32'",
)
"""What a user may have set before bench runs."""


def read() -> list[object]:
    """What torch answers to each question; None where it refuses, since its APIs disagree."""

    def ask(question: str) -> object:
        try:
            return eval(question)
        except RuntimeError:
            return None

    return [ask(question) for question in READ]


def run_apart(warm: ForkServerContext, set_before: str, work: str) -> None:
    """Run work in a process that has set something; it knows this module's `read` and READ."""
    lines = ["import torch", f"READ = {READ!r}", inspect.getsource(read), set_before, work]
    process = warm.Process(target=exec, args=("\n".join(lines), {}))
    process.start()
    process.join()
    assert process.exitcode == 0


SWITCHED = """
from bench.engine.float32_precision import allow_tf32

before = read()
for allowed in (False, True, False):
    with allow_tf32(allowed):
        now = dict(zip(READ, read(), strict=True))
        assert now["torch.backends.cuda.matmul.allow_tf32"] is allowed
        assert now["torch.backends.cudnn.allow_tf32"] is allowed
        assert now["torch.get_float32_matmul_precision()"] == ("high" if allowed else "highest")
        products = [now[key] for key in READ if "cuda.matmul.fp" in key or "conv" in key]
        assert [each == "tf32" for each in products] == [allowed, allowed, False]
        assert not {"tf32", "bf16"} & {now[key] for key in READ if "mkldnn" in key}
    assert read() == before
"""


@pytest.mark.parametrize("set_before", SET)
def test_tf32_is_switched_and_put_back_whatever_the_process_has_set(
    set_before: str, warm: ForkServerContext
) -> None:
    run_apart(warm, set_before, SWITCHED)


INHERITED = """
from bench.engine.float32_precision import allow_tf32

with allow_tf32(True):
    pass
assert torch.backends.cuda.matmul.fp32_precision == "tf32"
torch.backends.fp32_precision = "ieee"
assert torch.backends.cuda.matmul.fp32_precision == "ieee"
assert torch.backends.cudnn.conv.fp32_precision == "ieee"
"""


def test_what_inherited_its_precision_inherits_it_afterwards(warm: ForkServerContext) -> None:
    run_apart(warm, f"{NEWER} = 'tf32'", INHERITED)


EVALUATED = """
import bench

before = read()
bench.evaluate(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)),
    torch.rand(6, 1, 2, 2), torch.tensor([0, 1, 2] * 2),
    params={"steps": 2}, precision="tf32", eps=[0.1], allow=["near-chance"])
assert read() == before
"""


@pytest.mark.parametrize(
    "set_before", [f"{NEWER} = 'tf32'", "torch.backends.cuda.matmul.fp32_precision = 'tf32'"]
)
def test_a_model_is_evaluated_in_a_process_that_has_set_tf32_through_the_newer_api(
    set_before: str, warm: ForkServerContext
) -> None:
    run_apart(warm, set_before, EVALUATED)


UNDONE = """
from bench.evaluation.process_state import ProcessState

before = read()
for change in ("torch.backends.fp32_precision = 'ieee'",
               "torch.backends.cudnn.allow_tf32 = False",
               "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
               "torch.set_float32_matmul_precision('medium')"):
    state = ProcessState()
    exec(change)
    (changed,) = state.restore()
    assert "fp32_precision" in changed and "could not" not in changed, changed
    assert read() == before, change
"""


@pytest.mark.parametrize(
    "set_before",
    [
        "",
        f"{NEWER} = 'tf32'",
        f"{NEWER} = 'tf32'; torch.backends.cudnn.conv.fp32_precision = 'none'",
    ],
)
def test_what_foreign_code_changes_is_undone_in_both_apis(
    set_before: str, warm: ForkServerContext
) -> None:
    run_apart(warm, set_before, UNDONE)


def test_an_error_leaves_the_settings_as_they_were() -> None:
    before = read()
    with pytest.raises(ZeroDivisionError), allow_tf32(True):
        raise ZeroDivisionError
    assert read() == before
