"""Kept plans: shown again as they were made, and never once something they depend on is another."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.core.errors import SuiteError
from bench.suite import catalog, plan, plan_cache

TEXT = (
    'schema = 1\nname = "s"\ntitle = "T"\nseed = 3\n[data]\nname = "digits"\n'
    '[[models]]\nname = "lenet"\nweights = "digits"\n'
    '[[attacks]]\nname = "torchattacks:PGD"\nnorm = "linf"\neps = ["8/255"]\nparams = {steps = 5}\n'
)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Titles of the suites that were planned and not shown from what was kept."""
    found: list[str] = []
    tasks = plan.tasks

    def counted(suite, facts):
        found.append(suite.title)
        return tasks(suite, facts)

    monkeypatch.setattr(plan, "tasks", counted)
    return found


@pytest.fixture
def suite(plans: Path, tmp_path: Path) -> Path:
    path = tmp_path / "s.toml"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", catalog.suites())
def test_every_shipped_suite_is_planned_once_and_shown_twice(
    plans: Path, made: list[str], name: str
) -> None:
    first = plan_cache.read(name)
    assert plan_cache.read(name) == first
    assert len(made) == len(list(plans.iterdir())) == 1


def test_what_is_kept_is_what_is_shown(suite: Path) -> None:
    cost = 5.0
    line = plan_cache.Line(
        "lenet", "torchattacks:PGD", "linf", "untargeted", "", "8/255", cost, cost, ""
    )
    assert plan_cache.read(str(suite)) == plan_cache.Planned("T", 3, [line])
    kept = plan_cache.read(str(suite))
    assert kept == plan_cache.Planned("T", 3, [line])
    assert isinstance(kept.lines[0], plan_cache.Line)


def test_a_changed_suite_is_planned_anew_and_replaces_what_was_kept(
    suite: Path, plans: Path, made: list[str]
) -> None:
    plan_cache.read(str(suite))
    suite.write_text(TEXT.replace("8/255", "4/255"), encoding="utf-8")
    assert [line.eps_text for line in plan_cache.read(str(suite)).lines] == ["4/255"]
    assert len(made) == 2
    assert len(list(plans.iterdir())) == 1


@pytest.fixture
def change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Changes what a plan depends on beside its suite, in a package and a site of the test's own.

    `change("")` sets them up.
    """
    package, site = tmp_path / "package", tmp_path / "site"
    for folder in (package / "attacks", site / "torch-1.0.dist-info"):
        folder.mkdir(parents=True)
    source = package / "attacks" / "pgd.py"
    source.write_text("steps = 1\n", encoding="utf-8")
    monkeypatch.setattr(plan_cache, "_PACKAGE", package)
    monkeypatch.syspath_prepend(site)

    def changed(what: str) -> None:
        if what == "a source":
            source.write_text("steps = 2\n", encoding="utf-8")
        elif what == "a new file":
            (package / "attacks" / "new.py").write_text("", encoding="utf-8")
        elif what == "a library":
            (site / "torch-1.0.dist-info").rename(site / "torch-1.1.dist-info")
        elif what == "python":
            monkeypatch.setattr(sys, "version", "4.0")
        elif what == "a compiled file":
            (package / "__pycache__").mkdir()
            (package / "__pycache__" / "pgd.pyc").write_bytes(b"")

    return changed


@pytest.mark.parametrize(
    ("what", "times"),
    [("a source", 2), ("a new file", 2), ("a library", 2), ("python", 2), ("a compiled file", 1)],
)
def test_a_plan_is_made_anew_once_what_made_it_has_changed(
    suite: Path, made: list[str], change: Callable[[str], None], what: str, times: int
) -> None:
    plan_cache.read(str(suite))
    change(what)
    plan_cache.read(str(suite))
    plan_cache.read(str(suite))
    assert len(made) == times


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content.replace(b'"8/255"', b'"9/255"'),
        lambda content: content.partition(b"\n")[2],
        lambda content: b"\xff" * len(content),
    ],
    ids=["empty", "cut", "altered", "unsealed", "no text"],
)
def test_a_damaged_file_is_replaced(
    suite: Path, plans: Path, made: list[str], damage: Callable[[bytes], bytes]
) -> None:
    first = plan_cache.read(str(suite))
    (file,) = plans.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert plan_cache.read(str(suite)) == first
    assert file.read_bytes() == whole
    assert len(made) == 2


def test_a_folder_that_cannot_be_written_is_no_error(
    suite: Path, tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(plan_cache, "folder", lambda: tmp_path / "file" / "plans")
    assert plan_cache.read(str(suite)) == plan_cache.read(str(suite))
    assert len(made) == 2


def test_a_file_that_cannot_be_read_is_no_error(suite: Path, plans: Path, made: list[str]) -> None:
    first = plan_cache.read(str(suite))
    (file,) = plans.iterdir()
    file.unlink()
    file.mkdir()
    assert plan_cache.read(str(suite)) == first


CODE = (
    "from bench.attacks.pgd import ATTACK\nfrom bench.models.lenet import MODEL\n"
    "from bench.datasets.digits import DATASET\n"
)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("digits", "mine.py:DATASET"),
        ("lenet", "mine.py:MODEL"),
        ("torchattacks:PGD", "mine.py:ATTACK"),
        ("torchattacks:PGD", "bench.attacks.pgd:ATTACK"),
    ],
)
def test_a_suite_that_names_code_is_planned_each_time(
    suite: Path, plans: Path, made: list[str], old: str, new: str
) -> None:
    (suite.parent / "mine.py").write_text(CODE, encoding="utf-8")
    suite.write_text(TEXT.replace(f'name = "{old}"', f'name = "{new}"'), encoding="utf-8")
    assert plan_cache.read(str(suite)) == plan_cache.read(str(suite))
    assert len(made) == 2
    assert list(plans.iterdir()) == []


@pytest.mark.parametrize(
    ("weights", "times"), [("lenet-mnist", 1), ("mine.safetensors", 2), ("not-trained-yet", 2)]
)
def test_a_suite_that_names_a_file_is_planned_each_time_unless_it_is_bench_s_own(
    suite: Path, made: list[str], monkeypatch: pytest.MonkeyPatch, weights: str, times: int
) -> None:
    monkeypatch.chdir(suite.parent)
    published = (
        Path(plan.__file__).parent / "attacks" / "weights" / "advgan-lenet-mnist.safetensors"
    )
    Path("mine.safetensors").write_bytes(published.read_bytes())
    text = TEXT.replace("torchattacks:PGD", "advgan").replace("steps = 5", f'weights = "{weights}"')
    suite.write_text(text, encoding="utf-8")
    assert plan_cache.read(str(suite)) == plan_cache.read(str(suite))
    assert len(made) == times


def test_a_suite_with_a_mistake_is_told_each_time(suite: Path, plans: Path) -> None:
    suite.write_text(TEXT.replace("steps = 5", "stepz = 5"), encoding="utf-8")
    for _ in range(2):
        with pytest.raises(SuiteError, match="did you mean 'steps'"):
            plan_cache.read(str(suite))
    assert list(plans.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other rules")
def test_plans_are_kept_where_the_user_keeps_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert plan_cache.folder() == tmp_path / "bench" / "plans"
