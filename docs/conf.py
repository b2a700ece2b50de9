"""Sphinx configuration: MyST pages and API pages from the docstrings. `make docs` builds it with warnings as errors."""

import inspect
import os
import re
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # a build computes nothing
sys.path.insert(0, str(Path(__file__).parents[1]))

import cacenet_jax

project = "cacenet_jax"
author = "the cacenet_jax authors"
release = version = cacenet_jax.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
root_doc = "index"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4  # the anchors that GitHub makes too

html_theme = "furo"
html_title = "cacenet_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
pygments_style, pygments_dark_style = "friendly", "monokai"

# Docstrings are Google style with Markdown's backticks: `name` is code, and no cross-reference.
default_role = "code"
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_attr_annotations = False
napoleon_custom_sections = [("Fields", "params_style")]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}
python_maximum_signature_line_length = 88
add_module_names = False

_CODE = re.compile(r"``.+?``|`[^`]+`")
_MARKUP = re.compile(r"[*|]|_(?=\W|$)")


def _escape(line: str) -> str:
    """Escape RST's inline markup outside code: docstrings write f(u|v), *batch and trailing underscores as they are."""
    parts, start = [], 0
    for code in _CODE.finditer(line):
        parts += [_MARKUP.sub(r"\\\g<0>", line[start : code.start()]), code[0]]
        start = code.end()
        if line[start : start + 1].isalnum():  # a plural: `name`s
            parts.append("\\ ")
    return "".join(parts) + _MARKUP.sub(r"\\\g<0>", line[start:])


def to_rst(app, what, name, obj, options, lines: list[str]) -> None:
    """Turn indented paragraphs (formulas, commands) into literal blocks and escape the rest, before napoleon reads it."""
    del app, what, name, obj, options
    converted, literal, source = [], False, False
    for i, line in enumerate(lines):
        source = line.startswith("Source: ") or (source and bool(line.strip()))
        if source:  # one paragraph, whose lines after the first are indented
            line = line.strip()
        indented = line.startswith((" ", "\t"))
        if literal and line.strip() and not indented:
            literal = False
        previous = next((text for text in reversed(lines[:i]) if text.strip()), "")
        apart = i > 0 and (not lines[i - 1].strip() or lines[i - 1].endswith("."))
        opens = indented and apart and not previous.startswith((" ", "\t", "- ", "* "))
        if opens and not literal:
            literal = True
            if not previous.endswith("::"):
                converted += ["", "::", ""]
        converted.append(line if literal else _escape(line))
    lines[:] = converted


def skip(app, what, name, obj, skipped, options) -> bool | None:
    """Leave out the fields of named tuples and of modules: the Attributes section of their class describes them."""
    del app, what, options
    if type(obj).__name__ == "_tuplegetter" or name in ("parent", "scope", "setup"):
        return True
    if inspect.isfunction(obj) and obj.__module__ and not obj.__module__.startswith("cacenet_jax"):
        return True
    return None if not skipped else skipped


def shorten(app, what, name, obj, options, signature: str | None, returns: str | None) -> tuple[str | None, str | None]:
    """Write array types as the code does: Float[Array, "N D"] for jax and NumPy alike."""
    del app, what, name, obj, options

    def short(text: str | None) -> str | None:
        text = text and text.replace("jax.jaxlib._jax.", "").replace("jaxlib._jax.", "")
        return text and re.sub(
            r"(\w+)\[~?Array, ('[^']*')\] \| (?:~?\w+\.)?\1\[~?(?:numpy\.)?ndarray, \2\]", r"\1[Array, \2]", text
        )

    return short(signature), short(returns)


def setup(app) -> None:
    """Connect the hooks; to_rst runs ahead of napoleon's, whose priority is 500."""
    app.connect("autodoc-process-docstring", to_rst, priority=400)
    app.connect("autodoc-process-signature", shorten)
    app.connect("autodoc-skip-member", skip)
