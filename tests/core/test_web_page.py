"""A web page in place of weights is named as what it is; every other file is left to its reader."""

from pathlib import Path

import pytest
import torch

from bench.core import checkpoint
from bench.core.errors import SuiteError
from bench.core.web_page import refuse_web_page

DRIVE = """<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title>
<meta http-equiv="content-type" content="text/html; charset=utf-8"/></head></html>"""


def refusal(path: Path) -> str:
    with pytest.raises(SuiteError) as caught:
        checkpoint.read_tensors("model 'net'", path)
    (only,) = caught.value.problems
    return only


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_page_of_google_drive_is_named_by_its_title(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_text(DRIVE, encoding="utf-8")
    assert refusal(path) == (
        f"model 'net': {path} is a web page (\"Google Drive - Virus scan warning\") that was "
        "downloaded in place of the weights; delete it and get the file from where it came from"
    )


@pytest.mark.parametrize(
    "page",
    [
        "\ufeff\n\n<HTML><body>no</body></HTML>",
        "<!-- saved -->\n<html lang='en'>",
        '<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>Access Denied</Message>',
    ],
)
def test_a_page_without_a_title_is_recognised(tmp_path: Path, page: str) -> None:
    (tmp_path / "w.pt").write_text(page, encoding="utf-8")
    assert "is a web page" in refusal(tmp_path / "w.pt")


def test_a_title_cannot_control_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_text("<html><title>a\x1b[31mb &lt;</title>", encoding="utf-8")
    assert '("a\\x1b[31mb <")' in refusal(tmp_path / "w.pt")


@pytest.mark.parametrize("content", [b"", b"\x80\x02}q\x00.", b"version https://git-lfs", b"<net>"])
def test_other_files_are_left_to_the_reader_of_weights(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(content)
    refuse_web_page("model 'net'", path)
    refuse_web_page("model 'net'", tmp_path / "absent.pt")


def test_weights_are_read_as_before(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "w.pt")
    assert torch.equal(checkpoint.read_tensors("w", tmp_path / "w.pt")["w"], torch.ones(2))
