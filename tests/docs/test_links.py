"""Links inside the README and the pages lead to files, headings and images that exist."""

import importlib.util
import re

import pytest
from documents import PAGES, ROOT, anchors, links

CONTRIBUTING = ROOT / "docs/contributing.md"  # the page of CONTRIBUTING.md on the site
_TOCTREE = re.compile(r"```\{toctree\}\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links(path):
    broken = []
    for target in links(path):
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        known = ROOT / "CONTRIBUTING.md" if there == CONTRIBUTING else there
        if not there.exists() or (anchor and anchor not in anchors(known)):
            broken.append(target)
    assert not broken


def test_readme_is_a_front_door():
    """At most 1,300 words, one picture, and the way to every page of docs/."""
    words = (ROOT / "README.md").read_text().split()
    assert len(words) <= 1300
    targets = links(ROOT / "README.md")
    assert sum(target.endswith(".png") for target in targets) == 1
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} - {"docs/index.md", "docs/contributing.md"}
    assert pages <= {target.partition("#")[0] for target in targets}


def test_every_page_is_in_a_toctree():
    listed = set()
    for path in (ROOT / "docs/index.md", ROOT / "docs/api/index.md"):
        for body in _TOCTREE.findall(path.read_text()):
            names = [line for line in body.splitlines() if line and not line.startswith(":")]
            listed |= {(path.parent / f"{name}.md").resolve() for name in names}
    pages = {path for path in PAGES if path.is_relative_to(ROOT / "docs")} - {ROOT / "docs/index.md"}
    assert listed == pages


def test_api_pages_name_modules():
    for path in (ROOT / "docs/api").glob("*.md"):
        for module in re.findall(r"^\.\. automodule:: (\S+)$", path.read_text(), re.MULTILINE):
            assert importlib.util.find_spec(module), f"{path.name}: {module}"
