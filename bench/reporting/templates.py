"""Templates -> pages: each one file that carries its own style and script and asks nothing of the
network.

Whatever came from a file (labels, reasons, commands) is escaped by the template engine. Behind
that stands the page's own content security policy: it lets no request out, and runs no script but
the one whose hash it names, so that a label that got through would still do nothing.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, context: dict[str, Any]) -> bytes:
    """The page that `template` makes of `context`; the same input gives the same bytes."""
    script, style = _text("page.js"), _text("page.css")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    page = environment.get_template(template).render(
        **context,
        style=markupsafe.Markup(style),
        script=markupsafe.Markup(script),
        script_hash=_hash(script),
    )
    return page.encode()


def _text(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """As a content security policy names a script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
