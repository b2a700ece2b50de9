"""HTML of the pages that `--mode=serve` answers with: forms and links, without scripts."""

import zlib
from collections.abc import Collection, Sequence
from urllib.parse import urlencode

from cacenet_jax.decide import page
from cacenet_jax.find import pages
from cacenet_jax.index.marks import Labelled, Mark
from cacenet_jax.visualize.document import document, escape

_SHOWN_MARKS = 200  # on a page
_STYLE = (
    pages.STYLE
    + """
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; padding-bottom: .75rem; margin-bottom: .75rem;
  border-bottom: 1px solid #bbb; }
nav + section { border-top: 0; margin-top: 0; padding-top: 0; }
form.fields { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: end; margin: 1rem 0; }
label { display: grid; gap: .25rem; font-size: .9rem; }
input, button { font: inherit; box-sizing: border-box; max-width: 100%; }
input:not([type=number]) { width: 22rem; } input[type=number] { width: 5rem; }
input[type=file] { border: 2px dashed #888; padding: 1.2rem .75rem; background: #f6f6f6; }
button, .pages a { border: 1px solid #777; border-radius: .25rem; background: #f3f3f3; color: #222; padding: .25rem .6rem;
  cursor: pointer; text-decoration: none; }
button:hover { background: #e2e2e2; } :focus-visible { outline: 3px solid #0072b2; outline-offset: 2px; }
.mark { display: flex; flex-wrap: wrap; gap: .25rem; margin: .25rem 0; }
.mark button { font-size: .85em; padding: .1rem .4rem; } .mark button[aria-pressed=true] { background: #222; color: #fff; }
.error { border-left: 4px solid #a34700; padding: .5rem 1rem; }
ol.matches a { color: #0b4a8a; }
@media (max-width: 30rem) { ol.matches.grid { display: grid; grid-template-columns: repeat(3, 1fr); gap: .5rem; }
  ol.matches.grid li { display: block; margin: 0; } ol.matches.grid img { width: 100%; height: auto; } }
 .pages { display: flex; gap: 1rem; align-items: center; margin: 1rem 0; }
table th, table td { text-align: left; overflow-wrap: anywhere; }
"""
)
_SOURCES = "'self' data:"


def shell(title: str, body: str, marks: int, style: str = "") -> str:
    """Render a page with links to the others.

    Args:
        title: title and heading.
        body: HTML below them.
        marks: number of marks, for the link.
        style: further CSS.
    """
    nav = f'<nav><a href="/">Photographs</a><a href="/marks">Marks ({marks:,})</a></nav>'
    return document(title, nav + body, _STYLE + style, _SOURCES)


def link(path: str, **values: object) -> str:
    """Return an address with the values that are not empty as its query."""
    given = {name: value for name, value in values.items() if value != ""}
    return path + ("?" + urlencode(given, errors="surrogateescape") if given else "")


def address(path: str, **values: object) -> str:
    """Return a `link` escaped for HTML."""
    return escape(link(path, **values))


def anchor(match: str) -> str:
    """Return the name of a match's buttons on the page, to which marking returns."""
    return f"mark-{zlib.crc32(match.encode('utf-8', 'surrogateescape')):08x}"


def error(message: str, marks: int) -> str:
    """Render a message about a request that was refused."""
    return shell("Request refused", f'<p class="error" role="alert">{escape(message)}</p>', marks)


def photographs(ids: Sequence[str], total: int, start: int, size: int, where: str, k: int, marks: int) -> str:
    """Render the photographs of an index, a page of them, with the forms to filter and to search.

    Args:
        ids: names of the photographs on the page.
        total: number of photographs that the filter leaves.
        start: place of the first one.
        size: number of photographs on a full page.
        where: filter, or an empty string.
        k: number of matches that the form proposes.
        marks: number of marks.
    """
    height, width = pages.SIZE
    items = "".join(
        f'<li><a href="{address("/search", id=name, k=k, where=where)}">'
        f'<img loading="lazy" src="{address("/image", id=name)}" alt="" width="{width}" height="{height}">'
        f'<span class="name">{escape(name)}</span></a></li>'
        for name in ids
    )
    body = f"""<section><h2>Search for a person</h2>
<form class="fields" action="/search" method="post" enctype="multipart/form-data">
<label>Photographs of one person: choose files, or drop them here
<input type="file" name="image" accept="image/*" multiple required></label>
<label>Matches <input type="number" name="k" value="{k}" min="1" max="100"></label>
<input type="hidden" name="where" value="{escape(where)}"><button>Search</button></form>
<p class="note">Uploads are compared and forgotten. Or choose a photograph of the index below.</p></section>
<section><h2>Photographs of the index</h2>
<form class="fields" action="/"><label>Filter, an SQL condition
<input name="where" value="{escape(where)}" placeholder="path LIKE 'gate/%' AND time &gt; 10"></label>
<button>Filter</button></form>
<ol class="matches grid">{items}</ol>
{_pages("/", total, start, size, where=where)}</section>"""
    return shell("Photographs", body, marks)


def below_match(query: str, match: str, same: bool | None, k: int, where: str, can_explain: bool) -> str:
    """Render what a match of a search has below its distances: a link to the reasons, and the buttons to mark it.

    Args:
        query: name of the query in the index.
        match: name of the match.
        same: the mark of the pair; None if there is none.
        k: number of matches of the search.
        where: its filter.
        can_explain: True if reasons can be shown.
    """
    links = [f'<a href="{address("/search", id=match, k=k, where=where)}">search from it</a>']
    if can_explain:
        links.insert(0, f'<a href="{address("/why", query=query, match=match)}">why</a>')
    hidden = _hidden(query=query, match=match, k=k, where=where)
    buttons = "".join(
        f'<button name="same" value="{value}" aria-pressed="{str(same is state).lower()}">{text}</button>'
        for value, state, text in (("1", True, "right"), ("0", False, "wrong"))
    )
    clear = "" if same is None else '<button name="same" value="">clear</button>'
    form = f'<form class="mark" id="{anchor(match)}" action="/mark" method="post">{hidden}{buttons}{clear}</form>'
    return f"<div>{' · '.join(links)}</div>{form}"


def search(body: str, is_upload: bool, marks: int) -> str:
    """Render the result of a search."""
    note = (
        '<p class="note">The query was uploaded and is not kept. To mark matches, search from one that shows this '
        "person.</p>"
        if is_upload
        else ""
    )
    return shell("Search", body + note, marks)


def why(body: str, marks: int) -> str:
    """Render why two photographs match."""
    return shell(page.TITLE, body, marks, page.STYLE)


def marked(marks: Sequence[Mark], labelled: Labelled, present: Collection[str], start: int) -> str:
    """Render marks, the identities that follow from them, contradictions, and the link to the manifest.

    Args:
        marks: all marks.
        labelled: identities that follow.
        present: names of the photographs of the index.
        start: place of the first mark to list.
    """
    identities = {name: identity for name, identity in labelled.identities.items() if name in present}
    people, gone = len(set(identities.values())), len(labelled.identities) - len(identities)
    body = f"""<p>{_count(len(marks), "mark")}. {_count(len(identities), "photograph")} of
{_count(people, "person", "people")} have an identity, from these marks or from the index.</p>"""
    if gone:
        body += f"<p>{_count(gone, 'photograph')} with an identity left the index and the manifest.</p>"
    body += """<p><a href="/marks.csv" download>marks.csv</a>: a manifest of them, to fine-tune and to calibrate on. Two
groups count as two people there, even if nobody compared them: check that they are. Photographs that were only marked
wrong could show anyone, so they are left out.</p>"""
    if labelled.contradictions:
        groups = "".join(f"<li>{escape(', '.join(names))}</li>" for names in labelled.contradictions)
        body += f"""<section class="error"><h2>Contradictions</h2><p>Each line holds photographs that are marked both as one
person and as different people, or that have several known identities. They are left out of the manifest; clear one of
their marks.</p><ul>{groups}</ul></section>"""
    rows = "".join(_mark_row(mark, start, present) for mark in marks[start : start + _SHOWN_MARKS])
    if rows:
        body += f"<table><thead><tr><th>photograph</th><th>other</th><th>mark</th></tr></thead><tbody>{rows}</tbody></table>"
    return shell("Marks", body + _pages("/marks", len(marks), start, _SHOWN_MARKS), len(marks))


def _mark_row(mark: Mark, start: int, present: Collection[str]) -> str:
    names = (
        f'<a href="{address("/search", id=name)}">{escape(name)}</a>' if name in present else escape(name)
        for name in (mark.first, mark.second)
    )
    hidden = _hidden(query=mark.first, match=mark.second, same="", start=start)
    button = f'<form class="mark" action="/mark" method="post">{hidden}<button>clear</button></form>'
    return (
        f"<tr>{''.join(f'<td>{name}</td>' for name in names)}<td>{'right' if mark.same else 'wrong'} {button}</td></tr>"
    )


def _hidden(**values: object) -> str:
    return "".join(
        f'<input type="hidden" name="{name}" value="{escape(str(value))}">' for name, value in values.items()
    )


def _pages(path: str, total: int, start: int, size: int, **values: object) -> str:
    """Render links to the pages before and after one."""
    shown = min(size, total - start)
    links = [f"<span>{start + 1:,} to {start + shown:,} of {total:,}</span>" if shown > 0 else "<span>none</span>"]
    if start:
        links.insert(0, f'<a rel="prev" href="{address(path, start=max(start - size, 0), **values)}">Previous</a>')
    if start + size < total:
        links.append(f'<a rel="next" href="{address(path, start=start + size, **values)}">Next</a>')
    return f'<div class="pages">{"".join(links)}</div>'


def _count(number: int, one: str, several: str = "") -> str:
    return f"{number:,} {one if number == 1 else several or one + 's'}"
