"""One image: what is told, what is written, and that it is what the model says."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from bench.cli import cli
from bench.datasets import digits
from bench.datasets.image_files import decode_image, write_png
from bench.models import lenet
from bench.models.published_weights import WEIGHTS


@pytest.fixture
def digit(tmp_path: Path) -> Path:
    """A handwritten digit as a PNG file: example 0, a five that LeNet knows."""
    return write_png(digits.load(limit=1).read(0, 1)[0], tmp_path / "five.png")


def bench(digit: Path, *options: str) -> Result:
    out = str(digit.parent / "out")
    command = ["attack", str(digit), "--model", "lenet", "--weights", "digits", "--out", out]
    return CliRunner().invoke(cli, [*command, *options])


def test_an_image_is_taken_for_another_class_and_everything_is_reported(digit: Path) -> None:
    result = bench(digit, "--eps", "0.3", "--attack", "pgd", "--param", "steps=6", "--every", "2")
    assert result.exit_code == 0, result.output
    assert [line[:9] for line in result.output.splitlines()[:4]] == [
        "step    0", "step    2", "step    4", "step    5",
    ]  # fmt: skip
    assert "before: 5 " in result.output
    assert "after: 5 " not in result.output
    assert "linf 0.3," in result.output
    assert "five.png is taken as another class" in result.output
    assert (digit.parent / "out" / "five-attack.png").stat().st_size > 5000


def test_the_png_is_lossless_and_read_back_in_8_bits(digit: Path) -> None:
    bench(digit, "--eps", "40/255", "--attack", "fgsm")
    again = decode_image(digit.parent / "out" / "five-adversarial.png", 28, 28, channels=1)
    change = (again - decode_image(digit, 28, 28, channels=1)).abs()
    assert torch.allclose(change.max(), torch.tensor(40 / 255), atol=1e-6)


def test_a_target_is_reached_by_the_raw_gradient(digit: Path) -> None:
    options = ["--eps", "0.4", "--target", "3", "--param", "lr=0.1", "--param", "steps=60"]
    options += ["--attack", "raw_gradient"]
    result = bench(digit, *options)
    assert result.exit_code == 0, result.output
    assert "after: 3 " in result.output
    assert "five.png is taken as 3" in result.output


@pytest.mark.parametrize("eps", ["0.05", "1"])
def test_a_threat_without_a_norm_is_reported_whether_it_breaks_the_image_or_not(
    digit: Path, eps: str
) -> None:
    result = bench(
        digit, "--attack", "rotation_translation", "--norm", "rotation-translation", "--eps", eps,
        "--param", "angles=3", "--param", "shifts=3",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert ("is taken as another class" in result.output) == (eps == "1")
    page = (digit.parent / "out" / "five-attack.md").read_text(encoding="utf-8")
    assert f"rotation-translation eps {eps}" in page


def test_the_default_attack_uses_its_budget_and_one_that_does_not_is_no_evidence(
    tmp_path: Path,
) -> None:
    command = ["attack", "digits:17", "--model", "lenet", "--weights", "digits", "--eps", "0.3"]
    command += ["--out", str(tmp_path)]
    result = CliRunner().invoke(cli, command)
    assert "digits-17 is taken as another" in result.output.replace("digits:17", "digits-17")
    assert "no evidence" not in result.output
    result = CliRunner().invoke(cli, [*command, "--attack", "raw_gradient"])
    assert result.exit_code == 0, result.output
    assert "no evidence of robustness: the attack moved the image by " in result.output
    assert "try --attack pgd or a larger --param lr" in result.output
    assert "No evidence of robustness" in (tmp_path / "digits-17-attack.md").read_text()
    reached = [*command, "--attack", "fgsm", "--target", "9"]
    assert "no evidence" not in CliRunner().invoke(cli, reached).output


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--target", "eleven"], "target 'eleven' is no class"),
        (["--attack", "pdg"], "did you mean 'pgd'?"),
        (["--param", "stepz=3"], "did you mean 'steps'?"),
        (["--param", "steps"], "expected KEY=VALUE"),
        (["--eps", "-1"], "expected an eps in [0, 1]"),
        (["--model", "lenett"], "did you mean 'lenet'?"),
    ],
)
def test_a_mistake_is_one_sentence_and_2(digit: Path, options: list[str], expected: str) -> None:
    result = bench(digit, *options)
    assert result.exit_code == 2
    assert expected in result.output
    assert "Traceback" not in result.output


def test_a_file_that_is_no_image_is_one_sentence_and_2(tmp_path: Path) -> None:
    (tmp_path / "five.png").write_text("hello")
    result = bench(tmp_path / "five.png")
    assert result.exit_code == 2
    assert "is no readable image" in result.output


def test_an_example_of_a_data_set_has_the_data_sets_label(tmp_path: Path) -> None:
    wrong = next(k for k in range(200) if _prediction(k) != _label(k))
    command = ["attack", f"digits:{wrong}", "--model", "lenet", "--weights", "digits"]
    result = CliRunner().invoke(cli, [*command, "--out", str(tmp_path), "--eps", "0.1"])
    assert result.exit_code == 0, result.output
    assert f"before: {_prediction(wrong)} " in result.output
    assert f"; {_label(wrong)} (the label)" in result.output
    page = (tmp_path / f"digits-{wrong}-attack.md").read_text()
    assert "is the data set's" in page


def _label(index: int) -> int:
    labels = digits.load(limit=200).labels
    assert labels is not None
    return int(labels[index])


def _prediction(index: int) -> int:
    model = lenet.build().eval()
    model.load_state_dict(load_file(WEIGHTS / "lenet-digits.safetensors"))
    with torch.no_grad():
        return int(model(digits.load(limit=200).read(index, index + 1)).argmax())


def test_the_page_says_what_the_terminal_said(digit: Path) -> None:
    result = bench(digit, "--eps", "0.3", "--attack", "pgd", "--param", "steps=6", "--every", "2")
    page = (digit.parent / "out" / "five-attack.md").read_text()
    for line in result.output.splitlines()[:4]:
        _, step, _, loss = line.split()
        assert f"| {step} | {loss} |" in page
    assert "(five-attack.png)" in page
    assert page.count("five.png is taken as another class") == 1


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("digits:5000", "expected an index below 500"),
        ("digitz:3", "did you mean 'digits'"),
        ("nowhere.png", "nowhere.png: expected an image file, found none; check the path"),
    ],
)
def test_an_image_that_is_not_there_is_one_sentence_and_2(image: str, expected: str) -> None:
    result = CliRunner().invoke(cli, ["attack", image, "--model", "lenet", "--weights", "digits"])
    assert (result.exit_code, expected in result.output) == (2, True), result.output


def test_an_example_fits_a_model_file_that_says_nothing_of_shapes(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\n\n"
        "def net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n"
    )
    command = ["attack", "digits:3", "--model", f"{tmp_path / 'mine.py'}:net", "--eps", "0.1"]
    result = CliRunner().invoke(cli, [*command, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "digits-3-attack.md").exists()
