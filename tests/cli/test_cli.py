"""What people type: exit codes, one sentence for each mistake, and every shipped suite."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import torch
from PIL import Image

from bench import cli
from bench.core import files
from bench.suite import catalog


class Said(NamedTuple):
    code: int
    out: str
    err: str


Type = Callable[..., Said]


@pytest.fixture
def type_(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Type:
    """Runs `bench` with the words given, in an empty folder and without the network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BENCH_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "200")

    def typed(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return Said(code, said.out, said.err)

    return typed


def written(folder: Path, attack: str = "fgsm", data: str = "digits") -> Path:
    text = f"""
        schema = 1
        name = "mine"
        [data]
        name = "{data}"
        limit = 20
        [[models]]
        name = "lenet"
        weights = "digits"
        [[attacks]]
        name = "{attack}"
        norm = "linf"
        eps = [0.1]
    """
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def attack(folder: Path, body: str) -> Path:
    """A suite whose attack does what `body` says."""
    code = (
        "from bench.attacks.fgsm import Params\nfrom bench import Attack\n"
        f"def run(model, x, y, threat, params, noise):\n    {body}\n"
        "A = Attack(summary='s', source='s', params=Params, norms=('linf',), run=run)\n"
    )
    (folder / "broken.py").write_text(code, encoding="utf-8")
    return written(folder, "broken.py:A")


# -------------------------------------------------------------------------------------- exit codes


def test_a_run_that_goes_well_ends_with_0_and_leaves_tables_pages_and_plots(
    type_: Type, tmp_path: Path
) -> None:
    said = type_("run", written(tmp_path))
    out = Path("results/runs/mine")
    assert said.code == 0
    assert f"report: {out / 'report.html'}" in said.out
    for name in ("table.csv", "crosscheck.csv", "report.html", "report.md", "provenance.json"):
        assert (out / name).stat().st_size > 0
    assert list(out.glob("plots/*.png"))
    assert list(out.glob("plots/*.svg"))
    assert "nothing to run: every cell is done" in type_("run", tmp_path / "mine.toml").err
    page = (out / "report.html").read_bytes()
    (out / "report.html").unlink()
    assert type_("report", out).code == 0
    assert len((out / "report.html").read_bytes()) == pytest.approx(len(page), rel=0.01)


def test_a_cell_that_failed_ends_with_1_and_its_reason(type_: Type, tmp_path: Path) -> None:
    said = type_("run", attack(tmp_path, "raise ValueError('no way')"), "--out", "out")
    assert said.code == 1
    assert "failed: lenet · broken.py:A at eps 0.1: ValueError: no way (broken.py:4)" in said.err
    assert "Traceback" not in said.err
    table = pd.read_csv("out/table.csv")
    assert table["status"].tolist() == ["failed"]
    assert table["robust_accuracy"].isna().all()
    assert type_("report", "out").code == 1


def test_a_violation_is_reported_and_counts_as_robust_unless_most_are(
    type_: Type, tmp_path: Path
) -> None:
    few = "x = x.clone(); x[:2] = 1 - x[:2]; return x"
    said = type_("run", attack(tmp_path, few), "--out", "out")
    table = pd.read_csv("out/table.csv")
    assert said.code == 0
    assert "violations: 2" in said.out
    assert table["robust_correct"].tolist() == table["clean_correct"].tolist()
    (tmp_path / "most").mkdir()
    said = type_("run", attack(tmp_path / "most", "return 1 - x"), "--out", "most/out")
    table = pd.read_csv("most/out/table.csv")
    assert said.code == 1
    assert table["status"].tolist() == ["failed"]
    assert "attacked images are violations, the first" in table["reason"].item()


def test_an_interruption_ends_with_130_and_saves_what_is_finished(
    type_: Type, tmp_path: Path
) -> None:
    said = type_("run", attack(tmp_path, "raise KeyboardInterrupt"), "--out", "out")
    assert said.code == 130
    assert "what was finished is kept" in said.err
    assert "Traceback" not in said.err
    said = type_("report", "out")
    assert said.code == 1
    assert "missing: lenet" in said.err


def users_mistakes(folder: Path) -> dict[str, tuple[list[object], str]]:
    (folder / "file").write_text("in the way", encoding="utf-8")
    (folder / "bad.toml").write_text('schema = 1\nname = "x"\nmodles = 3\n', encoding="utf-8")
    good = written(folder)
    (folder / "run" / "records").mkdir(parents=True)
    (folder / "run" / "provenance.json").write_text("{}", encoding="utf-8")
    return {
        "no such suite": (["run", "quikstart"], "did you mean 'quickstart'"),
        "a bad suite": (["run", "bad.toml"], "did you mean 'models'"),
        "a suite in the way": (["plan", "run"], "could not be read as a suite"),
        "a file in the way": (["run", good, "--out", "file"], "file"),
        "a folder under a file": (["run", good, "--out", "file/out"], "could not be written"),
        "no such device": (["run", good, "--device", "cuda:99"], "use --device cpu"),
        "no device at all": (
            ["run", good, "--device", "gpu"],
            "expected auto, cpu, cuda[:N], xpu[:N] or mps",
        ),
        "no data": (["run", "mnist", "--data-dir", "none"], "put the unpacked MNIST files into"),
        "no images": (["run", "imagenet", "--data-dir", "none"], "expected images in none"),
        "no examples": (["run", good, "--limit", "0"], "0 is not in the range"),
        "no such option": (["run", good, "--limt", "3"], "--limit"),
        "no such verb": (["rum"], "rum"),
        "no such list": (["list", "modles"], "modles"),
        "no run": (["report", "nowhere"], "expected the folder of a run"),
        "a damaged run": (["report", "run"], "run the suite again"),
        "no such recipe": (["train", "lenet-digit"], "did you mean 'lenet-digits'"),
    }


def test_every_mistake_of_a_user_ends_with_2_and_no_traceback(type_: Type, tmp_path: Path) -> None:
    for name, (words, part) in users_mistakes(tmp_path).items():
        said = type_(*words)
        assert said.code == 2, name
        assert part in said.err, name
        assert "Traceback" not in said.out + said.err, name


def test_all_mistakes_of_a_suite_are_reported_one_per_line(type_: Type, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text('schema = 2\nname = "x"\nmodles = 3\n', encoding="utf-8")
    lines = type_("run", "bad.toml").err.splitlines()
    assert len(lines) == 5
    assert all(line.startswith("bench: bad.toml: ") for line in lines)


# ------------------------------------------------------------------------------------------- verbs


def test_help_lists_every_verb(type_: Type) -> None:
    said = type_("--help")
    assert said.code == 0
    for verb in cli.cli.commands:
        assert verb in said.out
        assert type_(verb, "--help").code == 0


def test_every_list_names_what_it_lists(type_: Type) -> None:
    names = {
        "models": "lenet", "attacks": "pgd", "datasets": "digits", "suites": "quickstart",
        "recipes": "lenet-digits",
    }  # fmt: skip
    for kind, name in names.items():
        said = type_("list", kind)
        assert said.code == 0, kind
        assert name in said.out, kind


@pytest.mark.parametrize("name", catalog.list_suites())
def test_every_shipped_suite_plans_without_running(type_: Type, name: str, tmp_path: Path) -> None:
    said = type_("plan", name)
    assert said.code == 0
    assert "cells, at most" in said.out
    assert type_("plan", name) == said
    assert list(tmp_path.iterdir()) == []


def test_a_plan_shows_costs_and_skip_reasons(type_: Type, tmp_path: Path) -> None:
    said = type_("plan", written(tmp_path, "torchattacks:TIFGSM"))
    assert said.code == 0
    assert "needs 3 channels" in said.out
    assert "where the cost is known" not in said.out  # a cell that is skipped costs nothing
    said = type_("plan", written(tmp_path))
    assert "1 cell, at most 1 forward pass per example\n" in said.out


def test_python_m_bench_is_bench_and_a_users_mistake_has_no_traceback(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "bench", "run", "quikstart"]
    said = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert said.returncode == 2
    assert said.stderr.startswith("bench: suite 'quikstart' is neither a file nor shipped")
    assert len(said.stderr.splitlines()) == 1


# ------------------------------------------------------------------------------- the shipped suites


@pytest.mark.slow
def test_quickstart_runs_on_a_few_images(type_: Type, tmp_path: Path) -> None:
    """At three of its seven eps."""
    text = (catalog.SUITES / "quickstart.toml").read_text(encoding="utf-8")
    all_eps, three = "[0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3]", "[0, 0.1, 0.3]"
    assert text.count(all_eps) == 8
    (tmp_path / "quickstart.toml").write_text(text.replace(all_eps, three), encoding="utf-8")
    suite = tmp_path / "quickstart.toml"
    said = type_("run", suite, "--limit", 8, "--batch-size", 8, "--out", "out")
    assert said.code == 0
    table, pairs = pd.read_csv("out/table.csv"), pd.read_csv("out/crosscheck.csv")
    assert (table["status"] == "ok").all()
    assert (table["n"] == 8).all()
    assert set(pairs["verdict"]) <= {"identical", "equal within noise"}
    assert (pairs[pairs["ours"] == "FGSM"]["verdict"] == "identical").all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["mnist", "fgsm", "regularised_noise", "regularised_noise_lambda", "transfer", "advgan"],
)
def test_mnist_runs_on_a_few_images(type_: Type, name: str) -> None:
    folder = files.data_folder(None)
    if not (folder / "MNIST" / "raw" / "t10k-images-idx3-ubyte").exists():
        pytest.skip("the MNIST files are not on this machine")
    said = type_("run", name, "--limit", 4, "--batch-size", 8, "--out", "out")
    assert said.code == 0
    assert (pd.read_csv("out/table.csv")["status"] == "ok").all()


def pictures(folder: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.arange(40 * 48 * 3).mul(number + 7).remainder(256).to(torch.uint8)
        Image.fromarray(pixels.view(40, 48, 3).numpy()).save(folder / name)


def small_imagenet(folder: Path) -> Path:
    """The shipped suite on small images with random weights."""
    text = (catalog.SUITES / "imagenet.toml").read_text(encoding="utf-8")
    for old, new in (
        ("resize = 256, crop = 224", "resize = 32, crop = 32"),
        ('"IMAGENET1K_V1"', '"random"'),
        ('"0.5/255", "1/255", "2/255", "4/255", "8/255"', '"8/255"'),
        ("steps = 10", "steps = 1"),
    ):
        assert old in text
        text = text.replace(old, new)
    (folder / "small.toml").write_text(text, encoding="utf-8")
    return folder / "small.toml"


@pytest.mark.slow
def test_imagenet_runs_on_small_images_with_random_weights(type_: Type, tmp_path: Path) -> None:
    """Without class folders, the labels are the model's clean predictions."""
    pictures(tmp_path / "pictures", ["b.jpg", "a.png", "c.jpg"])
    said = type_("run", small_imagenet(tmp_path), "--data-dir", "pictures", "--out", "out")
    table = pd.read_csv("out/table.csv")
    assert said.code == 0
    assert len(table) == 12
    assert (table["n"] == 3).all()
    assert (table["clean_correct"] == 3).all()
    assert table["dataset"].str.contains("the model's clean predictions").all()


def test_a_plan_of_imagenet_says_that_labels_come_from_the_folders(
    type_: Type, tmp_path: Path
) -> None:
    pictures(tmp_path / "pictures", ["n02395406/a.jpg", "n01440764/b.jpg"])
    said = type_("plan", small_imagenet(tmp_path), "--data-dir", "pictures")
    assert said.code == 0
    assert "data: pictures, 2 images of 3 x 32 x 32" in said.out
    assert "labels: ImageNet's index of each folder's id" in said.out


def test_an_image_that_is_no_image_is_named(type_: Type, tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", ["a.jpg"])
    (tmp_path / "pictures" / "b.jpg").write_bytes(b"no image at all")
    said = type_("run", small_imagenet(tmp_path), "--data-dir", "pictures", "--out", "out")
    assert said.code == 2
    assert "b.jpg is no readable image" in said.err


def test_weights_that_cannot_be_downloaded_are_one_sentence(
    type_: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    pictures(tmp_path / "pictures", ["a.jpg"])
    said = type_("run", "imagenet", "--data-dir", "pictures", "--out", "out")
    assert said.code == 2
    assert len(said.err.splitlines()) == 1
    assert "resnet50-0676ba61.pth" in said.err
    assert str(tmp_path / "torch" / "hub" / "checkpoints") in said.err


def test_the_data_folder_is_the_option_then_the_variable_then_the_users_cache(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BENCH_DATA_DIR", "from the variable")
    assert files.data_folder("given") == Path("given")
    assert files.data_folder(None) == Path("from the variable")
    monkeypatch.delenv("BENCH_DATA_DIR")
    assert files.data_folder(None).name == "bench"
