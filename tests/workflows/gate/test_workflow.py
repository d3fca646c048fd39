"""The workflow that others copy: its steps are run here as they are written."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.analysis import snapshot_file

ROOT = Path(__file__).parents[3]
WORKFLOW = ROOT / ".github" / "workflows" / "robustness.yml"
_STEP = re.compile(
    r"^      - name: (?P<name>.+)\n(?:(?!      - ).*\n)*?        run: (?P<run>.+)$", re.M
)
GH = """#!/bin/sh
printf '%s\\n' "$@" > gh.txt
"""


def steps() -> dict[str, str]:
    """Each step that runs something, by its name, without the comment behind it."""
    text = WORKFLOW.read_text(encoding="utf-8")
    return {result["name"]: result["run"].split("  #")[0] for result in _STEP.finditer(text)}


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with nothing but .github, `bench` on the path and a `gh` that posts nothing."""
    shutil.copytree(ROOT / ".github", tmp_path / ".github")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "gh").write_text(GH, encoding="utf-8")
    (tools / "bench").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bench "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    for name, value in {
        "GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(tmp_path / "step.md"), "NUMBER": "7",
        "BENCH_OFFLINE": "1", "PYTHONPATH": str(ROOT),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_workflow_has_the_steps_that_the_readme_describes() -> None:
    assert list(steps()) == ["Install", "Attack", "Check", "Summarise", "Comment"]
    assert steps()["Install"] == "python -m pip install ."


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="the steps are written for bash")
def test_the_steps_of_the_workflow_run_as_they_are_written(shell: Path) -> None:
    for name, command in steps().items():
        if name == "Install":  # what it installs is what runs these tests
            continue
        words = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", command]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
    summary = (shell / "robustness" / "summary.md").read_text(encoding="utf-8")
    assert summary.startswith("### ✅ Robustness of robustness")
    assert (shell / "step.md").read_text(encoding="utf-8") == summary
    assert (shell / "robustness" / "junit.xml").read_bytes().startswith(b"<?xml")
    assert (shell / "robustness" / "report.html").stat().st_size > 10_000
    said = (shell / "gh.txt").read_text(encoding="utf-8").split()
    assert said[:3] == ["pr", "comment", "7"]
    assert said[-2:] == ["--body-file", "robustness/summary.md"]


def test_the_workflows_baseline_can_be_read() -> None:
    kept = snapshot_file.read_snapshot(ROOT / ".github" / "robustness.json")
    assert {cell.status for cell in kept.cells} == {"ok"}


def test_the_hooks_are_those_of_the_project_and_fetch_nothing() -> None:
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert re.findall(r"^ +entry: (.+)$", text, re.M) == [
        "ruff check",
        "ruff format --check",
        "mypy",
    ]
    assert re.findall(r"repo: (.+)$", text, re.M) == ["local"]
