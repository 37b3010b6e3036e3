"""A real browser without a window: pages are opened from the disk, asked by a script, and what their console says is kept."""

import html
import json
import re
import shutil
import subprocess

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def browser():
    """The path of Chromium or Chrome; the test is skipped where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the PATH")
    return found


def ask(page, script, folder, width=1280, height=900, dark=False):
    """What `script`, a JavaScript expression of `page` (its window), gives as JSON; and what the console said.

    page: HTML.   width, height: of the frame that it is shown in, in CSS pixels.   dark: the reader's preference.
    """
    around = f"""<!doctype html><body><iframe style="border:0;width:{width}px;height:{height}px"></iframe><pre></pre><script>
      const frame = document.querySelector("iframe");
      frame.onload = () => {{
        const page = frame.contentWindow;
        document.querySelector("pre").textContent = "FOUND" + JSON.stringify({script}) + "END";
      }};
      frame.srcdoc = {json.dumps(page).replace("</", "<" + chr(92) + "/")};
      </script>"""
    path = folder / "around.html"
    path.write_text(around, encoding="utf-8")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom", "--enable-logging=stderr"]
    flags += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000", *["--force-dark-mode"] * dark]
    found = subprocess.run([browser(), *flags, path.as_uri()], capture_output=True, timeout=120, check=True)
    said = [line for line in found.stderr.decode(errors="replace").splitlines() if ":CONSOLE" in line]
    answer = re.search("FOUND(.*?)END</pre>", found.stdout.decode(), re.DOTALL)
    return (json.loads(html.unescape(answer.group(1))) if answer else None), said
