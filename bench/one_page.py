"""Puts several benches into one HTML page that needs no other file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

Table = tuple[Sequence[str], Sequence[Sequence[str]]]

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
{{ style | safe }}
<style>
h1.title { font-size: 1.7rem; font-weight: 650; color: var(--ink); margin: .3rem 0 1rem; }
nav a { margin-right: 1.2rem; color: inherit; }
section { border-top: 3px solid var(--line); margin-top: 3.5rem; padding-top: 1.5rem; }
table.first { margin: 1.2rem 0; }
table.first td, table.first th { text-align: left; white-space: normal; vertical-align: top; }
</style>
</head>
<body>
<h1 class="title">{{ title }}</h1>
{% for line in lines %}
<p class="said">{{ line }}</p>
{% endfor %}
{% for head, rows in tables if rows %}
<div class="wide"><table class="first">
<thead><tr>{% for cell in head %}<th>{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endfor %}
{% if sections %}
<nav><p>{% for name, _ in sections %}<a href="#{{ name }}">{{ name }}</a>{% endfor %}</p></nav>
{% endif %}
{% for name, body in sections %}
<section id="{{ name }}">
{{ body | safe }}
</section>
{% endfor %}
</body>
</html>
"""


def write(
    path: Path, title: str, lines: Sequence[str], tables: Sequence[Table], benches: Mapping[str, Mapping[str, Any]]
) -> Path:
    """Writes the page.

    Args:
        path: the file to write.
        title: the page's heading.
        lines: sentences below it.
        tables: head and rows of each table that comes before the benches.
        benches: what `bench.json` holds, by a name that can stand in an address.

    Raises:
        KftError: if what draws the plots is not installed.
    """
    from kft import rundir
    from kft.comparison.bench import page
    from kft.errors import KftError

    try:
        import jinja2

        pages = {name: page.html(found) for name, found in benches.items()}
    except ImportError as error:
        raise KftError(f'No page was written: {error.name} is not installed. Type: pip install -e ".[bench]"') from None
    style = _between(
        (files("kft") / "comparison" / "bench" / "bench.html").read_text(encoding="utf8"), "<style>", "</style>"
    )
    text = (
        jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        .from_string(TEMPLATE)
        .render(
            title=title,
            lines=lines,
            tables=tables,
            style=style,
            sections=[(name, own_names(_body(text), name)) for name, text in pages.items()],
        )
    )
    rundir.write_text(path, text)
    return path


def own_names(body: str, prefix: str) -> str:
    """Returns the body of a page with a prefix before the names of its elements, so that those of two pages differ."""
    return re.sub(r'(id="|url\(#|href="#)', lambda match: f"{match[1]}{prefix}-", body)


def _between(text: str, first: str, last: str) -> str:
    start = text.index(first)
    return text[start : text.index(last, start) + len(last)]


def _body(text: str) -> str:
    return _between(text, "<body>", "</body>").removeprefix("<body>").removesuffix("</body>")
