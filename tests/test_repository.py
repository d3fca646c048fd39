"""What git tracks: links that lead somewhere, no file that a command makes again, a limit on size.

The pages that are not tracked are made again by the command that results/README.md prints.
"""

import posixpath
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest
from click.testing import CliRunner

from bench.cli import cli

HERE = Path(__file__).parent


def git(*arguments: str, cwd: Path = HERE) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=cwd, capture_output=True, text=True, check=True, timeout=60
    ).stdout


try:
    ROOT = Path(git("rev-parse", "--show-toplevel").strip())
except (OSError, subprocess.CalledProcessError):
    pytest.skip("not a git checkout: what is tracked is not known", allow_module_level=True)
TRACKED = git("ls-files", "-z", cwd=ROOT).split("\0")[:-1]
RUNS = sorted(
    Path(name).parent.name
    for name in TRACKED
    if Path(name).match("results/*/report.md") and name.count("/") == 2
)
"""Folders of results/ that hold a whole run."""


class Links(HTMLParser):
    """The targets of all `href` and `src` of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.targets += [value for name, value in attrs if name in ("href", "src") and value]


def links(path: str, text: str) -> list[str]:
    """The relative links of a Markdown or HTML page, code and templates left out."""
    if path.endswith(".md"):
        text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
        targets = re.findall(r"\]\(<?([^)>\s]+)>?[^)]*\)", text) + Links(text).targets
        targets = [re.sub(r"\\(.)", r"\1", target) for target in targets]
    else:
        targets = Links(text).targets
    relative = [target for target in targets if "{{" not in target and not target.startswith("#")]
    return [target for target in relative if not urlsplit(target).scheme]


def leads_nowhere(path: str, target: str, there: set[str]) -> bool:
    place = unquote(urlsplit(target).path)
    path_there = posixpath.normpath(posixpath.join(posixpath.dirname(path), place))
    return not any(name == path_there or name.startswith(f"{path_there}/") for name in there)


def broken(pages: list[str], there: set[str], folder: Path) -> list[str]:
    return [
        f"{path}: {target}"
        for path in pages
        for target in links(path, (folder / path).read_text(encoding="utf-8"))
        if leads_nowhere(path, target, there)
    ]


def test_every_link_of_a_tracked_page_leads_to_a_tracked_file() -> None:
    pages = [name for name in TRACKED if name.endswith((".md", ".html"))]
    assert "results/README.md" in pages
    assert broken(pages, set(TRACKED), ROOT) == []


def test_no_tracked_file_is_one_that_a_command_makes_again() -> None:
    assert git("ls-files", "--cached", "--ignored", "--exclude-standard", cwd=ROOT) == ""


@pytest.mark.parametrize("name", RUNS)
def test_the_page_of_a_stored_run_is_made_again_with_the_numbers_of_its_table(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in TRACKED:
        if path.startswith(f"results/{name}/"):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, tmp_path / path)
    monkeypatch.chdir(tmp_path)
    readme = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"`bench (publish results/NAME -o [\w/]+)`", readme)

    done = CliRunner().invoke(cli, command.replace("NAME", name).split())

    assert done.exit_code == 0, done.output
    table = pd.read_csv(Path("results", name, "table.csv"))
    again = pd.read_csv(Path("results", "pages", name, "results.csv"))
    # Numbers that are counted again from records may differ in the last digit by library.
    pd.testing.assert_frame_equal(again[list(table.columns)], table, rtol=1e-9)
    there = {path.as_posix() for path in Path("results").rglob("*") if path.is_file()}
    assert broken([f"results/pages/{name}/index.html"], there, tmp_path) == []
    made = [path for path in there if path.startswith("results/pages/")]
    assert not_ignored([*made, f"results/{name}/report.html"]) == []


def not_ignored(paths: list[str]) -> list[str]:
    return [
        path
        for path in paths
        if subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, timeout=60).returncode
    ]


@pytest.fixture
def megabyte(tmp_path: Path) -> Path:
    """A repository with two staged files of 0.7 and 0.3 MB, and one that is not tracked."""
    git("init", "--quiet", cwd=tmp_path)
    (tmp_path / "large file.bin").write_bytes(b"a" * 700_000)
    (tmp_path / "small.bin").write_bytes(b"b" * 300_000)
    git("add", ".", cwd=tmp_path)
    (tmp_path / "untracked.bin").write_bytes(b"c" * 700_000)
    return tmp_path


def size_check(folder: Path, limit: str) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / ".ci" / "size"), limit]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def test_tracked_files_up_to_the_limit_pass(megabyte: Path) -> None:
    done = size_check(megabyte, "1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_tracked_files_above_the_limit_fail_with_their_size_and_the_largest(megabyte: Path) -> None:
    done = size_check(megabyte, "0.9")
    assert done.returncode == 1
    assert done.stderr == (
        "the files that git tracks hold 1.00 MB, more than the limit of 0.9 MB: remove what a "
        "command makes again and let .gitignore name it; "
        "the largest are large file.bin (0.70 MB), small.bin (0.30 MB)\n"
    )


def test_ci_holds_the_limit_before_anything_else() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    commands = [line for line in lines if re.match(r"\.ci/|eval|\.venv/|if ", line)]
    assert commands[0] == ".ci/size 45"
