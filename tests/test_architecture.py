"""The house: imports go one way, names stay at home, randomness is keyed, imports are light."""

import ast
import functools
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import bench
from bench import registry

ROOT = Path(bench.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
ORDER = [
    "printable", "errors", "stages", "shares", "heap", "files", "lock", "images",
    "checking", "rng", "process", "contracts", "inputs", "fitness", "logits", "queries", "foreign",
    "geometry", "hyperplane", "losses", "guard", "containment", "streams", "determinism", "layers",
    "chain", "certify", "checkpoint", "programs", "models", "suspicions", "datasets", "attacks",
    "source_hash", "registry", "catalogue", "published", "thresholds", "entries", "suite",
    "fingerprint", "batch", "pulse", "graphs", "engine", "meter", "judge", "consistency", "plan",
    "agreement", "craft", "ensemble", "measure", "provenance", "exchange", "copies", "preflight",
    "metrics", "feed", "loading", "columns", "laid", "kept", "records", "adversarials",
    "digest", "session", "certified", "document", "audit", "parts", "logs", "decisions",
    "resume_check", "runner", "isolated", "isolation", "spread", "tables", "distances",
    "comparisons", "brackets", "crosscheck", "explain", "beside", "results", "compare", "rerun",
    "merge", "sheet", "formats", "plots", "report", "publication", "trackers", "gate", "publish",
    "leaderboard", "single", "story", "api", "testing", "training", "speed", "cli", "__main__",
]  # fmt: skip
"""Every module imports only what stands before it, or beside it in its own folder."""
HOMES = ("attacks", "models", "datasets", "training", "speed")


def part(path: Path) -> str:
    """The module or folder of bench that a file belongs to."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported(tree: ast.AST) -> Iterator[str]:
    """Names of all modules that a file imports, wherever it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "bench":
            yield from (f"bench.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            assert node.level == 0
            yield node.module


def strings(tree: ast.AST) -> Iterator[str]:
    """Every string constant of a file that is no docstring."""
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            yield node.value


@functools.cache
def tree(path: Path) -> ast.AST:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_every_module_has_its_place_in_the_order() -> None:
    assert {part(path) for path in FILES} - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("path", [p for p in FILES if part(p) != "__init__"], ids=str)
def test_imports_go_one_way(path: Path) -> None:
    own = part(path)
    allowed = {*ORDER[: ORDER.index(own) + 1]}
    found = {name.split(".")[1] for name in imported(tree(path)) if name.startswith("bench.")}
    assert found <= allowed


@pytest.mark.parametrize("path", [p for p in FILES if part(p) not in HOMES], ids=str)
def test_no_module_of_the_harness_knows_the_name_of_an_attack_a_model_or_a_data_set(
    path: Path,
) -> None:
    kinds = ("attacks", "models", "datasets")
    known = {name.rstrip(":") for kind in kinds for name in registry.names(kind)}
    named = {text for text in strings(tree(path)) if text in known}
    taken = {name for name in imported(tree(path)) if name.count(".") > 1}
    deep = {name for name in taken if name.split(".")[1] in kinds}
    # `evaluate` has a default attack, as the design says; provenance records a library's version.
    libraries = {"torchattacks", "foolbox", "art", "pyautoattack", "torchvision", "timm"}
    excused = {
        "api.py": {"pgd"}, "provenance.py": libraries, "source_hash.py": {"torchvision"}
    }  # fmt: skip
    assert named - excused.get(path.name, set()) == set()
    assert deep == set()


@pytest.mark.parametrize("path", FILES, ids=str)
def test_nothing_imports_what_a_library_drags_in(path: Path) -> None:
    tops = {name.partition(".")[0] for name in imported(tree(path))}
    assert tops.isdisjoint({"requests", "robustbench"})


@pytest.mark.parametrize("path", [p for p in FILES if p.name != "rng.py"], ids=str)
def test_every_draw_has_a_generator_of_its_own(path: Path) -> None:
    drawing = {"rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like",
               "bernoulli", "multinomial", "normal", "normal_", "uniform_", "random_"}  # fmt: skip
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            keyed = ast.unparse(node.func.value) in ("noise", "rng")
            given = any(keyword.arg == "generator" for keyword in node.keywords)
            assert node.func.attr not in drawing or keyed or given, ast.unparse(node)


def catches_all(kind: ast.expr | None) -> bool:
    names = [n.id for n in ast.walk(kind) if isinstance(n, ast.Name)] if kind else ["Exception"]
    return not {"Exception", "BaseException"}.isdisjoint(names)


def test_no_broad_except_hides_a_bug_outside_a_strangers_code() -> None:
    broad = [
        path.relative_to(ROOT).as_posix()
        for path in FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler) and catches_all(node.type)
    ]
    # Where a stranger's code, data or device may raise anything: a model or attack that is probed,
    # traced, recorded, fingerprinted, copied or asked again; a factory, file, module or checkpoint;
    # a cell; a worker process; a library's reader, attack or tracker; Ray; a training's progress.
    assert sorted(broad) == [
        "audit/probed.py", "audit/slopes.py", "chain.py", "chain.py", "checkpoint.py",
        "containment.py", "copies.py", "copies.py", "craft.py", "datasets/mnist.py", "engine.py",
        "errors.py", "fingerprint.py", "fingerprint.py", "fingerprint.py", "graphs.py",
        "isolated.py", "isolated.py", "loading.py", "parts.py", "parts.py", "preflight.py",
        "preflight.py", "programs/__init__.py", "registry.py", "registry.py", "resume_check.py",
        "runner.py", "runner.py", "speed/race.py", "spread.py", "suspicions.py",
        "trackers/__init__.py", "training/progress.py",
    ]  # fmt: skip


def test_the_rules_above_would_see_an_offender() -> None:
    bad = ast.parse('"""pgd"""\nimport requests\nfrom bench import cli\nx = "pgd"\n')
    assert list(imported(bad)) == ["requests", "bench.cli"]
    assert list(strings(bad)) == ["pgd"]


def loaded(code: str, names: tuple[str, ...], folder: Path) -> str:
    """Which of `names` are imported once `code` has run in a process of its own."""
    words = f"{code}\nimport sys\nprint([n for n in {names!r} if n in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", words], capture_output=True, text=True, cwd=folder, check=True
    )
    return run.stdout.splitlines()[-1]


def test_importing_bench_and_its_command_line_does_not_wait_for_torch(tmp_path: Path) -> None:
    heavy = ("torch", "pandas", "matplotlib", "torchattacks", "sklearn", "rich.progress")
    assert loaded("import bench, bench.cli", heavy, tmp_path) == "[]"


@pytest.mark.parametrize("kind", ["attacks", "models", "datasets", "suites", "recipes"])
def test_a_list_does_not_wait_for_torch(kind: str, tmp_path: Path) -> None:
    code = f"from bench.cli import cli; cli(['list', {kind!r}], standalone_mode=False)"
    assert loaded(code, ("torch", "pandas", "matplotlib", "torchattacks"), tmp_path) == "[]"


def test_help_does_not_wait_for_torch(tmp_path: Path) -> None:
    code = "from bench.cli import cli; cli(['--help'], standalone_mode=False)"
    assert loaded(code, ("torch", "pandas", "rich", "pydantic"), tmp_path) == "[]"


def test_a_plan_does_not_wait_for_what_draws(tmp_path: Path) -> None:
    code = "from bench.cli import cli; cli(['plan', 'quickstart'], standalone_mode=False)"
    assert loaded(code, ("torch", "matplotlib", "seaborn"), tmp_path) == "['torch']"


def test_a_run_imports_before_its_first_cell_what_that_needs_and_no_more(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    header = bytes.fromhex("00000803 00002710 0000001c 0000001c")  # 10,000 images of 28 x 28
    (raw / "t10k-images-idx3-ubyte").write_bytes(header + bytes(10_000 * 784))
    (raw / "t10k-labels-idx1-ubyte").write_bytes(bytes.fromhex("00000801 00002710") + bytes(10_000))
    suite = (
        'schema = 1\nname = "s"\n[data]\nname = "mnist"\nlimit = 8\n[[models]]\nname = "lenet"\n'
        'weights = "mnist"\n[[attacks]]\nname = "fgsm"\nnorm = "linf"\neps = [0.1]\n'
    )
    (tmp_path / "s.toml").write_text(suite, encoding="utf-8")
    code = (
        "import contextlib, click\nfrom bench import session\nfrom bench.cli import cli\n"
        "def stopped(*_): raise KeyboardInterrupt\n"
        "session.Session.shard = stopped\n"
        "words = ['run', 's.toml', '--data-dir', '.', '--device', 'cpu', '--out', 'out']\n"
        "with contextlib.suppress(click.exceptions.Abort):\n"
        "    cli(words, standalone_mode=False)"
    )
    late = ("matplotlib", "seaborn", "scipy", "sklearn", "torchvision", "torchattacks", "jinja2")
    assert loaded(code, late, tmp_path) == "[]"


def test_a_run_of_a_librarys_attack_imports_neither_requests_nor_robustbench(
    tmp_path: Path,
) -> None:
    suite = (
        'schema = 1\nname = "s"\n[data]\nname = "digits"\nlimit = 8\n[[models]]\nname = "lenet"\n'
        'weights = "digits"\n[[attacks]]\nname = "torchattacks:FGSM"\nnorm = "linf"\neps = [0.1]\n'
    )
    (tmp_path / "s.toml").write_text(suite, encoding="utf-8")
    code = "import bench\nassert bench.run('s.toml', out='out').table['status'].item() == 'ok'"
    assert loaded(code, ("requests", "robustbench"), tmp_path) == "[]"


def test_every_folder_of_the_package_travels_in_the_wheel() -> None:
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {path.parent for path in ROOT.rglob("__init__.py")}
    here = {".".join(path.relative_to(ROOT.parent).parts) for path in folders}
    assert set(project["tool"]["setuptools"]["packages"]) == here | {"bench.suites"}
