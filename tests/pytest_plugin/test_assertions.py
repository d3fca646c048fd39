"""The pytest plugin, in test sessions of its own."""

import re
from pathlib import Path

import pytest
from PIL import Image

from bench.pytest_plugin import assertions
from bench.reporting import run_output

# A session in this process forgets the modules that it imports first, and pandas cannot be twice.

__all__ = ["assertions", "run_output"]

HEAD = """
import pytest
import torch
from torch import nn

def net():
    "Two classes, divided by the first pixel: wrong beyond 0.5, so the answer is a formula."
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].weight[1, 0] = 1.0
        model[1].bias.copy_(torch.tensor([0.5, 0.0]))
    return model.eval()

x = torch.full((10, 1, 2, 2), 0.5)
x[:, 0, 0, 0] = torch.tensor([0.05, 0.1, 0.2, 0.3, 0.44, 0.56, 0.7, 0.8, 0.9, 0.95])
y = torch.tensor([0] * 5 + [1] * 5)
ASKED = dict(attack="fgsm", device="cpu", copied=False)
"""
SUITE = """
schema = 1
name = "own"
[data]
name = "digits"
limit = 20
[[models]]
name = "lenet"
weights = "digits"
[[attacks]]
name = "fgsm"
norm = "linf"
eps = [0.05]
[[attacks]]
name = "noise"
norm = "linf"
eps = [0.05]
"""


def run_tests(pytester: pytest.Pytester, body: str, *options: str) -> tuple[dict[str, int], str]:
    """Outcomes and output of a session with one test file."""
    pytester.makepyfile(HEAD + body)
    done = pytester.runpytest_inprocess("-p", "no:cacheprovider", *options)
    return done.parseoutcomes(), done.stdout.str()


def test_a_model_that_is_robust_enough_passes_and_leaves_nothing_behind(
    pytester: pytest.Pytester,
) -> None:
    body = """
def test_robust(robustness):
    robustness(net(), x, y, eps=0.1, **ASKED).at_least(0.8)
    robustness(net(), x, y, eps=[0.1, 0.25], **ASKED).at_least({0.1: 0.8, 0.25: 0.6})
"""
    outcomes, _ = run_tests(pytester, body)
    assert outcomes == {"passed": 1}
    assert not (pytester.path / "robustness-report").exists()


def test_ten_tests_of_one_model_check_it_once(pytester: pytest.Pytester) -> None:
    """Each of them builds the model and asks for another eps."""
    body = """
ROWS, COSTS = [], []

class Counted(nn.Sequential):
    def forward(self, x):
        ROWS.append(len(x))
        return super().forward(x)

@pytest.mark.parametrize("eps", [k / 1000 for k in range(1, 11)])
def test_robust(robustness, eps):
    ROWS.clear()
    robustness(Counted(net()), x, y, eps=eps, **ASKED).at_least(0.9)
    COSTS.append(sum(ROWS))

def test_cost():
    first, *others = COSTS
    assert len(others) == 9
    assert {first - other for other in others} == {2 * len(x) + 28}  # and gradients of 4 images
"""
    outcomes, output = run_tests(pytester, body)
    assert outcomes == {"passed": 11}, output


def test_a_weaker_one_fails_with_count_interval_and_what_was_fooled(
    pytester: pytest.Pytester,
) -> None:
    body = """
def test_robust(robustness):
    robustness(net(), x, y, eps=0.1, **ASKED).at_least(0.9)
"""
    outcomes, output = run_tests(pytester, body)
    assert outcomes == {"failed": 1}
    assert (
        "Sequential under fgsm, linf, eps 0.1: 8 of 10 examples are robust, "
        "80.0 % [49.0 %, 94.3 %], expected at least 90.0 % (10 are right unattacked)"
    ) in output
    assert "fooled: 4 (0 → 1), 5 (1 → 0)" in output
    assert "assertions.py" not in output
    (folder,) = (pytester.path / "robustness-report").iterdir()
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == [
        "4-0-to-1.png", "5-1-to-0.png", "records.csv", "table.csv",
    ]  # fmt: skip
    with Image.open(folder / "eps-0.1" / "4-0-to-1.png") as picture:
        assert picture.size == (448, 224)  # before beside after, each pixel 112 times as wide
        ends = [(0, 0), (111, 111), (224, 0), (335, 111)]
        assert [picture.getpixel(at) for at in ends] == [112, 112, 138, 138]  # 0.44, 0.54 in 8 bits


def test_each_test_keeps_its_own_and_what_is_fooled_now(pytester: pytest.Pytester) -> None:
    """Two names may give one name of a folder, and an earlier session may have left images."""
    body = """
@pytest.mark.parametrize("eps", [0.1, 0.3])
def test_{name}(robustness, eps):
    robustness(net(), x[{of}], y[{of}], eps=eps, **ASKED).at_least(0.999)

def test_{name}_0_1(robustness):
    robustness(net(), x[5:], y[5:], eps=0.1, **ASKED).at_least(0.999)
"""
    long = "robust_" * 12
    for of in (":", "5:"):
        assert run_tests(pytester, body.format(name=long, of=of))[0] == {"failed": 3}
    folders = [*(pytester.path / "robustness-report").iterdir()]
    assert len(folders) == 3
    pictures = [sorted(path.name for path in each.rglob("*.png")) for each in folders]
    assert sorted(pictures) == [
        ["0-1-to-0.png"],
        ["0-1-to-0.png"],
        ["0-1-to-0.png", "1-1-to-0.png", "2-1-to-0.png"],
    ]


def test_the_fixture_takes_arrays_and_loaders_as_bench_evaluate_does(
    pytester: pytest.Pytester,
) -> None:
    body = """
from torch.utils.data import DataLoader, TensorDataset

def test_arrays(robustness):
    robustness(net(), x.numpy(), y.numpy(), eps=0.1, **ASKED).at_least(0.9)

def test_loader(robustness):
    loader = DataLoader(TensorDataset(x, y), batch_size=3)
    robustness(net(), loader, eps=0.1, **ASKED).at_least(0.9)

def test_tensors(robustness):
    robustness(net(), x, y, eps=0.1, **ASKED).at_least(0.9)
"""
    outcomes, output = run_tests(pytester, body)
    assert outcomes == {"failed": 3}
    assert output.count("8 of 10 examples are robust, 80.0 %") >= 3
    folders = [*(pytester.path / "robustness-report").iterdir()]
    assert len(folders) == 3
    assert len({(each / "records.csv").read_text() for each in folders}) == 1
    pictures = [sorted(path.name for path in each.rglob("*.png")) for each in folders]
    assert pictures == [["4-0-to-1.png", "5-1-to-0.png"]] * 3


def test_confidence_asks_the_lower_end_of_the_interval(pytester: pytest.Pytester) -> None:
    body = """
def test_robust(robustness):
    seen = robustness(net(), x, y, eps=0.01, **ASKED)
    seen.at_least(1.0)
    seen.at_least(0.7, confident=True)
    with pytest.raises(AssertionError, match="at least 75.0 % with 95 % confidence"):
        seen.at_least(0.75, confident=True)
"""
    assert run_tests(pytester, body)[0] == {"passed": 1}


@pytest.mark.parametrize(
    ("share", "message"),
    [("1.2", "expected a share in .0, 1., got 1.2"), ("{0.3: 0.5}", "expected an eps of .0.1.")],
)
def test_a_bound_that_is_none_is_refused_before_the_attack_runs(
    pytester: pytest.Pytester, share: str, message: str
) -> None:
    pytester.path.joinpath("own.toml").write_text(SUITE.replace("0.05", "0.1"))
    body = f"""
class Never(nn.Module):
    def forward(self, x):
        raise RuntimeError("the model was run")

def test_robust(robustness):
    with pytest.raises(ValueError, match="{message}"):
        robustness(Never(), x, y, eps=0.1, **ASKED).at_least({share})

def test_suite(robustness):
    with pytest.raises(ValueError, match="{message}"):
        robustness.suite("own.toml").at_least({share})
"""
    assert run_tests(pytester, body)[0] == {"passed": 2}
    assert not (pytester.path / "robustness-report").exists()


def test_a_mistake_of_the_user_shows_the_line_of_the_test_and_no_frame_of_bench(
    pytester: pytest.Pytester,
) -> None:
    body = """
def test_attack(robustness):
    robustness(net(), x, y, attack="pdg", eps=0.1).at_least(0.5)

def test_images(robustness):
    robustness(net(), 3 * x, y, eps=0.1, **ASKED).at_least(0.5)

def test_suite(robustness):
    robustness.suite("nowhere.toml").at_least(0.5)

def test_bound(robustness):
    robustness(net(), x, y, eps=0.1, **ASKED).at_least(7)

def test_keyword(robustness):
    robustness(net(), x, y, epsilon=0.1, **ASKED).at_least(0.5)
"""
    outcomes, output = run_tests(pytester, body)
    assert outcomes == {"failed": 5}
    assert "attack 'pdg' is unknown; did you mean 'pgd'?" in output
    assert "unknown argument 'epsilon'; did you mean 'eps'?" in output
    frames = [line for line in output.splitlines() if re.match(r"\S+\.py:\d+:", line)]
    assert len(frames) == 5
    assert all(frame.startswith("test_") for frame in frames)


def test_what_changed_before_the_attack_ran_is_refused(pytester: pytest.Pytester) -> None:
    body = """
def test_model(robustness):
    model = net()
    seen = robustness(model, x, y, eps=0.1, **ASKED)
    with torch.no_grad():
        model[1].weight.add_(1.0)
    with pytest.raises(ValueError, match="got changed ones"):
        seen.at_least(0.5)

def test_images(robustness):
    images = x.clone()
    seen = robustness(net(), images, y, eps=0.1, **ASKED)
    images.zero_()
    with pytest.raises(ValueError, match="got changed ones"):
        seen.at_least(0.5)

def test_two_of_one_model(robustness):
    model = net()
    first, second = (robustness(model, x, y, eps=eps, **ASKED) for eps in (0.1, 0.01))
    second.at_least(1.0)
    first.at_least(0.8)
"""
    assert run_tests(pytester, body)[0] == {"passed": 3}


def test_a_call_that_asserts_nothing_is_warned_of(pytester: pytest.Pytester) -> None:
    body = """
def test_forgotten(robustness):
    robustness(net(), x, y, eps=0.1, **ASKED)
"""
    outcomes, output = run_tests(pytester, body, "-W", "default::bench.RobustnessWarning")
    assert outcomes == {"passed": 1, "warnings": 1}
    assert "1 of 1 calls were never asserted by at_least" in output


def test_an_attack_that_leaves_its_ball_is_no_evidence(pytester: pytest.Pytester) -> None:
    pytester.path.joinpath("cheat.py").write_text(
        "from dataclasses import dataclass\n"
        "from bench import Attack\n"
        "@dataclass(frozen=True)\n"
        "class Params: pass\n"
        "NEGATIVE = Attack(summary='', source='', params=Params, norms=('linf',),\n"
        "    goals=('untargeted',), run=lambda model, x, y, threat, params, noise: 1 - x)\n"
    )
    body = """
def test_robust(robustness):
    file = str(__import__("pathlib").Path(__file__).with_name("cheat.py"))
    robustness(net(), x, y, attack=f"{file}:NEGATIVE", eps=0.1, device="cpu").at_least(0.5)
"""
    outcomes, output = run_tests(pytester, body)
    assert outcomes == {"failed": 1}
    assert "attacked images are violations, the first of them example 0: linf distance" in output


def test_the_marker_selects_the_tests_that_ask(pytester: pytest.Pytester) -> None:
    body = """
def test_robust(robustness):
    robustness(net(), x, y, eps=0.01, **ASKED).at_least(0.5)

def test_other():
    pass
"""
    outcomes, _ = run_tests(pytester, body, "-m", "robustness", "--strict-markers")
    assert outcomes == {"passed": 1, "deselected": 1}


def test_a_suite_is_asserted_by_its_worst_case_and_its_report_is_saved(
    pytester: pytest.Pytester,
) -> None:
    pytester.path.joinpath("own.toml").write_text(SUITE)
    body = """
@pytest.mark.robustness(suite="own.toml")
def test_suite(robustness):
    seen = robustness.suite(device="cpu")
    seen.at_least(0.0)
    seen.at_least(1.0)
"""
    junit = pytester.path / "junit.xml"
    outcomes, output = run_tests(pytester, body, f"--junit-xml={junit}", "--robustness-dir=kept")
    assert outcomes == {"failed": 1}
    assert "lenet under the worst of 2 attacks, linf, untargeted, eps 0.05:" in output
    (folder,) = (pytester.path / "kept").iterdir()
    assert (folder / "report.html").is_file()
    assert f"Seen: {folder / 'report.html'}" in output
    assert 'name="robust_accuracy" value="lenet under the worst' in junit.read_text()


def test_a_suite_that_is_named_nowhere_is_asked_for(pytester: pytest.Pytester) -> None:
    body = """
def test_suite(robustness):
    robustness.suite()
"""
    outcomes, output = run_tests(pytester, body)
    assert outcomes == {"failed": 1}
    assert "expected a suite, as an argument or by @pytest.mark.robustness(suite=...)" in output


def test_a_session_that_does_not_ask_does_not_import_torch(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("import sys\ndef test_light():\n    assert 'torch' not in sys.modules\n")
    done = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    assert done.parseoutcomes() == {"passed": 1}


def test_the_package_says_that_it_is_typed() -> None:
    import bench

    assert (Path(bench.__file__).parent / "py.typed").is_file()


def test_a_failure_says_what_makes_the_number_doubtful(pytester: pytest.Pytester) -> None:
    body = """
class Flat(nn.Module):
    @torch.no_grad()
    def forward(self, x):
        return net()(x)

def test_it(robustness):
    robustness(Flat(), x, y, eps=0.1, **ASKED).at_least(1.0, confident=True)
"""
    outcomes, output = run_tests(pytester, body, "-W", "error::bench.RobustnessWarning")
    assert outcomes == {"failed": 1}
    assert "Beware: model 'Flat'" in output
    assert "(zero-gradient)" in output
