"""Find every format of `bench publish`: bench's own and those of installed packages.

Other packages offer formats as entry points of the group `bench.formats`: an `ExportFormat`, which
encodes the rows of all cells, or a `TableFormat`, which renders the tables of a publication.
"""

from collections.abc import Sequence

import pandas as pd

from bench.core import extensions
from bench.core.errors import SuiteError, describe
from bench.reporting.formats import exports, latex, markdown
from bench.reporting.formats.exports import ExportFormat
from bench.reporting.formats.tables import PaperTable, TableFormat
from bench.suite.catalog import CatalogEntry

BUILT_IN: dict[str, ExportFormat | TableFormat] = {
    "csv": exports.CSV,
    "parquet": exports.PARQUET,
    "latex": latex.FORMAT,
    "markdown": markdown.FORMAT,
}


def discover_formats() -> extensions.Discovery:
    """Find the formats that installed packages offer, without importing them.

    Returns:
        The usable ones, and a sentence for each of the others.
    """
    return extensions.discover_extensions("formats", BUILT_IN)


def load_extension(extension: extensions.Extension) -> ExportFormat | TableFormat:
    """Import the format of an installed package.

    Args:
        extension: The extension.

    Returns:
        The format.

    Raises:
        SuiteError: It cannot be imported, is no format, or writes files of a suffix that bench
            itself writes.
    """
    found = extension.load()
    if not isinstance(found, ExportFormat | TableFormat):
        raise SuiteError(
            f"{extension.title}: expected {extension.target} to be an ExportFormat or a "
            f"TableFormat of bench.reporting.formats, got {type(found).__name__}"
        )
    if found.suffix in {each.suffix for each in BUILT_IN.values()}:
        raise SuiteError(
            f"{extension.title}: bench itself writes files that end in '{found.suffix}'; it needs "
            "another suffix"
        )
    return found


def list_formats() -> tuple[list[CatalogEntry], list[str]]:
    """List the formats of bench and of other packages.

    Returns:
        Entries, and a sentence for each extension that cannot be used.
    """
    entries = [
        CatalogEntry(name, _summarize(found), f"*{found.suffix}")
        for name, found in BUILT_IN.items()
    ]
    discovered = discover_formats()
    problems = [*discovered.problems]
    for name, extension in discovered.usable.items():
        try:
            found = load_extension(extension)
        except SuiteError as error:
            problems += error.problems
        else:
            entry = CatalogEntry(name, _summarize(found), f"*{found.suffix}", extension.origin)
            entries.append(entry)
    return entries, problems


def _summarize(found: ExportFormat | TableFormat) -> str:
    """Return the first line of the documentation of a format's function."""
    function = found.content if isinstance(found, ExportFormat) else found.pages
    return (function.__doc__ or "").strip().partition("\n")[0]


def render_files(
    name: str, found: ExportFormat | TableFormat, tables: Sequence[PaperTable], cells: pd.DataFrame
) -> dict[str, bytes]:
    """Render the files of a publication in one format.

    Args:
        name: What sentences call the format.
        found: The format.
        tables: The tables of the publication.
        cells: Every cell of every run.

    Returns:
        Content by file name.

    Raises:
        SuiteError: The format of another package failed.
    """
    try:
        if isinstance(found, ExportFormat):
            return {f"results{found.suffix}": found.content(cells)}
        return {name: text.encode() for name, text in found.pages(tables).items()}
    except Exception as error:  # code of another package
        if found in BUILT_IN.values():
            raise
        raise SuiteError(
            f"{name}: {describe(error)}; uninstall it to publish without it"
        ) from error
