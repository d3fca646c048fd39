"""Rules for every file of the package: imports, names, randomness, errors, what is loaded when."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import bench
from bench.core import registry

ROOT = Path(bench.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
TREES = {path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
PACKAGES = {
    "analysis", "attacks", "cli", "contract_tests", "core", "datasets", "engine",
    "evaluation", "execution", "models",
    "pytest_plugin", "reporting", "storage", "suite", "workflows",
}  # fmt: skip
HOMES = (
    "attacks/", "models/", "datasets/", "workflows/training/", "workflows/speed/",
    "workflows/gpu_check/",
)  # fmt: skip
"""Where the built-in attacks, models and data sets may be named."""


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


def test_the_package_holds_its_fifteen_packages_and_three_modules() -> None:
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "__main__.py", "api.py"}
    assert {path.parts[0] for path in TREES if len(path.parts) > 1} == PACKAGES
    without = {path.parent for path in TREES} - {p.parent for p in TREES if p.name == "__init__.py"}
    assert not without


def test_no_module_of_the_harness_knows_the_name_of_an_attack_a_model_or_a_data_set() -> None:
    kinds = ("attacks", "models", "datasets")
    known = {name.rstrip(":") for kind in kinds for name in registry.names(kind)}
    # `evaluate` has a default attack, as the design says; the manifest records library versions.
    libraries = {"torchattacks", "foolbox", "art", "pyautoattack", "torchvision", "timm"}
    excused = {
        "api.py": {"pgd"}, "storage/environment.py": libraries,
        "core/source_hash.py": {"torchvision"},
    }  # fmt: skip
    helpers = {
        "bench.attacks.common", "bench.attacks.objects", "bench.models.maite_models",
        "bench.models.preprocessing", "bench.models.query_only",
        "bench.models.fingerprint", "bench.models.published_weights", "bench.datasets.inputs",
        "bench.datasets.as_data", "bench.datasets.in_memory",
        "bench.models.outputs", "bench.models.wrapping",
        "bench.datasets.image_files", "bench.datasets.prefetch", "bench.datasets.imagenet_classes",
    }  # fmt: skip
    offenders = {}
    for path, tree in TREES.items():
        if path.as_posix().startswith(HOMES):
            continue
        named = {text for text in strings(tree) if text in known}
        deep = {
            name for name in imported(tree)
            if name.count(".") > 1 and name.split(".")[1] in kinds and name not in helpers
            and not name.startswith(("bench.models.preflight", "bench.models.serialized"))
        }  # fmt: skip
        if offences := deep | named - excused.get(path.as_posix(), set()):
            offenders[path.as_posix()] = offences
    assert offenders == {}


def test_nothing_imports_what_a_library_drags_in() -> None:
    tops = {
        path: {name.partition(".")[0] for name in imported(tree)} for path, tree in TREES.items()
    }
    assert [path for path, top in tops.items() if top & {"requests", "robustbench"}] == []


def test_every_draw_names_its_generator() -> None:
    drawing = {"rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like",
               "bernoulli", "multinomial", "normal", "normal_", "uniform_", "random_"}  # fmt: skip
    offenders = []
    for path, tree in TREES.items():
        for node in ast.walk(tree) if path.name != "rng.py" else ():
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                keyed = ast.unparse(node.func.value) in ("noise", "rng")
                given = any(keyword.arg == "generator" for keyword in node.keywords)
                if node.func.attr in drawing and not keyed and not given:
                    offenders.append(f"{path}:{node.lineno}: {ast.unparse(node)}")
    assert offenders == []


def public_functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Functions and methods that are public by their names and those of their classes."""
    for node in tree.body:
        bodies = node.body if isinstance(node, ast.ClassDef) else [node]
        if getattr(node, "name", "_").startswith("_"):
            continue
        for each in bodies:
            if isinstance(each, ast.FunctionDef) and not each.name.startswith("_"):
                yield each


def missing_sections(function: ast.FunctionDef) -> list[str]:
    """Google sections that the docstring of a public function lacks."""
    text = ast.get_docstring(function) or ""
    decorators = " ".join(ast.unparse(each) for each in function.decorator_list)
    if any(word in decorators for word in ("command", "option", "argument", "property", "fixture")):
        return [] if text else ["docstring"]  # help of the command line; attributes
    given = function.args
    names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    names += [each.arg for each in (given.vararg, given.kwarg) if each is not None]
    described = [name for name in names if name not in ("self", "cls")]
    missing = ["Args"] if described and "Args:" not in text else []
    missing += [name for name in described if not re.search(rf"\b{name}\b.*:", text)]
    returns = ast.unparse(function.returns) if function.returns else "None"
    if returns not in ("None", "NoReturn") and not re.search("(Returns|Yields):", text):
        missing.append("Returns")
    return missing


def test_every_public_function_documents_its_arguments_and_its_result() -> None:
    offenders = [
        f"{path}:{function.lineno} {function.name}: {', '.join(missing)}"
        for path, tree in TREES.items()
        for function in public_functions(tree)
        if not function.name.startswith("test_")  # whose name is a sentence
        if (missing := missing_sections(function))
    ]
    assert offenders == []


def catches_all(kind: ast.expr | None) -> bool:
    names = [n.id for n in ast.walk(kind) if isinstance(n, ast.Name)] if kind else ["Exception"]
    return not {"Exception", "BaseException"}.isdisjoint(names)


def test_no_broad_except_hides_a_bug_outside_foreign_code() -> None:
    broad = [
        path.as_posix()
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and catches_all(node.type)
    ]
    # Where foreign code, data or devices may raise anything: a model or attack that is probed,
    # traced, recorded, fingerprinted, copied or asked again; a factory, file, module or checkpoint;
    # a cell; a worker process; a library's reader, attack or tracker; Ray; a training's progress.
    assert sorted(broad) == [
        "core/checkpoint.py", "core/errors.py", "core/extensions.py", "core/foreign.py",
        "core/registry.py", "core/registry.py", "datasets/data_files.py", "datasets/mnist.py",
        "engine/acceleration/accelerate.py", "engine/acceleration/accelerate.py",
        "engine/acceleration/accelerate.py", "engine/cuda_graphs.py", "engine/step_evaluator.py",
        "engine/tracing.py", "evaluation/adaptation_check.py",
        "evaluation/audit/gradient_check.py",
        "evaluation/audit/probe_models.py", "evaluation/certification/network.py",
        "evaluation/containment.py", "evaluation/suite_models.py",
        "evaluation/verify.py", "execution/backends/process.py", "execution/backends/ray.py",
        "execution/backends/worker.py", "execution/backends/worker.py",
        "execution/backends/worker.py", "execution/backends/worker.py",
        "execution/resume_check.py", "models/adapters/robustbench.py", "models/fingerprint.py",
        "models/fingerprint.py",
        "models/fingerprint.py", "models/preflight/checks.py", "models/preflight/logit_checks.py",
        "models/preflight/prepare.py", "models/preflight/preprocessing.py",
        "models/preflight/recall.py", "models/preflight/repetition.py",
        "models/serialized/__init__.py",
        "reporting/formats/registered.py", "reporting/trackers/__init__.py",
        "workflows/gpu_check/check.py", "workflows/speed/race.py", "workflows/training/resume.py",
    ]  # fmt: skip


def names_interrupt(node: ast.AST) -> bool:
    return any(isinstance(n, ast.Name) and n.id == "KeyboardInterrupt" for n in ast.walk(node))


def test_code_that_catches_every_exception_lets_ctrl_c_end_the_run() -> None:
    # A worker process ignores Ctrl-C: its parent ends it.
    ignoring = {"execution/backends/process.py"}
    deaf = [
        f"{path}:{handler.lineno}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Try)
        for at, handler in enumerate(node.handlers)
        if handler.type is None or "BaseException" in ast.unparse(handler.type)
        if not any(names_interrupt(each) for each in node.handlers[: at + 1])
        if path.as_posix() not in ignoring
    ]
    assert deaf == []


def test_the_docstring_of_a_package_names_its_modules() -> None:
    # Of these the docstring says what every file is, and of attacks, models and data sets alike.
    alike = {
        "attacks/adapters", "cli", "contract_tests", "datasets/adapters", "engine/threats",
        "models/adapters", "reporting/plots", "reporting/report", "reporting/trackers",
        "workflows/speed/competitors",
    }  # fmt: skip
    unnamed = []
    for path, tree in TREES.items():
        assigned = {ast.unparse(each.targets[0]) for each in tree.body if type(each) is ast.Assign}
        folder = path.parent.as_posix()
        if path.name.startswith("__") or folder in {".", *alike}:
            continue
        text = ast.get_docstring(TREES[path.parent / "__init__.py"]) or ""
        named = re.search(rf"`{path.stem}`", text) is not None
        if not named and assigned.isdisjoint({"ATTACK", "MODEL", "DATASET"}):
            unnamed.append(path.as_posix())
    assert unnamed == []


def docstrings(tree: ast.AST) -> Iterator[str]:
    """Every string that stands alone: of modules, classes, functions and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield str(node.value.value)


def test_what_docstrings_refer_to_in_a_module_is_there() -> None:
    suffixes = ("py", "toml", "tex", "md", "csv", "json", "html", "pt")
    words: dict[str, set[str]] = {}
    for path in FILES:
        words.setdefault(path.stem, set()).update(re.findall(r"\w+", path.read_text("utf-8")))
    absent = [
        f"{path}: `{module}.{name}`"
        for path, tree in TREES.items()
        for text in docstrings(tree)
        for module, name in re.findall(r"`([a-z]\w+)\.(\w+)`", text)
        if module in words and name not in words[module] and name not in suffixes
    ]
    assert absent == []


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


def test_no_list_waits_for_torch(tmp_path: Path) -> None:
    code = (
        "from bench.cli import cli\n"
        "for kind in ('attacks', 'models', 'datasets', 'suites', 'recipes', 'trackers'):\n"
        "    cli(['list', kind], standalone_mode=False)"
    )
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
        "import contextlib, click\nfrom bench.evaluation import evaluator\n"
        "from bench.cli import cli\n"
        "def stopped(*_): raise KeyboardInterrupt\n"
        "evaluator.Evaluator.evaluate_chunk = stopped\n"
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
