"""A page in a real browser, and the same facts read by html.parser where there is none.

Debian and Ubuntu: apt-get install chromium chromium-driver. Spoken to by the WebDriver protocol alone.
"""

import base64
import contextlib
import io
import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

_CHROMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip


class Shown(NamedTuple):
    """What a page shows.

    Attributes:
        images: (alternative text, width in pixels of the picture) of each; 0 for one that cannot be shown.
        items: (class, text) of each item of the ranked lists.
        text: of the whole page.
    """

    images: list[tuple[str, int]]
    items: list[tuple[str, str]]
    text: str


class _Reader(HTMLParser):
    def __init__(self, page: str):
        super().__init__()
        self.images, self.items, self.words, self.references, self.open = [], [], [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.references += [given[name] for name in ("src", "href", "srcset", "action") if name in given]
        if tag == "img":
            encoded = given["src"].removeprefix("data:image/webp;base64,")
            self.images.append((given["alt"], Image.open(io.BytesIO(base64.b64decode(encoded, validate=True))).width))
        elif tag not in ("meta", "link", "source"):
            self.open.append(tag)
        if tag == "li":
            self.items.append((given.get("class", ""), ""))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)
        if "li" in self.open:
            self.items[-1] = (self.items[-1][0], self.items[-1][1] + data)


def parsed(path: Path) -> Shown:
    """What html.parser finds in a page that must refer to nothing outside of itself."""
    page = path.read_text("utf-8")
    reader = _Reader(page)
    assert not reader.open
    outside = [found for found in reader.references if not found.startswith("data:")]
    assert not outside and not re.search(r"https?:|url\(|@import|<script", page)
    return Shown(reader.images, reader.items, " ".join(" ".join(reader.words).split()))


_SCRIPT = """
return {
  images: [...document.images].map(i => [i.alt, i.complete ? i.naturalWidth : 0]),
  items: [...document.querySelectorAll('li')].map(i => [i.className, i.innerText.trim()]),
  text: document.body.innerText.replace(/\\s+/g, ' '),
  wide: document.documentElement.scrollWidth - window.innerWidth,
  loaded: performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:')).map(r => r.name),
};
"""


class Browser:
    """A headless Chromium of one test."""

    def __init__(self, address: str, session: str):
        self._address, self._session = address, session

    def _ask(self, path: str, given: dict[str, Any]) -> Any:
        return ask("POST", f"{self._address}/session/{self._session}/{path}", given)

    def show(self, path: Path, width: int = 1280) -> tuple[Shown, int]:
        """What a page shows in a window of that width, and how far it is wider than that."""
        found = self._open(path.resolve().as_uri(), width)
        assert found["loaded"] == []
        return self._shown(found)

    def visit(self, url: str, width: int = 1280) -> tuple[Shown, int]:
        """The same of a page of a server, which loads its own images."""
        found = self._open(url, width)
        assert all(name.startswith(url.split("/", 3)[2].join(("http://", "/"))) for name in found["loaded"])
        return self._shown(found)

    def press(self, *keys: str) -> str:
        """Press keys, one after the other, and return the address of the page then."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._ask("actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})
        return ask("GET", f"{self._address}/session/{self._session}/url")

    def run(self, script: str) -> Any:
        """The result of a script."""
        return self._ask("execute/sync", {"script": script, "args": []})

    def picture(self) -> bytes:
        """The window as PNG."""
        return base64.b64decode(ask("GET", f"{self._address}/session/{self._session}/screenshot"))

    def _open(self, url: str, width: int) -> Any:
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self._ask("goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics})
        self._ask("url", {"url": url})
        return self._ask("execute/sync", {"script": _SCRIPT, "args": []})

    def _shown(self, found: Any) -> tuple[Shown, int]:
        images, items = ([tuple(pair) for pair in found[name]] for name in ("images", "items"))
        return Shown(images, items, found["text"]), found["wide"]


def ask(method: str, url: str, given: dict[str, Any] | None = None) -> Any:
    """One command of the protocol."""
    body = None if given is None else json.dumps(given).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the driver is on this machine
    with opener.open(request, timeout=200) as reply:
        return json.load(reply)["value"]


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile; skips the test, saying why, where there is none."""
    chrome = next(filter(None, map(shutil.which, _CHROMES)), None)
    driver = shutil.which("chromedriver")
    if not chrome or not driver:
        pytest.skip("no chromium or no chromedriver; Debian and Ubuntu: apt-get install chromium chromium-driver")
    with subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            port = next(found[1] for line in process.stdout if (found := re.search(r"on port (\d+)\.", line)))
            address = f"http://127.0.0.1:{port}"
            options = {"binary": chrome, "args": [*_FLAGS, f"--user-data-dir={profile}"]}
            wanted = {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}}
            session = ask("POST", f"{address}/session", wanted)["sessionId"]
            yield Browser(address, session)
            ask("DELETE", f"{address}/session/{session}")
        finally:
            process.terminate()
