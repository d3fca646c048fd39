"""The README's commands and examples, run as they are printed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.suite import catalog

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _block(language, containing):
    blocks = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    return next(block for block in blocks if containing in block)


def _bench(*arguments, cwd):
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.fixture
def mine(tmp_path):
    """A folder with the README's own model, attack, data set and suite."""
    (tmp_path / "mine.py").write_text(_block("python", "BRIGHTNESS = Attack("))
    (tmp_path / "mine.toml").write_text(_block("toml", 'name = "mine"'))
    return tmp_path


def test_the_readme_opens_with_two_complete_commands():
    first, second = re.findall(r"^    (python3 .*)$", README, flags=re.MULTILINE)[:2]
    assert first.startswith("python3 -m venv .venv && ")
    assert first.endswith(".venv/bin/bench run quickstart")
    assert second.startswith("python3 -m venv .venv && ")
    assert '-e ".[test]"' in second
    assert ".venv/bin/python -m pytest" in second


def test_the_readme_names_every_shipped_suite_and_no_other():
    named = set(re.findall(r"^\| `bench run ([\w-]+)", README, flags=re.MULTILINE))
    assert named == set(catalog.list_suites())


def test_the_readmes_own_model_attack_and_data_run(mine):
    done = _bench("run", "mine.toml", "--out", "out", cwd=mine)
    assert done.returncode == 0, done.stderr
    table = (mine / "out" / "table.csv").read_text()
    assert "mine.py" in table
    assert "torchattacks:PGDL2" in table
    assert (mine / "out" / "report.html").stat().st_size > 10_000


def test_the_readmes_suite_is_planned(mine):
    done = _bench("plan", "mine.toml", cwd=mine)
    assert done.returncode == 0, done.stderr
    assert "7 cells" in done.stdout


def test_the_readmes_python_example_prints_a_table(mine):
    code = _block("python", "bench.evaluate(")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=mine, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "robust_correct" in done.stdout


def test_every_file_that_the_readme_links_to_is_there():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    missing = [link for link in links if not (ROOT / link.replace("\\", "")).exists()]
    assert missing == []


def test_what_more_an_entry_can_say_joins_the_readmes_suite(mine):
    with (mine / "mine.toml").open("a") as file:
        file.write(_block("toml", 'source = "each"'))
    done = _bench("run", "mine.toml", "--out", "out", cwd=mine)
    assert done.returncode == 0, done.stderr
    page = (mine / "out" / "report.md").read_text()
    assert "pgd from my net" in page
    assert "PGD, steps 100" in page
    assert "somebody 2020" in page
