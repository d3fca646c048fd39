"""Recognise a web page that was downloaded in place of a file.

Google Drive, login pages and proxies answer with HTML and status 200, which a downloader stores
under the name of the file that was asked for.
"""

import html
import re
from pathlib import Path

from bench.core.errors import SuiteError
from bench.core.sanitize import escape_controls

READ = 4096
"""First bytes of a file that are looked at."""
LONGEST = 60
"""Most characters of a page's title that are quoted."""
_PAGE = re.compile(
    rb"\s*(<!--.*?-->\s*|<\?xml[^>]*>\s*)*<(!doctype\s+html|html|head|body|error)\b",
    re.DOTALL | re.IGNORECASE,
)
_TITLE = re.compile(rb"<(title|message)[^>]*>(.*?)</\1", re.DOTALL | re.IGNORECASE)


def refuse_web_page(where: str, path: Path, source: str = "where it came from") -> None:
    """Raise if a file is a web page, whatever its suffix says.

    Args:
        where: Name of the setting or file, with which error messages begin.
        path: File that should hold weights.
        source: Where the weights can be had, for the message.

    Raises:
        SuiteError: It is one.
    """
    try:
        with path.open("rb") as file:
            start = file.read(READ).removeprefix(b"\xef\xbb\xbf")
    except OSError:
        return  # the reader of the weights reports it
    if not _PAGE.match(start):
        return
    found = _TITLE.search(start)
    title = html.unescape(found[2].decode("utf-8", "replace")) if found else ""
    title = escape_controls(" ".join(title.split()))[:LONGEST]
    quoted = f' ("{title}")' if title else ""
    raise SuiteError(
        f"{where}: {path} is a web page{quoted} that was downloaded in place of the weights; "
        f"delete it and get the file from {source}"
    )
