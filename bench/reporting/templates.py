"""Render the HTML and Markdown pages of the package from one set of templates.

The folder `templates/` holds every template, their macros, one style sheet and one script. A page
is a single file: it carries its style and script and requests nothing from the network. Both
environments escape every value from a file (labels, reasons, commands) unless it is marked as
finished markup. In addition, the content security policy of each page forbids requests and every
script but the page's own, which it names by hash, so an unescaped label could not run either.
"""

import base64
import functools
import hashlib
import itertools
import re
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from bench.reporting.formats import markdown
from bench.reporting.formats.numbers import format_text
from bench.reporting.formats.tables import Bold
from bench.reporting.report.views import View
from bench.reporting.sentences import COUNTING_RULES, SENTENCES

TEMPLATES = Path(__file__).parent / "templates"
CONTENTS = "<!-- contents -->"
"""Where a page lists its sections."""
_INTERVAL = re.compile(r"\[([\d.]+), ([\d.]+)\]")
"""An interval, which no line may end within."""


def render_html(template: str, context: dict[str, Any]) -> bytes:
    """Render an HTML page; the same input gives the same bytes.

    Args:
        template: File name in `templates/`.
        context: Variables of the template; `title`, `summary` and, to replace the default rules,
            `counting` are those of the shared frame.

    Returns:
        The page in UTF-8.
    """
    page = _environment(is_html=True).get_template(template).render(context)
    links, number = [], itertools.count(1)

    def mark(heading: re.Match[str]) -> str:
        name = f"section-{next(number)}"
        links.append(f'<a href="#{name}">{heading[1]}</a>')
        return f'<h2 id="{name}">{heading[1]}</h2>'

    if CONTENTS in page:
        page = re.sub("<h2>(.*?)</h2>", mark, page).replace(CONTENTS, "\n".join(links))
    return page.encode()


def render_markdown(template: str, context: dict[str, Any]) -> bytes:
    """Render a Markdown page; the same input gives the same bytes.

    Args:
        template: File name in `templates/`.
        context: Variables of the template.

    Returns:
        The page in UTF-8.
    """
    page = _environment(is_html=False).get_template(template).render(context)
    if CONTENTS in page:
        titles = re.findall("^## (.*)$", page, re.MULTILINE)
        # GitHub derives the anchor of a heading from its text.
        links = [f"[{title}](#{title.lower().replace(' ', '-')})" for title in titles]
        page = page.replace(CONTENTS, " · ".join(links), 1)
    return page.encode()


def hash_script(script: str) -> str:
    """Compute the hash by which a content security policy allows a script.

    Args:
        script: Text of the script element.

    Returns:
        The source expression "sha256-...".
    """
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


@functools.cache
def _environment(is_html: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=is_html,
        finalize=None if is_html else markdown.escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["sentences"] = SENTENCES
    environment.filters["unbroken"] = lambda text: _INTERVAL.sub(
        "[\\1,\N{NO-BREAK SPACE}\\2]", text
    )
    environment.tests["bold"] = lambda text: isinstance(text, Bold)
    environment.globals["counting"] = COUNTING_RULES
    if is_html:
        script = _read("page.js")
        environment.globals["style"] = markupsafe.Markup(_read("page.css"))
        environment.globals["script"] = markupsafe.Markup(script)
        environment.globals["script_hash"] = hash_script(script)
    else:
        environment.filters["table"] = _render_table
        environment.filters["code_block"] = markdown.format_code_block
        # Inside <summary> GitHub reads HTML, not Markdown.
        environment.filters["html"] = lambda value: markdown.MarkdownText(
            markupsafe.escape(format_text(value))
        )
    return environment


def _read(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _render_table(view: View) -> markdown.MarkdownText:
    """Render a view as a Markdown table followed by its footnotes."""
    body = markdown.render_table(view.frame, view.caption)
    notes = [f"- [{k}] {markdown.escape(note)}" for k, note in enumerate(view.notes, 1)]
    return markdown.MarkdownText("\n".join([body, "", *notes] if notes else [body]))
