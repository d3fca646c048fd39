"""The README files: their examples run as printed, their links, paths and tables are complete."""

import contextlib
import hashlib
import pickle
import re
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from forked import run_forked

import bench
from bench.cli import cli

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
FOLDERS = ("bench", "results", "suites")
READMES = [README, *(path for name in FOLDERS for path in sorted((ROOT / name).rglob("README.md")))]
SHARED = """
import torch

quadrant = torch.zeros(4, 1, 4, 4)
for label, (row, column) in enumerate([(0, 0), (0, 2), (2, 0), (2, 2)]):
    quadrant[label, 0, row : row + 2, column : column + 2] = 1.0
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 4, bias=False))
model[1].weight.data = 5 * quadrant.flatten(1)
images, labels = quadrant.repeat(2, 1, 1, 1), torch.arange(4).repeat(2)
"""
"""A user's `my_project`: the class is the bright quadrant, and a small eps cannot move it."""


def _text(page):
    return (ROOT / page).read_text(encoding="utf-8")


def _block(page, language, containing=""):
    blocks = re.findall(rf"```{language}\n(.*?)```", _text(page), flags=re.DOTALL)
    return next(block for block in blocks if containing in block)


def _bench(*arguments, cwd):
    with contextlib.chdir(cwd):
        return CliRunner(env={"BENCH_OFFLINE": "1", "COLUMNS": "400"}).invoke(cli, arguments)


def _rows(page):
    """The cells of all table rows of a page."""
    lines = re.findall(r"^\| (.*) \|$", _text(page), flags=re.MULTILINE)
    return [re.split(r" \| ?", line) for line in lines]


# ------------------------------------------------------------------------------------ the pages


def test_the_first_page_is_short():
    assert len(_text("README.md").splitlines()) <= 150


def test_the_readme_opens_with_two_complete_commands():
    first, second = re.findall(r"^    (python3 .*)$", _text("README.md"), flags=re.MULTILINE)[:2]
    assert first.startswith("python3 -m venv .venv && ")
    assert '-e ".[torchattacks]"' in first  # the reference of the quickstart's cross-checks
    assert first.endswith(".venv/bin/bench run quickstart")
    assert second.startswith("python3 -m venv .venv && ")
    assert '-e ".[test]"' in second
    assert ".venv/bin/python -m pytest" in second


def test_ci_finds_the_test_command_in_the_readme():
    reads = re.search(r"^command=.*$", _text(".ci/run"), flags=re.MULTILINE).group()
    done = subprocess.run(
        ["bash", "-c", f'{reads}; printf %s "$command"'], cwd=ROOT, capture_output=True, text=True
    )
    assert f"    {done.stdout}\n" in _text("README.md")
    assert "pytest" in done.stdout


def test_both_citations_name_the_version_of_the_package():
    version = tomllib.loads(_text("pyproject.toml"))["project"]["version"]
    assert f"version = {{{version}}}" in _block("README.md", "bibtex")
    lines = _block("README.md", "yaml").splitlines()
    keys = {line.partition(":")[0] for line in lines if not line.startswith(" ")}
    assert keys >= {"cff-version", "message", "title", "authors"}  # those the format requires
    assert f"version: {version}" in lines


def _anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page, flags=re.DOTALL), re.M)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def _is_broken(page, link):
    path, _, anchor = link.partition("#")
    to = page.parent / path if path else page
    return not to.exists() or bool(
        anchor and anchor not in _anchors(to.read_text(encoding="utf-8"))
    )


def test_every_relative_link_leads_to_a_file_and_a_heading():
    broken = [
        (page.relative_to(ROOT).as_posix(), link)
        for page in READMES
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
        if not link.startswith("http") and _is_broken(page, link)
    ]
    assert broken == []


def test_every_path_of_the_package_that_a_page_names_exists():
    missing = [
        (page.relative_to(ROOT).as_posix(), path)
        for page in READMES
        for path in re.findall(r"`(bench/[^`\s]*)`", page.read_text(encoding="utf-8"))
        if not (ROOT / path).exists()
    ]
    assert missing == []


# ------------------------------------------------------------------------------------ the tables


def test_the_first_page_lists_every_verb():
    commands = {cell for row in _rows("README.md") for cell in row}
    verbs = {verb for cell in commands for verb in re.findall(r"`bench ([a-z-]+)[ `]", cell)}
    assert verbs == set(cli.commands)


def test_the_suites_that_ship_are_listed_and_no_other():
    listed = set(re.findall(r"^\| `bench run ([\w-]+)", _text("suites/README.md"), re.M))
    assert listed == {path.stem for path in ROOT.glob("suites/*.toml")}


UNKNOWN_KEYS = """
schema = 1
name = "unknown"
zzz = 1
data = { name = "digits", zzz = 1 }
models = [{ name = "lenet", weights = "digits", allow = ["zzz"], zzz = 1 }]
attacks = [{ name = "fgsm", norm = "linf", eps = [0.1], zzz = 1 }]
certify = [{ method = "crown", zzz = 1 }, { method = "smoothing", sigma = 1, zzz = 1 }]
crosschecks = [{ zzz = 1 }]
published = [{ zzz = 1 }]
unions = [{ zzz = 1 }]
gate = { zzz = 1, cells = [{ zzz = 1 }] }
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """What bench says of a suite with an unknown key in each table: it lists the known ones."""
    folder = tmp_path_factory.mktemp("unknown")
    (folder / "unknown.toml").write_text(UNKNOWN_KEYS)
    done = _bench("plan", "unknown.toml", cwd=folder)
    assert done.exit_code == 2
    return done.stderr


def test_the_table_of_keys_holds_exactly_the_keys_that_a_suite_may_have(refusals):
    known = {
        (re.sub(r"\[\d\]", "", place).removesuffix("zzz").strip("."), key)
        for place, keys in re.findall(r"^.*?toml: (\S+): unknown key; known: (.*)$", refusals, re.M)
        for key in keys.split(", ")
    }
    documented = [
        ("" if row[0] == "top level" else row[0].strip("`[]"), row[1].strip("`"))
        for row in _rows("suites/README.md")
        if row[0] == "top level" or re.fullmatch(r"`\[+[a-z.]+\]+`", row[0])
    ]
    assert len(documented) == len(set(documented))
    assert set(documented) == known


def test_the_table_of_preflight_holds_exactly_the_findings_that_a_suite_may_allow(refusals):
    known = re.search(r"allow: .*'zzz'; known: (.*)$", refusals, re.M).group(1).split(", ")
    section = _text("bench/models/README.md").partition("## Preflight")[2].partition("\n## ")[0]
    first_cells = re.findall(r"^\| (`.*?) \|", section, flags=re.MULTILINE)
    documented = [name for cell in first_cells for name in re.findall(r"`([\w-]+)`", cell)]
    assert sorted(documented) == sorted(known)


def test_the_thresholds_of_the_gate_page_fit_a_suite(mine):
    suite = (mine / "mine.toml").read_text().replace('"64/255"', '"8/255"')
    suite = suite.replace(
        'name = "mine.py:BRIGHTNESS"', 'name = "mine.py:BRIGHTNESS"\nlabel = "PGD"'
    )
    thresholds = _block("bench/workflows/gate/README.md", "toml")
    (mine / "mine.toml").write_text(suite + thresholds)
    done = _bench("plan", "mine.toml", cwd=mine)
    assert done.exit_code == 0, done.stderr


# ---------------------------------------------------------------------------------- the examples


def _write_mine(folder):
    parts = [
        _block("bench/models/README.md", "python", "width: int"),
        _block("bench/datasets/README.md", "python", "def stripes"),
        _block("bench/attacks/README.md", "python", "BRIGHTNESS = Attack("),
    ]
    (folder / "mine.py").write_text("\n\n".join(parts))


@pytest.fixture
def mine(tmp_path):
    """A folder with the model, the attack, the data set and the suite of the pages."""
    _write_mine(tmp_path)
    (tmp_path / "mine.toml").write_text(_block("suites/README.md", "toml", 'name = "mine"'))
    return tmp_path


@pytest.fixture
def my_project(tmp_path):
    """A folder with a user's model and images."""
    (tmp_path / "my_project.py").write_text(SHARED)
    return tmp_path


def test_the_example_suite_is_planned(mine):
    done = _bench("plan", "mine.toml", cwd=mine)
    assert done.exit_code == 0, done.stderr
    assert "7 cells" in done.stdout


def test_the_example_suite_runs_with_the_less_common_entries_appended(mine):
    with (mine / "mine.toml").open("a") as file:
        file.write(_block("suites/README.md", "toml", 'source = "each"'))
    done = _bench("run", "mine.toml", "--out", "out", cwd=mine)
    assert done.exit_code == 0, done.stderr
    table = (mine / "out" / "table.csv").read_text()
    assert "mine.py" in table
    assert "torchattacks:PGDL2" in table
    assert (mine / "out" / "report.html").stat().st_size > 10_000
    page = (mine / "out" / "report.md").read_text()
    assert "pgd from my net" in page
    assert "PGD, steps 100" in page
    assert "somebody 2020" in page
    assert "small radii" in page


def test_the_python_example_prints_a_table(my_project):
    done = run_forked(_block("README.md", "python", "bench.evaluate("), my_project)
    assert done.returncode == 0, done.stderr
    assert re.search(r"robust_accuracy\s.*\n0\s+0\.03\d+\s+1\.0\s+1\.0\s", done.stdout)


def test_the_pytest_example_passes(my_project):
    (my_project / "test_example.py").write_text(
        _block("bench/pytest_plugin/README.md", "python", "robustness")
    )
    (my_project / "tests").mkdir()
    (my_project / "tests" / "robust.toml").write_text(
        'schema = 1\nname = "robust"\ndata = { name = "digits" }\n'
        'models = [{ name = "lenet", weights = "digits" }]\n'
        'attacks = [{ name = "fgsm", norm = "linf", eps = [0.01] }]\n'
    )
    words = ["-q", "-p", "no:cacheprovider", "test_example.py"]
    code = f"import sys, pytest; sys.exit(int(pytest.main({words})))"
    done = run_forked(code, my_project)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["torchvision:FakeData", "mine.npz"])
def test_the_data_of_the_data_page_can_be_planned(name, tmp_path):
    images = np.zeros((6, 9, 9, 3), dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", pictures=images, kinds=np.arange(6) % 2)
    data = _block("bench/datasets/README.md", "toml", name)
    rest = (
        '[[models]]\nname = "softmax"\nweights = "random"\n'
        '[[attacks]]\nname = "fgsm"\nnorm = "linf"\neps = [0.1]\n'
    )
    (tmp_path / "own.toml").write_text(f'schema = 1\nname = "own"\n{data}{rest}')
    done = CliRunner().invoke(cli, ["plan", str(tmp_path / "own.toml")])
    assert done.exit_code == 0, done.output
    assert "images of 3 x 8 x 8" in done.output or "0 = cat, 1 = dog" in done.output


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """A folder with the CIFAR-10 example, and 20 images in the layout of torchvision's files."""
    from torchvision.datasets import CIFAR10

    images = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)
    contents = {
        "test_batch": {"data": images, "labels": [index % 10 for index in range(20)]},
        "batches.meta": {"label_names": [str(index) for index in range(10)]},
    }
    files = tmp_path / CIFAR10.base_folder
    files.mkdir()
    sums = {}
    for name, content in contents.items():
        (files / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((files / name).read_bytes()).hexdigest()
    # torchvision reads only files with the checksums of the published ones.
    monkeypatch.setattr(CIFAR10, "train_list", [])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    (tmp_path / "cifar10.py").write_text(_block("bench/models/README.md", "python", "CIFAR10"))
    (tmp_path / "cifar10.toml").write_text(_block("bench/models/README.md", "toml", "cifar10.py"))
    names: dict[str, object] = {}
    exec((tmp_path / "cifar10.py").read_text(), names)
    torch.save(names["net"]().state_dict(), tmp_path / "my_weights.pt")
    return tmp_path


def test_the_cifar_10_example_runs(cifar10):
    result = bench.run(str(cifar10 / "cifar10.toml"), cifar10 / "out", data_dir=cifar10, limit=1)
    assert list(result.table["status"]) == ["ok"] * 3
    assert set(result.table["attack"]) == {"PGD-20", "AutoAttack"}


def test_one_command_evaluates_a_model_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = (
        "from torch import nn\n"
        "def make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n"
    )
    (tmp_path / "mine.py").write_text(source)
    names: dict[str, object] = {}
    exec(source, names)
    torch.save(names["make"]().state_dict(), tmp_path / "w.pt")
    command = _block("README.md", "sh", "--model mine.py:make").split()
    there = ["digits" if each == "cifar10" else each for each in command]  # as shipped
    done = CliRunner().invoke(cli, there[1:])
    assert done.exit_code == 0, done.output
    (table,) = tmp_path.glob("results/runs/*/table.csv")
    assert table.read_text().count("mine.py:make") == 4


def test_the_benchmark_example_writes_a_report(my_project):
    first = "from my_project import images, labels, model\nimport bench\n"
    done = run_forked(first + _block("README.md", "python", "bench.benchmark("), my_project)
    assert done.returncode == 0, done.stderr
    assert (my_project / "report.html").stat().st_size > 10_000


def test_the_command_of_the_suites_page_can_be_planned(mine):
    command = _block("suites/README.md", "sh", "--model mine.py:net").split()
    done = _bench("plan", *(each.strip('"') for each in command[2:]), cwd=mine)
    assert done.exit_code == 0, done.output
    assert "8 cells" in done.stdout
