"""A colon separates a file from the name in it; a colon in the name of a folder does not."""

from pathlib import Path

import pytest
import torch
from torch import nn

import bench
from bench.core import registry
from bench.core.errors import SuiteError
from bench.workflows.leaderboard.model_card import read_card

CODE = """
from dataclasses import replace
from torch import nn
from bench.attacks.fgsm import ATTACK

mine = replace(ATTACK, summary="mine")

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
"""
CARD = """
schema = 1
name = "mine"
source = "this test"
training = "none"
data = "none"
licence = "none"
contact = "nobody"

[model]
"""
SUITE = """
schema = 1
name = "colons"
title = "Folders with colons"

[data]
name = "digits"
limit = 4

[[models]]
name = "a:b/code.py:net"
label = "code"

[[models]]
name = "a:b/net.pt2"
label = "program"
trust = true

[[attacks]]
name = "a:b/code.py:mine"
norm = "linf"
eps = [0.1]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a colon in its name, with code and a program in it."""
    folder = tmp_path / "a:b"
    folder.mkdir()
    (folder / "code.py").write_text(CODE)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).eval()
    batch = {"input": {0: torch.export.Dim("batch")}}
    program = torch.export.export(net, (torch.zeros(2, 1, 28, 28),), dynamic_shapes=batch)
    with (folder / "net.pt2").open("wb") as file:
        torch.export.save(program, file)
    return folder


@pytest.mark.parametrize("entry", ['name = "net.pt2"\ntrust = true', 'name = "code.py:net"'])
def test_a_card_in_such_a_folder_names_the_model_beside_it(folder: Path, entry: str) -> None:
    (folder / "card.toml").write_text(CARD + entry)
    name = read_card(folder / "card.toml").model.name
    assert name.startswith(f"{folder}/")
    net = registry.find("models", name)()
    assert net(torch.zeros(3, 1, 28, 28)).shape == (3, 10)


def test_a_suite_runs_models_and_attacks_of_such_a_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "suite.toml").write_text(SUITE)
    table = bench.run(tmp_path / "suite.toml", out=tmp_path / "run", device="cpu").table
    assert table["status"].tolist() == ["ok", "ok"]
    assert set(table["implementation"]) == {"a:b/code.py"}


@pytest.mark.parametrize("kind", ["attacks", "models", "datasets"])
@pytest.mark.parametrize("name", ["code.py", "a:b/code.py", "a:b/code.py:"])
def test_a_file_without_the_name_of_what_is_in_it_is_refused(kind: str, name: str) -> None:
    file = name.rstrip(":")
    with pytest.raises(SuiteError) as refused:
        registry.find(kind, name)
    assert str(refused.value) == (
        f"'{name}': expected a file and the name of what is in it, got no name; write '{file}:NAME'"
    )


def test_a_librarys_name_that_ends_like_a_file_is_no_program() -> None:
    assert registry.built_in("models", "huggingface:somebody/model.pt2")
    assert not registry.built_in("models", "some:where/model.pt2")
