import time

import pytest

from cs_pipeline.ingest.exports.markup import plain_text


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("plain & simple\n  as it is", "plain & simple\n  as it is"),
        ("5 < 6 &gt; 4", "5 < 6 > 4"),
        ("write to <jane@example.org>", "write to <jane@example.org>"),
        ("<p>One</p>\n<p>two\n three</p>", "One\n\ntwo three"),
        ("<div>One</div><div>two<br>three<br><br>four</div>", "One\ntwo\nthree\n\nfour"),
        ("a<b>b</b>c <a href='x>y'>d</a>", "abc y'>d"),
        ("<ul><li>x</li><li>y</li></ul>z", "x\ny\nz"),
        ("<table><tr><td>a</td><td>b</td></tr></table>", "a b"),
        (
            "Thanks<blockquote>On Monday<br>you wrote<blockquote>x</blockquote></blockquote>y",
            "Thanks\n> On Monday\n> you wrote\n> > x\ny",
        ),
        ("<style>p {}</style><script>if (a<b) x</script>seen<!-- <p>no</p> --><br/>too", "seen\ntoo"),
        ("<p>&nbsp;&#8364;&eacute; &amp;lt;</p>", "€é &lt;"),
        ("<![if x]><p>a</p><![endif]><o:p>b</o:p><!-- never closed", "a\n\nb"),
        ("</blockquote>a<br>", "a"),
    ],
)
def test_html_becomes_plain_text(html: str, text: str) -> None:
    assert plain_text(html) == text


@pytest.mark.parametrize("part", ["<!--", "<br", "<!", "<p>", "<", "<script>", "&", "<blockquote>"])
def test_no_text_is_slow(part: str) -> None:
    text = "<p>" + part * (400_000 // len(part))
    start = time.perf_counter()
    plain_text(text)
    assert time.perf_counter() - start < 5
