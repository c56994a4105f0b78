"""A document says the same in both its forms, and nothing in it can be more than text."""

from __future__ import annotations

import html
from html.parser import HTMLParser
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from airflow_mlops.stages.document import (
    Badge,
    Bullets,
    Code,
    Document,
    Facts,
    Figure,
    Heading,
    Link,
    Section,
    Table,
    Text,
    as_html,
    as_markdown,
)

EVIL = "<script>alert(1)</script> & \"x\" 'y' ![i](http://e/x.png) [a](javascript:alert(1)) | `c` </style></title>"


class Seen(HTMLParser):
    """What a browser would make of it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def whole(text: str) -> Document:
    table = Table((text, "n"), [(text, "1"), (Link(text, text), text)])
    blocks = [
        Text(text),
        Bullets([text, Link(text, f"https://e.org/{text}")]),
        Facts([(text, text)]),
        table,
        Code(text),
        Figure(text, "plots/x.png", b"png"),
        Heading(text),
        Badge(text, None, text),
    ]
    return Document(text, blocks, [Section(text, blocks)])


def test_text_of_others_is_nothing_but_text() -> None:
    seen = Seen(as_html(whole(EVIL)))
    tags = [tag for tag, _ in seen.tags]
    assert "script" not in tags and tags.count("style") == 1 and tags.count("title") == 1
    assert EVIL in seen.text
    for tag, attributes in seen.tags:
        assert not [name for name in attributes if name.startswith("on")]
        if tag == "img":
            assert str(attributes["src"]).startswith("data:image/png;base64,")
        if tag == "a":
            assert str(attributes["href"]).startswith("https://e.org/")
        assert tag not in ("link", "iframe", "object", "embed", "form", "base")


def rendered(document: Document) -> Seen:
    """The Markdown as a reader's program shows it, one that lets HTML through."""
    return Seen(MarkdownIt("commonmark", {"html": True}).enable("table").render(as_markdown(document)))


def test_markdown_of_others_is_nothing_but_text() -> None:
    seen = rendered(whole(EVIL))
    assert not {tag for tag, _ in seen.tags} & {"script", "style", "title", "iframe", "link"}
    assert {attributes["src"] for tag, attributes in seen.tags if tag == "img"} == {"plots/x.png"}
    assert all(str(attributes["href"]).startswith("https://e.org/") for tag, attributes in seen.tags if tag == "a")
    assert seen.text.count(EVIL) == as_html(whole("EVIL")).count(">EVIL") - 1  # the title in the head


@given(st.text(max_size=60))
def test_markdown_shows_what_was_written(text: str) -> None:
    seen = rendered(Document("d", [Table(("a", "b"), [(text, "1")])], []))
    assert [tag for tag, _ in seen.tags].count("td") == 2
    assert "".join(text.split()).replace("\x00", "\ufffd") in "".join(seen.text.split())


def test_a_line_that_would_begin_a_list_or_a_heading_is_a_line() -> None:
    written = as_markdown(Document("d", [Text("# no\n- no\n1. no\n=== no\n> no\n    no\n\nnext")], []))
    assert written == "# d\n\n\\# no  \n\\- no  \n1\\. no  \n\\=== no  \n\\> no  \nno\n\nnext\n"


def test_code_cannot_end_its_own_block() -> None:
    assert "\n`````yaml\na ```` b\n`````" in as_markdown(Document("d", [Code("a ```` b")], []))


def test_only_addresses_of_the_web_are_links() -> None:
    for address in (
        "javascript:alert(1)",
        "data:text/html,x",
        "runs:/1/x",
        "//e.org",
        "https://u:p@e.org",
        "http://[x",
        None,
    ):
        card = Document("d", [Bullets([Link("there", address)])], [])
        assert "<a" not in as_html(card) and "](" not in as_markdown(card)
    card = Document("d", [Bullets([Link("there", "http://e.org/#/a b<>(c)\n")])], [])
    assert "- [there](<http://e.org/#/a%20b%3C%3E(c)%0A>)" in as_markdown(card)


@given(st.text(max_size=60))
def test_whatever_is_written_can_be_read(text: str) -> None:
    seen = Seen(as_html(Document("d", [Bullets([text])], [])))
    assert html.unescape(html.escape(text)) == text
    assert text.replace("\r", "\n").replace("\x00", "\ufffd") in seen.text.replace("\r", "\n").replace("\x00", "\ufffd")
    assert as_markdown(Document("d", [Table(("a", "b"), [(text, "1")])], [])).count("\n") == 5


def test_it_says_to_the_browser_that_it_needs_nothing() -> None:
    seen = Seen(as_html(whole("x")))
    (policy,) = (a["content"] for tag, a in seen.tags if tag == "meta" and "http-equiv" in a)
    assert str(policy).startswith("default-src 'none'")
