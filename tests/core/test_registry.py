"""Names: every built-in loads, outside code enters, and what breaks is refused in one sentence."""

import sys
from pathlib import Path

import pytest

from bench.core import registry, source_hash
from bench.core.contracts.attack import Attack
from bench.core.contracts.dataset import Dataset
from bench.core.contracts.model import Model
from bench.core.errors import SuiteError
from bench.suite import catalog

KINDS = {"attacks": Attack, "models": Model, "datasets": Dataset}


def refusal(name: str, base: Path | None = None, kind: str = "attacks") -> str:
    with pytest.raises(SuiteError) as caught:
        registry.find(kind, name, base)
    (only,) = caught.value.problems
    assert "\n" not in only
    return only


def written(folder: Path, code: str) -> str:
    (folder / "mine.py").write_text(code, encoding="utf-8")
    return "mine.py:make"


def test_every_built_in_is_found_by_the_name_of_its_file() -> None:
    built_in = [(kind, name) for kind in KINDS for name in registry.names(kind) if name[-1] != ":"]
    assert len(built_in) > 20
    others = [
        (kind, name) for kind, name in built_in
        if not isinstance(registry.find(kind, name), KINDS[kind])
    ]  # fmt: skip
    assert others == []


@pytest.mark.parametrize("kind", KINDS)
def test_everything_there_is_says_what_it_is_and_where_it_is_from(kind: str) -> None:
    lines = catalog.list_entries(kind)
    own = [name for name in registry.names(kind) if not registry.origin(kind, name)]
    assert [line.name for line in lines] == own
    for name, summary, source, origin in lines:
        assert origin == "bench"
        assert summary
        assert source
        if not name.endswith(":"):  # read without running it, and yet what the record says
            record = registry.find(kind, name)
            assert (summary, source) == (record.summary, record.source)


@pytest.mark.parametrize(
    ("kind", "name", "nearest"),
    [("attacks", "pdg", "pgd"), ("models", "lennet", "lenet"), ("datasets", "mnits", "mnist")],
)
def test_an_unknown_name_is_refused_with_the_nearest(kind: str, name: str, nearest: str) -> None:
    sentence = refusal(name, kind=kind)
    assert sentence.startswith(f"{kind[:-1]} '{name}' is unknown; did you mean '{nearest}'? known:")


def test_an_adapter_is_listed_but_is_no_attack_itself() -> None:
    assert "torchattacks:" in registry.names("attacks")
    assert "is unknown" in refusal("torchattacks")


def test_an_adapter_makes_an_attack_of_a_librarys_name() -> None:
    attack = registry.find("attacks", "torchattacks:FGSM")
    assert attack.implementation == "torchattacks"
    assert "did you mean 'FGSM'" in refusal("torchattacks:FGMS")


def test_a_name_from_a_file_is_looked_up_beside_the_suite(tmp_path: Path) -> None:
    name = written(tmp_path, "def make():\n    return 'made'\n")
    assert registry.find("models", name, tmp_path)() == "made"


def test_a_file_is_run_once_however_often_it_is_named(tmp_path: Path) -> None:
    name = written(tmp_path, "def make(): ...\n")
    assert registry.find("models", name, tmp_path) is registry.find("attacks", name, tmp_path)


def test_files_of_one_name_in_two_folders_are_two_modules(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        written(tmp_path / folder, f"make = '{folder}'\n")
    assert registry.find("models", "mine.py:make", tmp_path / "a") == "a"
    assert registry.find("models", "mine.py:make", tmp_path / "b") == "b"


def test_a_name_from_a_module_is_imported() -> None:
    assert registry.find("models", "bench.models.lenet:build") is not None


@pytest.mark.parametrize(
    ("code", "part"),
    [
        ("x = 1\ndef make(:\n", "mine.py:2: SyntaxError: "),
        ("x = 1\n\nmake = 1 / 0\n", "mine.py:3: ZeroDivisionError: division by zero"),
        ("def f():\n    raise ValueError('why')\n\nf()\n", "mine.py:2: ValueError: why"),
        ("import not_a_module\n", "mine.py:1: ModuleNotFoundError: "),
        ("raise SystemExit(3)\n", "mine.py:1: SystemExit: 3"),
        ("raise ValueError('two\\nlines')\n", "mine.py:1: ValueError: two"),
    ],
)
def test_a_file_that_breaks_is_named_with_the_line_where_it_broke(
    tmp_path: Path, code: str, part: str
) -> None:
    assert part in refusal(written(tmp_path, code), tmp_path)


def test_a_file_that_broke_is_read_again_once_it_is_mended(tmp_path: Path) -> None:
    refusal(written(tmp_path, "1 / 0"), tmp_path)
    assert registry.find("models", written(tmp_path, "make = 'whole'\n"), tmp_path) == "whole"


def test_a_missing_attribute_is_refused_with_the_nearest(tmp_path: Path) -> None:
    name = written(tmp_path, "def maker(): ...\n")
    assert "mine.py: 'make' is not defined there; did you mean 'maker'?" in refusal(name, tmp_path)


def test_a_missing_file_is_named_with_its_whole_path(tmp_path: Path) -> None:
    assert f"{tmp_path / 'absent.py'}: expected a Python file" in refusal(
        "absent.py:make", tmp_path
    )


@pytest.mark.parametrize(
    "name",
    ["no.such.module:x", ":x", ".relative:x", "pgd:PGD", "lenet:", "bench..suite:x", "a b:c"],
)
def test_a_module_that_cannot_be_imported_is_one_sentence(name: str) -> None:
    assert "could not be imported" in refusal(name)


@pytest.mark.parametrize(
    ("name", "own"),
    [("pgd", True), ("torchattacks:PGD", True), ("mine.py:make", False), ("json:loads", False)],
)
def test_a_name_says_whether_its_code_is_of_bench_or_of_a_user(name: str, own: bool) -> None:
    assert registry.built_in("attacks", name) == own


@pytest.mark.parametrize(
    ("kind", "name", "meant"),
    [
        ("attacks", "cw", "did you mean 'torchattacks:CW'?"),
        ("attacks", "deepfool", "'torchattacks:DeepFool'"),
        ("attacks", "PGD", "did you mean 'pgd' or "),
        ("models", "ResNet18", "did you mean 'torchvision:resnet18'"),
    ],
)
def test_an_unknown_name_leads_to_what_another_library_calls_so(
    kind: str, name: str, meant: str
) -> None:
    assert meant in refusal(name, kind=kind)


def test_what_a_library_offers_is_listed() -> None:
    attacks = catalog.list_library("attacks", "torchattacks:")
    assert "torchattacks:PGD" in [line.name for line in attacks]
    assert all(line.summary and line.source for line in attacks)
    assert "resnet18" in (registry.adapter_names("models", "torchvision") or [])
    for kind, library, part in (
        ("attacks", "torchatacks:", "did you mean 'torchattacks:'?"),
        ("models", "huggingface:", "have no list"),
        ("suites", "x:", "come from no library"),
    ):
        with pytest.raises(SuiteError, match=part.replace("?", r"\?")):
            catalog.list_library(kind, library)


def with_arch(folder: Path, value: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "arch.py").write_text(f"made = {value!r}\n", encoding="utf-8")
    (folder / "later.py").write_text(f"made = {value!r}\n", encoding="utf-8")
    code = "import arch\n\ndef make():\n    import later\n    return arch.made, later.made\n"
    written(folder, code)
    return folder


def called(folder: Path) -> object:
    make = registry.find("models", "mine.py:make", folder)
    with registry.search_user_code("models", "mine.py:make", folder):
        return make()


def test_a_file_imports_the_modules_beside_it_and_those_of_its_own_folder(tmp_path: Path) -> None:
    one, two = (with_arch(tmp_path / name, name) for name in ("one", "two"))
    before = [*sys.path]
    assert called(one) == ("one", "one")
    assert called(two) == ("two", "two")
    assert called(one) == ("one", "one")
    assert sys.path == before
    hashes = [source_hash.hash_code(folder / "mine.py") for folder in (one, two)]
    assert hashes[0] != hashes[1]


def test_a_module_beside_a_file_is_read_again_once_it_changed_and_belongs_to_its_hash(
    tmp_path: Path,
) -> None:
    folder = with_arch(tmp_path, "old")
    assert called(folder) == ("old", "old")
    before = source_hash.hash_code(folder / "mine.py")
    other = with_arch(tmp_path / "other", "other")
    assert called(other) == ("other", "other")
    with_arch(tmp_path, "new")
    assert called(folder) == ("new", "new")
    assert source_hash.hash_code(folder / "mine.py") != before


def test_a_file_imports_from_the_folder_of_its_suite_and_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "suite" / "nets").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    (tmp_path / "suite" / "beside_suite.py").write_text("a = 1\n", encoding="utf-8")
    (tmp_path / "work" / "beside_work.py").write_text("b = 2\n", encoding="utf-8")
    code = "from beside_suite import a\nfrom beside_work import b\nmake = a + b\n"
    (tmp_path / "suite" / "nets" / "mine.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path / "work")
    assert registry.find("models", "nets/mine.py:make", tmp_path / "suite") == 3
    assert registry.find("models", "beside_suite:a", tmp_path / "suite") == 1
