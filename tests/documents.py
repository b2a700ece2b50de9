"""The Markdown pages of the repository: their headings, links and Python blocks."""

import re
from pathlib import Path
from typing import NamedTuple

from command import ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
PAGES = [path for path in PAGES if "_build" not in path.parts]
_FENCE = re.compile(r"^ *(```+|~~~+)(.*?)^ *\1 *$", re.MULTILINE | re.DOTALL)
_PYTHON = re.compile(r"(?:<!-- test: ([^\n]*?) -->\n)?```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """A Python block of a page.

    Attributes:
        code: source.
        line: line of the page before its first, so that a traceback shows the page's own lines.
        note: the comment `<!-- test: NOTE -->` above it: "skip, REASON" or the test that runs it.
    """

    code: str
    line: int
    note: str

    @property
    def runs(self) -> bool:
        """True if the block is to be run as it stands."""
        return not self.note


def blocks(path: Path) -> list[Block]:
    """Return the Python blocks of a page."""
    text = path.read_text()
    return [Block(match[2], text[: match.start(2)].count("\n"), match[1] or "") for match in _PYTHON.finditer(text)]


def section(path: Path, heading: str) -> str:
    """Return the text below a heading, up to the next one of its level or above."""
    text = path.read_text()
    start = re.search(rf"^(#+) {re.escape(heading)}$", text, re.MULTILINE)
    assert start, f"{path.name}: no heading {heading!r}"
    end = re.search(rf"^#{{1,{len(start[1])}}} ", text[start.end() :], re.MULTILINE)
    return text[start.end() :][: end.start() if end else None]


def prose(path: Path) -> str:
    """Return the text of a page outside fenced blocks, inline code without its backticks."""
    return re.sub(r"`([^`\n]*)`", r"\1", _FENCE.sub("", path.read_text()))


def anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#{1,6} (.+)$", prose(path), re.MULTILINE)
    text = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in text}


def links(path: Path) -> list[str]:
    """Return the targets of a page's links and images, without web addresses."""
    targets = _LINK.findall(_FENCE.sub("", path.read_text()))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]
