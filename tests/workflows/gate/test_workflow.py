"""The workflow that others copy, and its action: the steps are run here as they are written."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest

from bench.analysis import snapshot_file

ROOT = Path(__file__).parents[3]
WORKFLOW = ROOT / ".github" / "workflows" / "robustness.yml"
ACTION = ROOT / ".github" / "actions" / "robustness" / "action.yml"
NEEDS_SHELL = pytest.mark.skipif(
    shutil.which("bash") is None, reason="the steps are written for bash"
)
GH = """#!/usr/bin/env python3
import json, os, pathlib, subprocess, sys
words = sys.argv[1:]
with open("gh.txt", "a") as file:
    file.write(json.dumps(words) + "\\n")
if "--jq" in words:
    done = subprocess.run(["jq", "-r", words[words.index("--jq") + 1]],
                          input=pathlib.Path("comments.json").read_text(), text=True)
    sys.exit(done.returncode)
"""


class Step(NamedTuple):
    """A step of the action."""

    condition: str
    environment: dict[str, str]
    run: str
    """Its script; empty if it uses another action."""


def read_steps() -> dict[str, Step]:
    """Read the steps of the action; the file has the few forms of YAML that this understands."""
    text = ACTION.read_text(encoding="utf-8").partition("  steps:\n")[2]
    steps = {}
    for block in re.split(r"^    - name: ", text, flags=re.M)[1:]:
        name, _, body = block.partition("\n")
        condition = re.search(r"^      if: (.+)$", body, re.M)
        environment = re.search(r"^      env:\n((?:        .+\n)+)", body, re.M)
        script = re.search(r"^      run: \|\n((?:(?:        .*)?\n)+)", body, re.M)
        pairs = re.findall(r"^ +(\w+): (.+)$", environment[1] if environment else "", re.M)
        run = re.sub(r"^        ", "", script[1], flags=re.M) if script else ""
        steps[name] = Step(condition[1] if condition else "", dict(pairs), run)
    return steps


def read_inputs() -> dict[str, str]:
    """Read the inputs that the workflow gives, and the defaults of the others."""
    declared = ACTION.read_text(encoding="utf-8").partition("inputs:\n")[2].partition("runs:\n")[0]
    defaults = re.findall(r"^  ([\w-]+):\n(?:    .+\n)*?    default: (.+)$", declared, re.M)
    given = re.findall(
        r"^          ([\w-]+): ([^#\n]+)", WORKFLOW.read_text(encoding="utf-8"), re.M
    )
    return {name: value.strip().strip('"') for name, value in [*defaults, *given]}


def run_step(name: str, attack: str = "success", **inputs: str) -> subprocess.CompletedProcess[str]:
    """Run a step of the action in the current folder, after an attack with this outcome."""
    step = read_steps()[name]
    values = {f"inputs.{key}": value for key, value in (read_inputs() | inputs).items()}
    values |= {"github.token": "t", "github.event.number": "7", "github.repository": "o/r"}
    values["steps.attack.outcome"] = attack
    environment = {
        key: re.sub(r"\$\{\{ ([\w.-]+) \}\}", lambda found: values[found[1]], text)
        for key, text in step.environment.items()
    }
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step.run],
        capture_output=True, text=True, timeout=300, check=False, env=os.environ | environment,
    )  # fmt: skip


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
        "GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(tmp_path / "step.md"),
        "BENCH_OFFLINE": "1", "PYTHONPATH": str(ROOT),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_action_has_the_steps_that_the_readme_describes() -> None:
    steps = read_steps()
    assert list(steps) == [
        "Set up Python", "Cache packages", "Install", "Attack", "Check", "Keep the report",
        "Comment",
    ]  # fmt: skip
    assert "!cancelled()" in steps["Check"].condition
    assert "always()" in steps["Comment"].condition
    assert read_inputs()["torch-backend"] == "cpu"
    assert '--torch-backend "$TORCH_BACKEND"' in steps["Install"].run


def test_the_workflow_is_short_and_bounded() -> None:
    text = WORKFLOW.read_text(encoding="utf-8")
    assert "timeout-minutes:" in text
    assert "cancel-in-progress: true" in text
    assert len(text.partition("    steps:\n")[2].splitlines()) <= 10


@NEEDS_SHELL
@pytest.mark.parametrize("name", [name for name, step in read_steps().items() if step.run])
def test_every_script_of_the_action_is_bash_and_takes_inputs_by_its_environment_alone(
    name: str,
) -> None:
    script = read_steps()[name].run
    assert "${{" not in script  # a title of a pull request would be run
    done = subprocess.run(["bash", "-n", "-c", script], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.slow
@NEEDS_SHELL
def test_the_steps_of_the_action_run_as_they_are_written(shell: Path) -> None:
    for name in ("Attack", "Check"):
        done = run_step(name)
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
    summary = (shell / "robustness" / "summary.md").read_text(encoding="utf-8")
    assert summary.startswith("### ✅ Robustness of robustness")
    assert (shell / "step.md").read_text(encoding="utf-8") == summary
    assert (shell / "robustness" / "junit.xml").read_bytes().startswith(b"<?xml")
    assert (
        json.loads((shell / "robustness" / "robustness.sarif").read_bytes())["version"] == "2.1.0"
    )
    assert (shell / "robustness" / "report.html").stat().st_size > 10_000


BROKEN = """
[[models]]
name = "broken.py:make"
label = "broken"
"""
BROKEN_NET = """
import torch
class Net(torch.nn.Module):
    def forward(self, x):
        if torch.is_grad_enabled():
            raise RuntimeError("no gradient today")
        return x.flatten(1)[:, :10]
def make():
    return Net()
"""


@pytest.mark.slow
@NEEDS_SHELL
def test_a_cell_that_crashed_is_judged_by_the_check(shell: Path) -> None:
    suite = shell / ".github" / "robustness.toml"
    text = suite.read_text(encoding="utf-8").replace("[data]", "[data]\nlimit = 20", 1)
    suite.write_text(text.replace("[[attacks]]", f"{BROKEN}\n[[attacks]]", 1), encoding="utf-8")
    (shell / ".github" / "broken.py").write_text(BROKEN_NET, encoding="utf-8")
    attacked = run_step("Attack")
    assert attacked.returncode == 0, attacked.stderr
    done = run_step("Check")
    assert done.returncode == 1
    assert "::error title=robust accuracy failed::" in done.stdout
    summary = (shell / "step.md").read_text(encoding="utf-8")
    assert "FAILED" in summary
    assert summary.count("no gradient today") == 1
    assert "accept this run" not in summary


@pytest.mark.slow
@NEEDS_SHELL
def test_a_missing_baseline_is_in_the_summary_and_the_files(shell: Path) -> None:
    done = run_step("Check", baseline="none.json")
    assert done.returncode == 2
    assert "::error title=bench check::none.json: expected a baseline" in done.stdout
    assert "could not be checked" in (shell / "step.md").read_text(encoding="utf-8")
    top = ElementTree.parse(shell / "robustness" / "junit.xml").getroot()
    assert top.get("errors") == "1"


@NEEDS_SHELL
def test_a_suite_that_could_not_run_is_named_with_its_mistake(shell: Path) -> None:
    (shell / "mine.toml").write_text("schema = 7\n", encoding="utf-8")
    attacked = run_step("Attack", suite="mine.toml")
    assert attacked.returncode == 2
    assert "::error title=bench run::mine.toml: " in attacked.stdout
    checked = run_step("Check", attack="failure")
    assert checked.returncode == 2
    summary = (shell / "step.md").read_text(encoding="utf-8")
    assert "could not be checked" in summary
    assert "\nbench: mine.toml: " in summary
    assert (shell / "robustness" / "summary.md").read_text(encoding="utf-8") == summary


@NEEDS_SHELL
@pytest.mark.skipif(shutil.which("jq") is None, reason="the stand-in for gh filters by jq")
@pytest.mark.parametrize(
    ("comments", "method", "path"),
    [
        ([], "POST", "issues/7/comments"),
        ([("someone", "<!-- bench robustness: s.toml -->")], "POST", "issues/7/comments"),
        ([("github-actions[bot]", "coverage: 80 %")], "POST", "issues/7/comments"),
        ([("github-actions[bot]", "<!-- bench robustness: t.toml -->")], "POST",
         "issues/7/comments"),
        ([("github-actions[bot]", "coverage: 80 %"),
          ("github-actions[bot]", "<!-- bench robustness: s.toml -->\nold")], "PATCH",
         "issues/comments/1"),
    ],
)  # fmt: skip
def test_a_comment_is_edited_only_if_it_is_the_workflows_own(
    shell: Path, comments: list[tuple[str, str]], method: str, path: str
) -> None:
    listed = [
        {"id": number, "user": {"login": login}, "body": body}
        for number, (login, body) in enumerate(comments)
    ]
    (shell / "comments.json").write_text(json.dumps(listed), encoding="utf-8")
    (shell / "robustness").mkdir()
    (shell / "robustness" / "summary.md").write_text("### fine\n", encoding="utf-8")
    done = run_step("Comment", suite="s.toml")
    assert done.returncode == 0, done.stderr
    words = json.loads((shell / "gh.txt").read_text(encoding="utf-8").splitlines()[-1])
    assert words[:4] == ["api", "--method", method, f"repos/o/r/{path}"]
    assert words[5] == "body=@robustness/comment.md"
    posted = (shell / "robustness" / "comment.md").read_text(encoding="utf-8")
    assert posted == "<!-- bench robustness: s.toml -->\n### fine\n"


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
