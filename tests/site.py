"""Opens every page of the built site in a real browser, as wide as a phone and as a desk, light and dark.

    make docs && python -m tests.site         # docs/_build/html; --folder names another

Said of each page: whether it is wider than the window, code that has no button to copy it, pictures that do not load, and text
that is hard to read on its ground (a contrast below 3, as WCAG counts it). The exit status is 1 if there is one such thing, and
where there is no browser.
"""

import argparse
import html
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.support.browser import NAMES
from tests.support.process import ROOT

WIDTHS = (390, 1280)  # CSS pixels: a phone, a desk
LEAST_CONTRAST = 3.0
# For one page after the other, in a frame: what is wrong with it.
SCRIPT = """
const luminance = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, place) => sum + v * [0.2126, 0.7152, 0.0722][place], 0);
const color = text => (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
const ground = element => {
  for (; element; element = element.parentElement) {
    const found = color(element.ownerDocument.defaultView.getComputedStyle(element).backgroundColor);
    if (found.length < 4 || found[3] > 0.9) return found;
  }
  return [255, 255, 255];
};
const contrast = element => {
  const own = luminance(color(element.ownerDocument.defaultView.getComputedStyle(element).color));
  const under = luminance(ground(element));
  return (Math.max(own, under) + 0.05) / (Math.min(own, under) + 0.05);
};
const look = page => {
  const all = selector => [...page.document.querySelectorAll(selector)], root = page.document.documentElement, wrong = [];
  if (root.scrollWidth > page.innerWidth) wrong.push(`${root.scrollWidth} pixels wide in a window of ${page.innerWidth}`);
  const bare = all("div.highlight").filter(block => !block.querySelector("button.copybtn"));
  if (bare.length) wrong.push(`${bare.length} blocks of code without a button`);
  for (const image of page.document.images) if (image.complete && !image.naturalWidth) wrong.push(`no picture ${image.src}`);
  const texts = all("article p, article li, article td, article code, article pre span, article a, h1");
  const faint = texts.filter(text => (text.innerText || "").trim() && contrast(text) < LEAST_CONTRAST);
  if (faint.length) wrong.push(`hard to read: ${faint[0].innerText.slice(0, 40)}`);
  return wrong;
};
const frame = document.querySelector("iframe"), found = {};
let place = 0;
frame.onload = () => {
  found[PAGES[place]] = look(frame.contentWindow);
  if (++place < PAGES.length) frame.src = PAGES[place];
  else document.querySelector("pre").textContent = "FOUND" + JSON.stringify(found) + "END";
};
frame.src = PAGES[0];
"""


def look(pages, width, dark, folder):
    """Page -> what is wrong with it, of these files in a window of that width."""
    script = (
        f"const PAGES = {json.dumps([page.as_uri() for page in pages])}, LEAST_CONTRAST = {LEAST_CONTRAST};{SCRIPT}"
    )
    around = folder / "around.html"
    frame = f'<iframe style="border:0;width:{width}px;height:900px"></iframe><pre></pre>'
    around.write_text(f"<!doctype html><body>{frame}<script>{script}</script>", encoding="utf-8")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        raise SystemExit(f"No browser: none of {', '.join(NAMES)} is on the PATH.")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom", "--allow-file-access-from-files"]
    flags += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=600000", *["--force-dark-mode"] * dark]
    said = subprocess.run(
        [program, *flags, around.as_uri()], capture_output=True, timeout=550, check=True
    ).stdout.decode()
    answer = re.search("FOUND(.*?)END</pre>", said, re.DOTALL)
    if answer is None:
        raise SystemExit(f"The browser did not come to the end of {len(pages)} pages.")
    return json.loads(html.unescape(answer[1]))


def main():
    """All pages in all windows; prints what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "docs" / "_build" / "html", help="the built site")
    folder = parser.parse_args().folder.resolve()
    pages = sorted(page for page in folder.rglob("*.html") if not page.relative_to(folder).parts[0].startswith("_"))
    if not pages:
        raise SystemExit(f"No pages in {folder}: run `make docs` first.")
    count = 0
    for width in WIDTHS:
        for dark in (False, True):
            with tempfile.TemporaryDirectory() as made:
                found = look(pages, width, dark, Path(made))
            for page, wrong in found.items():
                for line in wrong:
                    count += 1
                    print(
                        f"{width} pixels, {'dark' if dark else 'light'}: {page.removeprefix(folder.as_uri())}: {line}"
                    )
    print(f"{len(pages)} pages, {len(WIDTHS)} widths, light and dark: {count} faults")
    return int(count > 0)


if __name__ == "__main__":
    raise SystemExit(main())
