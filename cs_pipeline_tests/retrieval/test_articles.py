"""Reading help articles in each format, and files that are not articles."""

import pytest

from cs_pipeline.retrieval.articles import Article, ArticleError, Paragraph, read_article

MARKDOWN = b"""---
url: https://help.example.com/refunds
---
# Getting a *refund*

Refunds take
**five** days.

- first
- second

## By card

| method | days |
|---|---|
| card | 3 |
"""

HTML = b"""<!doctype html><html><head><title>Help</title><link rel="canonical" href="https://help.example.com/returns">
<style>p {color: red}</style><script>track()</script></head><body><nav><a href="/">Home</a></nav>
<main><h1>Returns &amp; refunds</h1><p>Send it back<br>within 30 days.</p><!-- note --><pre>RMA 1
RMA 2</pre><table><tr><td>a</td><td>b</td></tr></table>loose <b>end</b></main><footer>imprint</footer></body></html>"""


def test_markdown_is_read_with_its_headings_and_address() -> None:
    assert read_article("refunds.md", MARKDOWN) == Article(
        "Getting a refund",
        "https://help.example.com/refunds",
        [
            Paragraph("Getting a refund", "Refunds take five days."),
            Paragraph("Getting a refund", "- first"),
            Paragraph("Getting a refund", "- second"),
            Paragraph("By card", "method days"),
            Paragraph("By card", "card 3"),
        ],
        [],
    )


def test_html_is_read_without_navigation_scripts_and_comments() -> None:
    assert read_article("returns.html", HTML) == Article(
        "Returns & refunds",
        "https://help.example.com/returns",
        [
            Paragraph("Returns & refunds", text)
            for text in ("Send it back\nwithin 30 days.", "RMA 1\nRMA 2", "a b", "loose end")
        ],
        [],
    )


def test_a_text_file_has_paragraphs_and_its_name_as_title() -> None:
    article = read_article("a/how-to_return.txt", b"\xef\xbb\xbfOne\ntwo.\n \nThree.")
    assert article == Article("how to return", None, [Paragraph("", "One\ntwo."), Paragraph("", "Three.")], [])


@pytest.mark.parametrize(
    ("page", "title"),
    [
        (b"<title>T</title><h2>H</h2><p>x</p>", "H"),
        (b"<title>T\n2</title><p>x</p>", "T 2"),
        (b"<p>x</p>", "name"),
    ],
)
def test_the_title_is_the_first_heading_or_the_page_title_or_the_file_name(page: bytes, title: str) -> None:
    assert read_article("name.html", page).title == title


@pytest.mark.parametrize("address", ["javascript:alert(1)", "/refunds", "https://a b", "data:text/html,x", "ftp://a/b"])
def test_an_address_that_is_not_a_web_page_is_ignored(address: str) -> None:
    page = f'<link rel="canonical" href="{address}"><p>x</p>'
    assert read_article("a.html", page.encode()).address is None
    assert read_article("a.md", f"---\nurl: '{address}'\n---\nx".encode()).address is None


@pytest.mark.parametrize(
    "attributes",
    [
        "hidden",
        'style="display : none"',
        'style="VISIBILITY:hidden !important"',
        'style="font-size:0px"',
        'style="opacity: 0.0"',
        'style="position:absolute;left:-9999px"',
        'style="color: #FFFFFF"',
        'class="x sr-only"',
    ],
)
def test_invisible_text_is_kept_apart(attributes: str) -> None:
    page = f"<h1>H</h1><p>seen <span {attributes}>unseen <b>too</b></span> again</p><p>after</p>"
    article = read_article("a.html", page.encode())
    assert article.invisible == ["unseen too"]
    assert [paragraph.text for paragraph in article.paragraphs] == ["seen", "again", "after"]
    in_markdown = read_article("a.md", f"Text\n\n<div {attributes}>unseen</div>\n\nmore".encode())
    assert in_markdown.invisible == ["unseen"]


@pytest.mark.parametrize(
    "style", ["font-size:0.9em", "opacity:0.5", "color:#fff5e6", "background-color:#fff", "left:-9px"]
)
def test_text_with_other_styles_is_visible(style: str) -> None:
    article = read_article("a.html", f'<p style="{style}">seen</p>'.encode())
    assert (article.invisible, [paragraph.text for paragraph in article.paragraphs]) == ([], ["seen"])


def test_nothing_is_fetched_and_no_entity_resolved() -> None:
    page = b'<!DOCTYPE html [<!ENTITY e SYSTEM "file:///etc/hostname">]><p>a &e; b</p><img src="http://127.0.0.1:1/x">'
    assert "a &e; b" in [paragraph.text for paragraph in read_article("a.html", page).paragraphs]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.md", b"caf\xe9", "is not UTF-8 from byte 3 on"),
        ("a.html", b"<p>a\x00b</p>", "control character U+0000"),
        ("a.txt", b"\x1b[31mred", "control character U+001B"),
        ("a.md", b"\xef\xbb\xbf \n", "contains no text"),
        ("a.html", b"<script>x</script><nav>y</nav>", "contains no text"),
        ("a.html", b"<!-- -->", "contains no text"),
        ("a.html", b"<div>" * 3000 + b"deep", "nested too deeply"),
        ("a.md", b"---\na: [\n---\nx", "front matter that is not valid YAML"),
    ],
)
def test_a_file_that_is_not_an_article_is_refused_with_the_reason(name: str, content: bytes, message: str) -> None:
    with pytest.raises(ArticleError, match=message.replace("+", r"\+")) as raised:
        read_article(name, content)
    assert "deep" not in str(raised.value).replace("deeply", ""), "the message must not quote the article"
