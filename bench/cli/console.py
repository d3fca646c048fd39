"""How the command line prints: whatever it is given is text, and none of it is obeyed.

Labels, reasons, paths and what strangers' exceptions say may hold what rich takes for markup
("[/x]"), for an emoji (":x:"), or what a terminal takes for an order.
"""

from typing import Any

from rich.console import Console
from rich.text import Text

from bench.core.sanitize import escape_controls


class Plain(Console):
    """rich's console, to which every text is plain."""

    def render_str(self, text: str, **how: Any) -> Text:
        """The text as it is; what a terminal would obey is spelled out."""
        return super().render_str(escape_controls(text), **{**how, "markup": False, "emoji": False})


def console(stderr: bool = False, width: int | None = None) -> Plain:
    """A console that prints text as it is, in the styles that are asked for."""
    return Plain(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)
