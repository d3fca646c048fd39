"""Files made to harm whoever opens them: bombs, escape sequences, names that are paths."""

import re
import struct
import zipfile
import zlib
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from bench.cli import cli
from bench.core import checkpoint
from bench.core.errors import SuiteError
from bench.datasets import image_files
from bench.storage import records, schema
from bench.storage.schema import Piece
from bench.suite.reader import parse_suite

SUITE = (
    'schema = 1\nname = "{name}"\n[data]\nname = "digits"\n[[models]]\nname = "lenet"\n'
    'label = "{label}"\nweights = "digits"\n[[attacks]]\nname = "fgsm"\nnorm = "linf"\n'
    "eps = [0.1]\n"
)


def png(path: Path, width: int, height: int) -> Path:
    """A PNG that claims so many grey pixels and holds none of them."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


@pytest.mark.parametrize("sides", [(60_000, 60_000), (11_000, 11_000), (2_000_000, 1)])
def test_an_image_that_would_fill_the_memory_is_refused(
    tmp_path: Path, sides: tuple[int, int]
) -> None:
    with pytest.raises(SuiteError, match=r"bomb\.png is no readable image"):
        image_files.decode_image(png(tmp_path / "bomb.png", *sides), 256, 224)


def test_postscript_that_calls_itself_a_picture_is_not_handed_to_a_program(tmp_path: Path) -> None:
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "x.png").write_bytes(script)
    with Image.open(tmp_path / "x.png") as image:
        assert image.format == "EPS"
    with pytest.raises(SuiteError, match=r"x\.png is no readable image: cannot identify"):
        image_files.decode_image(tmp_path / "x.png", 8, 8)


def test_a_strip_within_the_limits_is_read(tmp_path: Path) -> None:
    Image.new("L", (3000, 10), 255).save(tmp_path / "strip.png")
    assert image_files.decode_image(tmp_path / "strip.png", 16, 16).shape == (3, 16, 16)


def test_a_checkpoint_that_unpacks_to_more_than_it_is_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(2_000_000)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))
    assert checkpoint.read_tensors("m", tmp_path / "plain.pt").keys() == {"w"}
    with pytest.raises(SuiteError, match="unpacks to 8"):
        checkpoint.read_tensors("m", tmp_path / "bomb.pt")


def test_a_safetensors_header_that_claims_a_million_million_numbers_is_refused(
    tmp_path: Path,
) -> None:
    header = b'{"w":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 16)
    with pytest.raises(SuiteError, match="damaged or no checkpoint"):
        checkpoint.read_tensors("m", tmp_path / "w.safetensors")


def test_records_that_unpack_to_more_than_bench_writes_are_refused() -> None:
    zeros = pa.table({"example": pa.array(pd.Series(0, index=range(schema.MAX_ROWS + 1)))})
    sink = pa.BufferOutputStream()
    pq.write_table(zeros, sink)
    held = pq.read_metadata(pa.BufferReader(sink.getvalue()))
    assert held.serialized_size < 10_000
    with pytest.raises(ValueError, match="more than bench ever writes"):
        schema.check_size(held)


def test_a_label_that_a_terminal_would_obey_is_refused() -> None:
    text = SUITE.format(name="s", label=r"net\u001B[2J")
    with pytest.raises(SuiteError, match=r"models\[0\]\.label: expected text without control"):
        parse_suite(text, "s.toml", Path())


def test_a_key_of_a_megabyte_makes_no_message_of_a_megabyte() -> None:
    text = f'{SUITE.format(name="s", label="net")}[{"a" * 2**20}]\nb = "\\u001B"\n'
    with pytest.raises(SuiteError, match="expected text without control characters") as caught:
        parse_suite(text, "s.toml", Path())
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("number", [2**63, -(10**400)])
def test_a_whole_number_that_no_float_holds_is_refused(number: int) -> None:
    text = f"{SUITE.format(name='s', label='net')}vary = {{ restarts = [1, {number}] }}\n"
    with pytest.raises(SuiteError, match=r"attacks\[0\]\.vary\.restarts\[1\]: expected a whole"):
        parse_suite(text, "s.toml", Path())


def test_a_message_spells_out_what_a_terminal_would_obey() -> None:
    told = CliRunner().invoke(cli, ["plan", "no\x1b[2J.toml"])
    assert told.exit_code == 2
    assert "\x1b" not in told.output
    assert r"no\x1b[2J.toml" in told.output


@pytest.mark.parametrize("name", ["..", "../x", "/tmp/x", "a/b", ".hidden", r"a\u0000b"])
def test_a_suites_name_cannot_leave_the_folder_of_runs(name: str) -> None:
    with pytest.raises(SuiteError, match="name"):
        parse_suite(SUITE.format(name=name, label="net"), "s.toml", Path())


@pytest.mark.parametrize("label", ["../../up", "/etc/passwd", "..", "a/../../b", "CON", "é" * 300])
def test_a_label_becomes_the_name_of_a_file_in_the_folder(label: str) -> None:
    piece = Piece("cell", 0, 1, 1, 0.0, 0.0, 0.0, 1, "cpu")
    name = records.file_stem(label, [piece])
    assert (Path("records") / name).parent == Path("records")
    assert re.fullmatch(r"[a-z0-9-]{1,60}-cell-0000000", name)


def test_a_letter_beyond_ascii_is_a_dash_in_the_name_of_records() -> None:
    piece = Piece("cell", 0, 1, 1, 0.0, 0.0, 0.0, 1, "cpu")
    assert records.file_stem("Netz mit größtem ε", [piece]) == "netz-mit-gr-tem-cell-0000000"
