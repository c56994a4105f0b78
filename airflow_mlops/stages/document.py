"""A small document, written once and rendered as Markdown and as one HTML file that needs nothing else.

Every text is taken for what somebody else has written: it is escaped here, in one place, in both forms. The HTML runs
no script, loads nothing, and says so to the browser.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit


class Link(NamedTuple):
    """A text that leads somewhere, where the address is one of the web; else the text alone."""

    text: str
    href: str | None = None


Cell = str | Link


class Text(NamedTuple):
    """Plain paragraphs; line breaks are kept."""

    text: str


class Bullets(NamedTuple):
    """A list of sentences."""

    items: Sequence[Cell]


class Facts(NamedTuple):
    """Names and what they stand for."""

    rows: Sequence[tuple[str, Cell]]


class Table(NamedTuple):
    """Rows under a head; every column after the first ``words`` ones holds numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    words: int = 1


class Code(NamedTuple):
    """Text as it stands, letter by letter."""

    text: str


class Figure(NamedTuple):
    """A picture as PNG; ``path`` is where it lies beside the document."""

    title: str
    path: str
    png: bytes


class Heading(NamedTuple):
    """A heading inside a section."""

    text: str


class Badge(NamedTuple):
    """A word that says how things stand, and its sentence."""

    word: str
    good: bool | None
    sentence: str = ""


Block = Text | Bullets | Facts | Table | Code | Figure | Heading | Badge


class Section(NamedTuple):
    """A part of a document."""

    title: str
    blocks: Sequence[Block]


class Document(NamedTuple):
    """A title, what stands under it, and sections."""

    title: str
    lead: Sequence[Block]
    sections: Sequence[Section]


def _web(link: Link) -> str | None:
    """The address, where a browser would open it as a page; ``javascript:`` and the like are none."""
    try:
        parts = urlsplit(link.href or "")
    except ValueError:
        return None
    return link.href if parts.scheme in ("http", "https") and parts.netloc and "@" not in parts.netloc else None


# Markdown


def as_markdown(document: Document) -> str:
    """The document as GitHub's Markdown."""
    parts = [f"# {_md(document.title)}", *map(_block_md, document.lead)]
    for section in document.sections:
        parts += [f"## {_md(section.title)}", *map(_block_md, section.blocks)]
    return "\n\n".join(parts) + "\n"


def _md(cell: Cell) -> str:
    if isinstance(cell, Link):
        href = _web(cell)
        if href is None:
            return _md(cell.text)
        # An address in angle brackets may hold anything but these; a pipe would end a table's cell.
        address = re.sub(r"[<>\s\\|]", lambda found: f"%{ord(found[0]):02X}", href)
        return f"[{_md(cell.text)}](<{address}>)"
    line = " ".join(cell.split())
    escaped = re.sub(r"([\\`*_{}\[\]<>#|~!])", r"\\\1", line.replace("&", "&amp;"))
    # At the start of a line these would begin a list, a heading's underline or a quotation.
    return re.sub(r"^([-+=]|\d+[.)](?=\s))", lambda found: f"{found[0][:-1]}\\{found[0][-1]}", escaped)


def _block_md(block: Block) -> str:
    match block:
        case Text(text):
            return "\n\n".join(
                "  \n".join(map(_md, paragraph.splitlines())) for paragraph in re.split(r"\n\s*\n", text.strip())
            )
        case Bullets(items):
            return "\n".join(f"- {_md(item)}" for item in items)
        case Facts(rows):
            return _table_md(("", ""), rows, 2)
        case Table(head, rows, words):
            return _table_md(head, rows, words)
        case Code(text):
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
            return f"{fence}yaml\n{text.rstrip()}\n{fence}"
        case Figure(title, path, _):
            return f"![{_md(title)}]({path})"
        case Heading(text):
            return f"### {_md(text)}"
        case Badge(word, _, sentence):
            return f"**{_md(word)}** {_md(sentence)}".strip()


def _table_md(head: Sequence[str], rows: Sequence[Sequence[Cell]], words: int) -> str:
    lines = [[_md(name) for name in head], ["---" if index < words else "--:" for index in range(len(head))]]
    lines += [[_md(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# HTML

_STYLE = """
:root { color-scheme: light dark; --ground: light-dark(#fff, #15191f); --quiet: light-dark(#f3f5f8, #1e242c);
  --line: light-dark(#dfe3e9, #343c47); --text: light-dark(#1c2430, #eef1f5);
  --muted: light-dark(#526071, #a3b0c0);
  --link: light-dark(#1747a6, #93c5fd);
  --good: light-dark(#116932, #86efac); --good-ground: light-dark(#dcfce7, #052e16);
  --bad: light-dark(#8a3308, #fdba74); --bad-ground: light-dark(#ffedd5, #3b1704); }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text);
  font: 15px/1.55 Inter, -apple-system, BlinkMacSystemFont, "Segoe UI", Helvetica, Arial, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .75rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: .95rem; margin: 1.5rem 0 .5rem; overflow-wrap: anywhere; }
p { margin: .5rem 0; white-space: pre-line; overflow-wrap: anywhere; }
a { color: var(--link); }
ul { margin: .5rem 0; padding-left: 1.25rem; }
li { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: .875rem; }
th, td { padding: .35rem .8rem .35rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line);
  max-width: 26rem; overflow-wrap: anywhere; }
thead th { color: var(--muted); font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 500; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; padding-left: .6rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.25rem; margin: .75rem 0; font-size: .9rem; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
pre { background: var(--quiet); border-radius: .5rem; padding: .75rem 1rem; overflow-x: auto; font-size: .8125rem; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; margin: .75rem 0; }
figure { margin: 0; flex: 0 1 29rem; }
img { width: 100%; height: auto; display: block; border-radius: .5rem; border: 1px solid var(--line);
  background: #fff; }
.badge { display: inline-block; padding: .05rem .6rem; border-radius: 999px; font-size: .85rem; font-weight: 600;
  background: var(--quiet); margin-right: .5rem; }
.good { background: var(--good-ground); color: var(--good); }
.bad { background: var(--bad-ground); color: var(--bad); }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; } }
"""


def as_html(document: Document) -> str:
    """The document as one HTML file."""
    sections = [
        f"<section>\n<h2>{html.escape(section.title)}</h2>\n{_blocks_html(section.blocks)}\n</section>"
        for section in document.sections
    ]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(document.title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{html.escape(document.title)}</h1>
{_blocks_html(document.lead)}
{"".join(sections)}
</main>
</body>
</html>
"""


def _blocks_html(blocks: Sequence[Block]) -> str:
    return "\n".join(_grouped(blocks))


def _grouped(blocks: Sequence[Block]) -> Iterator[str]:
    """Figures that follow one another stand side by side."""
    figures: list[str] = []
    for block in blocks:
        if isinstance(block, Figure):
            figures.append(_block_html(block))
            continue
        if figures:
            yield f'<div class="figures">{"".join(figures)}</div>'
            figures = []
        yield _block_html(block)
    if figures:
        yield f'<div class="figures">{"".join(figures)}</div>'


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return html.escape(cell)
    href = _web(cell)
    if href is None:
        return html.escape(cell.text)
    return f'<a href="{html.escape(href)}" target="_blank" rel="noopener noreferrer">{html.escape(cell.text)}</a>'


def _block_html(block: Block) -> str:
    match block:
        case Text(text):
            return "".join(f"<p>{html.escape(each)}</p>" for each in re.split(r"\n\s*\n", text.strip()))
        case Bullets(items):
            return f"<ul>{''.join(f'<li>{_cell(item)}</li>' for item in items)}</ul>"
        case Facts(rows):
            return f"<dl>{''.join(f'<dt>{html.escape(name)}</dt><dd>{_cell(value)}</dd>' for name, value in rows)}</dl>"
        case Table(head, rows, words):
            return _table_html(head, rows, words)
        case Code(text):
            return f"<pre>{html.escape(text)}</pre>"
        case Figure(title, _, png):
            data = base64.b64encode(png).decode()
            return f'<figure><img alt="{html.escape(title)}" src="data:image/png;base64,{data}"></figure>'
        case Heading(text):
            return f"<h3>{html.escape(text)}</h3>"
        case Badge(word, good, sentence):
            tone = {True: " good", False: " bad", None: ""}[good]
            return f'<p><span class="badge{tone}">{html.escape(word)}</span>{html.escape(sentence)}</p>'


def _table_html(head: Sequence[str], rows: Sequence[Sequence[Cell]], words: int) -> str:
    def classed(index: int) -> str:
        return ' class="n"' if index >= words else ""

    names = "".join(f'<th scope="col"{classed(index)}>{html.escape(name)}</th>' for index, name in enumerate(head))
    lines = []
    for row in rows:
        first, *others = row
        cells = "".join(f"<td{classed(index)}>{_cell(cell)}</td>" for index, cell in enumerate(others, 1))
        lines.append(f'<tr><th scope="row"{classed(0)}>{_cell(first)}</th>{cells}</tr>')
    body = "\n".join(lines)
    return f'<div class="scroll"><table><thead><tr>{names}</tr></thead><tbody>\n{body}\n</tbody></table></div>'
