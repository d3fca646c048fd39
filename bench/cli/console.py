"""Print text literally.

Labels, reasons, paths and messages of exceptions may contain what rich reads as markup ("[/x]") or
as an emoji (":x:"), and control characters that a terminal would execute.
"""

from typing import Any

from rich.console import Console
from rich.text import Text

from bench.core.sanitize import escape_controls

UNLIMITED = 100_000
"""Columns of what is no terminal: a file or a log wraps nothing."""


class Plain(Console):
    """A rich console without markup, emoji and control characters."""

    def render_str(self, text: str, **how: Any) -> Text:
        """Render a string without markup.

        Args:
            text: The string.
            how: Further arguments of rich's method.

        Returns:
            The text with its control characters escaped.
        """
        return super().render_str(escape_controls(text), **{**how, "markup": False, "emoji": False})


def console(stderr: bool = False, width: int | None = None) -> Plain:
    """Create a console that prints text literally.

    Args:
        stderr: Print on stderr.
        width: Columns; by default the terminal's, and no limit where the output is none.

    Returns:
        The console.
    """
    screen = Plain(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)
    if width is None and not screen.is_terminal:
        screen.width = UNLIMITED
    return screen
