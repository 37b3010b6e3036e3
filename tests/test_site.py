"""tests/site.py finds what is wrong with a page, in a real browser."""

from tests.site import look
from tests.support.browser import browser

GOOD = """<!doctype html><body style="background: white; color: black"><article><h1>A page</h1><p>Text.</p>
<div class="highlight"><pre>code</pre><button class="copybtn"></button></div></article></body>"""
BAD = """<!doctype html><body style="background: white; color: black"><article>
<div style="width: 500px">wide</div><div class="highlight"><pre>code</pre></div><img src="nowhere.png">
<p style="color: #ddd">faint</p><p style="color: #ddd"> </p></article></body>"""


def test_what_is_wrong_with_a_page_is_found(tmp_path):
    browser()
    pages = [tmp_path / "good.html", tmp_path / "bad.html"]
    for page, text in zip(pages, (GOOD, BAD), strict=True):
        page.write_text(text, encoding="utf-8")
    good, bad = look(pages, 390, False, tmp_path).values()
    assert good == []
    kinds = ["pixels wide in a window of 390", "1 blocks of code", "no picture file://", "hard to read: faint"]
    assert len(bad) == len(kinds)
    assert all(kind in line for kind, line in zip(kinds, bad, strict=True))
    assert look(pages[1:], 1280, False, tmp_path)[pages[1].as_uri()] == bad[1:]
