"""Models in files of their own: a torch.export program (.pt2) or a TorchScript one (.pt, .ts).

Both are data here: what they ask for is looked at before any of it runs, and nothing is unpickled
that could run. Neither needs the code that the model was made with.
"""

import hashlib
import io
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from bench.core.errors import SuiteError, describe

if TYPE_CHECKING:  # names are looked up where nobody waits for torch
    from torch import nn

SUFFIXES = (".pt2", ".ts", ".torchscript", ".pt")
UNPACKED = 64 * 2**20
"""Most bytes that the packed parts of a program may unpack to: its code and lists, no tensors."""


def named(name: str) -> bool:
    """Whether the name of a model is that of a program's file."""
    return ":" not in name and name.endswith(SUFFIXES)


def opened(path: Path) -> "nn.Module":
    """The program at `path` as a module on the CPU that maps images to whatever it gives out.

    Raises: SuiteError if it is damaged, or asks for more than arithmetic.
    """
    from bench.engine.opaque_model import OpaqueModel
    from bench.models.serialized import exported, torchscript

    where = f"program {path}"
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            _refuse_bomb(where, archive)
            if exported.is_one(archive):
                return OpaqueModel(exported.read(archive, where), digest)
            if torchscript.is_one(archive.namelist()):
                return OpaqueModel(torchscript.read(content, where), digest)
    except SuiteError:
        raise
    except Exception as error:  # what a reader trips over in damaged bytes can be anything
        raise SuiteError(f"{where} is damaged or no program ({describe(error)})") from error
    raise SuiteError(
        f"{where}: expected a program of torch.export or TorchScript, got another archive; of a "
        "state_dict name the architecture, and this file as its weights"
    )


def _refuse_bomb(where: str, archive: zipfile.ZipFile) -> None:
    """Raises: SuiteError if the packed parts of an archive unpack to more than code ever takes, or
    if two parts have one name, so that readers could read different ones."""
    parts = archive.infolist()
    packed = sum(part.file_size for part in parts if part.compress_type != zipfile.ZIP_STORED)
    if packed > UNPACKED:
        raise SuiteError(f"{where} unpacks to {packed} bytes, more than a program's code takes")
    if len({part.filename for part in parts}) < len(parts):
        raise SuiteError(f"{where} holds two parts of one name: export it again")
