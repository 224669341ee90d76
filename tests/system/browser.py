"""A real browser for looking at pages: Debian's Chromium, without a screen."""

from __future__ import annotations

import functools
import html
import http.server
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from cluster import CannotInstallError

INSTALL = "apt-get update -q && apt-get install -y -q --no-install-recommends chromium fonts-dejavu"
INSTALL_SECONDS = 400
PAGE_SECONDS = 60
HEIGHT = 900

#: Shows a page in a frame of a given width, and puts what it finds into its own title.
PROBE = """<!DOCTYPE html><meta charset="utf-8"><title>waiting</title>
<link rel="icon" href="data:,">
<style>body {{ margin: 0 }} iframe {{ border: 0; width: {width}px; height: {height}px }}</style>
<iframe id="frame" src="{page}"></iframe>
<script>
const frame = document.getElementById("frame");
frame.onload = () => {{
  const page = frame.contentDocument, root = page.documentElement;
  const images = [...page.images];
  const wide = [...page.body.querySelectorAll("*")].filter(e =>
    !e.closest(".scroll table") && e.getBoundingClientRect().right > {width} + 1);
  if ({whole}) frame.style.height = root.scrollHeight + "px";
  document.title = JSON.stringify({{
    width: root.clientWidth, scroll_width: root.scrollWidth, height: root.scrollHeight,
    images: images.length,
    broken: images.filter(i => !(i.complete && i.naturalWidth > 0)).length,
    outside: wide.map(e => e.outerHTML.slice(0, 100)),
    ground: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
    dark: frame.contentWindow.matchMedia("(prefers-color-scheme: dark)").matches,
  }});
}};
</script>"""


@dataclass(frozen=True)
class Seen:
    """What a page looks like in the browser.

    Attributes
    ----------
    width, scroll_width, height : int
        Of the page, pixels; a larger `scroll_width` means that it scrolls sideways.
    images, broken : int
        Pictures, and those that could not be decoded.
    outside : list of str
        Elements that reach beyond the right edge.
    ground : str
        Colour of the background.
    dark : bool
        Whether the browser asked for dark colours.
    console : list of str
        What the browser logged of the page.
    """

    width: int
    scroll_width: int
    height: int
    images: int
    broken: int
    outside: list[str]
    ground: str
    dark: bool
    console: list[str]


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Browser:
    """Chromium, installed where it is missing.

    Raises
    ------
    CannotInstallError
    """

    def __init__(self) -> None:
        if shutil.which("chromium") is None:
            self._install()

    def _install(self) -> None:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        try:
            subprocess.run(
                ["sh", "-c", INSTALL],
                env=environment,
                timeout=INSTALL_SECONDS,
                check=True,
                capture_output=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise CannotInstallError(f"Chromium cannot be installed here: {error}") from error

    def look(self, page: Path, width: int, screenshot: Path, *, dark: bool = False) -> Seen:
        """Open a page in a frame of some width; leave a screenshot of all of it."""
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(page, folder)
            handler = functools.partial(_QuietHandler, directory=folder)
            with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
                threading.Thread(target=server.serve_forever, daemon=True).start()
                try:
                    return self._look(
                        server.server_port, Path(folder), page, width, screenshot, dark
                    )
                finally:
                    server.shutdown()

    def _look(
        self, port: int, folder: Path, page: Path, width: int, screenshot: Path, dark: bool
    ) -> Seen:
        address = f"http://127.0.0.1:{port}/probe.html"

        def write_probe(whole: bool) -> None:
            text = PROBE.format(
                page=page.name, width=width, height=HEIGHT, whole=str(whole).lower()
            )
            (folder / "probe.html").write_text(text)

        write_probe(whole=False)
        done = self._run(dark, "--dump-dom", address)
        found = re.search(r"<title>(.*?)</title>", done.stdout, re.S)
        assert found is not None, done.stderr
        values = json.loads(html.unescape(found[1]))
        console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        write_probe(whole=True)
        size = f"--window-size={max(width, 500)},{values['height']}"
        self._run(dark, size, f"--screenshot={screenshot}", address)
        return Seen(**values, console=console)

    def _run(self, dark: bool, *words: str) -> subprocess.CompletedProcess[str]:
        scheme = "0" if dark else "1"
        with tempfile.TemporaryDirectory() as profile:
            return subprocess.run(
                [
                    "chromium",
                    "--headless",
                    "--no-sandbox",
                    "--disable-gpu",
                    "--disable-dev-shm-usage",
                    "--hide-scrollbars",
                    "--enable-logging=stderr",
                    f"--user-data-dir={profile}",
                    f"--blink-settings=preferredColorScheme={scheme}",
                    "--virtual-time-budget=10000",
                    *words,
                ],
                timeout=PAGE_SECONDS,
                capture_output=True,
                text=True,
                check=True,
            )
