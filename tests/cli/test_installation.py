"""Another distribution that has replaced files of bench, or its command."""

from pathlib import Path

import packages
import pytest
from click.testing import CliRunner

from bench.cli import cli, installation

OURS = {"bench/__init__.py": "ours = 1\n", "bench/api.py": "", "bin/bench": "#!ours\n"}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on Python's path into which bench is installed."""
    monkeypatch.syspath_prepend(tmp_path)
    packages.install_package(tmp_path, installation.OWN, OURS)
    return tmp_path


def test_an_installation_of_bench_alone_says_nothing(site: Path) -> None:
    assert list(installation.find_clashes()) == []


def test_a_file_that_the_user_has_changed_is_nobodys_clash(site: Path) -> None:
    (site / "bench" / "api.py").write_text("changed = 1\n", encoding="utf-8")
    assert list(installation.find_clashes()) == []


def test_a_package_of_the_same_name_is_named_at_every_start(site: Path) -> None:
    packages.install_package(site, "other-bench", {"bench/__init__.py": "theirs = 1\n"})
    told = CliRunner().invoke(cli, ["list", "recipes"], standalone_mode=False).stderr
    assert told.startswith(
        "warning: other-bench 1.0 has overwritten bench/__init__.py of robustness-bench 1.0: both "
        "install a package 'bench'; install them in two environments, then robustness-bench again\n"
    )


def test_a_command_of_the_same_name_is_named_with_the_one_to_use(site: Path) -> None:
    points = {"console_scripts": {"bench": "frappe:main"}}
    packages.install_package(site, "frappe-bench", {"bin/bench": "#!theirs\n"}, points)
    (sentence,) = installation.find_clashes()
    assert sentence == (
        "the command 'bench' of this environment belongs to frappe-bench 1.0; call this one by "
        "the name robustness-bench"
    )
