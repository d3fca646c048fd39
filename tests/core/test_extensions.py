"""Attacks, models, data sets, formats and trackers that an installed package offers."""

import json
import subprocess
import sys
from pathlib import Path

import packages
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from bench.analysis import results
from bench.cli import cli
from bench.core import extensions, registry
from bench.core.errors import SuiteError
from bench.suite import plan, reader
from bench.suite.identity import ModelFacts

BRIGHTER = """
from dataclasses import dataclass

from bench import ExternalAttack
from {package}.helper import shift


@dataclass(frozen=True, kw_only=True)
class Params:
    '''No params.'''


def run(model, x, y, threat, params, noise):
    return (x + shift(threat.eps)).clamp(0, 1)


ATTACK = ExternalAttack(
    summary="brighter", source="mine 2026", params=Params, norms=("linf",),
    goals=("untargeted",), needs="labels", run=run,
)
SEVEN = 7
"""
OUTPUT = """
from bench.reporting.formats.exports import ExportFormat
from bench.reporting.trackers import Tracker


def rows(frame):
    '''One JSON object per line.'''
    return frame.to_json(orient="records", lines=True).encode()


def log(run, where):
    '''Write the name of the run to a file.'''
    with open(where, "w") as file:
        file.write(run.name)
    return where


NDJSON = ExportFormat(suffix=".ndjson", content=rows)
SECOND_CSV = ExportFormat(suffix=".csv", content=rows)
TRACKER = Tracker(package="json", install="it is part of Python", log=log)
"""
NET = """
import torch

from bench import Data, Dataset, Model


def build():
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 4, bias=False))
    net[1].weight.data = torch.eye(16)[[0, 2, 8, 10]]
    return net


def load(split, limit, data_dir):
    labels = torch.arange(4)
    images = torch.zeros(4, 1, 4, 4)
    for label, (row, column) in enumerate([(0, 0), (0, 2), (2, 0), (2, 2)]):
        images[label, 0, row, column] = 0.5
    images, labels = images[:limit], labels[:limit]
    return Data(
        name="dots", read=lambda first, last: images[first:last], labels=labels, n=len(labels),
        shape=(1, 4, 4), classes=(), fingerprint=f"dots {len(labels)}",
    )


MODEL = Model(summary="a linear net", source="mine", build=build, shape=(1, 4, 4), classes=4)
DATASET = Dataset(summary="four dots", source="mine", load=load)
"""
SUITE = """
schema = 1
name = "extended"
data = { name = "dots" }
models = [{ name = "linear", weights = "random" }]
attacks = [{ name = "brighter", norm = "linf", eps = [0.1] }]
"""
HELPER = "def shift(eps):\n    return eps\n"


def offer(site: Path, package: str, points: dict[str, dict[str, str]], helper: str = HELPER) -> str:
    """Install a package with everything above; return the name of its distribution."""
    files = {
        f"{package}/__init__.py": "",
        f"{package}/helper.py": helper,
        f"{package}/brighter.py": BRIGHTER.replace("{package}", package),
        f"{package}/broken.py": "import no_such_thing\n",
        f"{package}/net.py": NET,
        f"{package}/output.py": OUTPUT,
    }
    named = {
        f"bench.{kind}": {name: f"{package}.{target}" for name, target in by_name.items()}
        for kind, by_name in points.items()
    }
    packages.install_package(site, package.replace("_", "-"), files, named)
    return package.replace("_", "-")


GOOD = {
    "attacks": {"brighter": "brighter:ATTACK"},
    "models": {"linear": "net:MODEL"},
    "datasets": {"dots": "net:DATASET"},
    "formats": {"ndjson": "output:NDJSON"},
    "trackers": {"file": "output:TRACKER"},
}


def type_(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words], standalone_mode=False)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on Python's path; its modules are forgotten afterwards."""
    before = set(sys.modules)
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    yield folder  # type: ignore[misc]
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_what_a_package_offers_is_run_tracked_and_published(site: Path, tmp_path: Path) -> None:
    owner = offer(site, "mine_whole", GOOD)
    (tmp_path / "s.toml").write_text(SUITE, encoding="utf-8")
    out, log = tmp_path / "out", tmp_path / "log"
    run = type_(
        "run", tmp_path / "s.toml", "--out", out, "--device", "cpu", "--track", f"file:{log}"
    )
    assert run.return_value == 0, run.output
    table = results.read_results(out).table
    assert table["implementation"].tolist() == [owner]
    assert table["n"].tolist() == [4]
    assert log.read_text(encoding="utf-8").startswith("extended-")
    assert type_("publish", out, "-o", tmp_path / "pages").exit_code == 0
    rows = pd.read_json(tmp_path / "pages" / "results.ndjson", lines=True)
    assert rows["attack"].tolist() == ["brighter"]


def test_everything_is_listed_with_its_origin(site: Path) -> None:
    owner = offer(site, "mine_listed", GOOD)
    for kind, by_name in GOOD.items():
        listed = json.loads(type_("list", kind, "--json").stdout)[kind]
        origins = {entry["name"]: entry["origin"] for entry in listed}
        for name in by_name:
            assert origins.pop(name) == f"{owner} 1.0"
        assert set(origins.values()) == {"bench"}
    assert "mine 2026 (from mine-listed 1.0)" in " ".join(type_("list", "attacks").stdout.split())


def test_all_kinds_are_listed_at_once() -> None:
    listed = json.loads(type_("list", "--json").stdout)
    assert list(listed) == [
        "models", "attacks", "datasets", "suites", "recipes", "formats", "trackers"
    ]  # fmt: skip
    assert all(entry["name"] and entry["summary"] for each in listed.values() for entry in each)
    assert "attacks:" in type_("list").stdout.splitlines()


def test_what_cannot_be_used_is_named_and_disturbs_no_other(site: Path) -> None:
    attacks = {
        "brighter": "brighter:ATTACK", "pgd": "brighter:ATTACK", "broken": "broken:ATTACK",
        "seven": "brighter:SEVEN", "a:b": "brighter:ATTACK",
    }  # fmt: skip
    offer(site, "mine_partly", {"attacks": attacks, "formats": {"csv2": "output:SECOND_CSV"}})
    told = type_("list", "attacks").stderr
    for sentence in (
        "attack 'pgd' of mine-partly 1.0 is not used: the name is that of one of bench's own",
        "attack 'a:b' of mine-partly 1.0 is not used: expected a name of letters",
        "attack 'broken' of mine-partly 1.0: mine_partly.broken:ATTACK could not be imported: "
        "ModuleNotFoundError: No module named 'no_such_thing'",
        "attack 'seven' of mine-partly 1.0: expected mine_partly.brighter:SEVEN to be a "
        "bench.Attack record, got int",
    ):
        assert f"warning: {sentence}" in told
    assert registry.find("attacks", "pgd").implementation == "bench"
    assert registry.find("attacks", "brighter").summary == "brighter"
    with pytest.raises(SuiteError, match="could not be imported: ModuleNotFoundError"):
        registry.find("attacks", "broken")
    assert "bench itself writes files that end in '.csv'" in type_("list", "formats").stderr


def test_a_name_that_two_packages_offer_is_neither_ones(site: Path) -> None:
    for package in ("mine_first", "mine_second"):
        offer(site, package, {"attacks": {"brighter": "brighter:ATTACK"}})
    (problem,) = registry.discover("attacks").problems
    assert problem.startswith("attack 'brighter' is not used: mine-first 1.0 and mine-second 1.0")
    with pytest.raises(SuiteError, match="'brighter' is unknown"):
        registry.find("attacks", "brighter")


def identify_cell(site: Path, monkeypatch: pytest.MonkeyPatch, helper: str) -> str:
    """Identity of the suite's cell where the package has this helper."""
    site.mkdir()
    facts = ModelFacts(4, (1, 4, 4), model_fingerprint="a model", data_fingerprint="data")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(site)
        offer(site, "mine_hashed", GOOD, helper)
        suite = reader.parse_suite(SUITE, "s.toml", site)
        (cell,) = plan.plan_task("linear", suite.attacks[0], facts, 0, "independent").cells
    for name in [name for name in sys.modules if name.startswith("mine_hashed")]:
        del sys.modules[name]
    return cell.identity


def test_the_source_of_a_package_belongs_to_the_identity_and_its_comments_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = identify_cell(tmp_path / "a", monkeypatch, HELPER)
    assert identify_cell(tmp_path / "b", monkeypatch, f"# a comment\n{HELPER}") == first
    changed = HELPER.replace("eps\n", "eps * 1.0\n")
    assert identify_cell(tmp_path / "c", monkeypatch, changed) != first


def test_bench_itself_offers_nothing_as_an_extension() -> None:
    offered = {each.distribution for each in extensions._entry_points(tuple(sys.path))}
    assert extensions.OWN not in offered


def test_a_package_runs_the_contract_tests_on_what_it_offers(site: Path) -> None:
    offer(site, "mine_kept", GOOD)
    leaves = {"attacks": {"too_far": "brighter:ATTACK"}}
    offer(site, "mine_bad", leaves, "def shift(eps):\n    return 2 * eps\n")
    words = ["-q", "-p", "no:cacheprovider", "--pyargs", "bench.contract_tests"]
    words += ["-k", "threat_model or fingerprint or extension"]
    code = f"import sys, pytest; sys.path.insert(0, {str(site)!r}); sys.exit(pytest.main({words}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=site, timeout=300
    )
    assert done.returncode == 1, done.stdout + done.stderr
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 2  # each batch size of the attack that leaves its ball
    assert all("threat_model" in line and "too_far" in line for line in failed)
