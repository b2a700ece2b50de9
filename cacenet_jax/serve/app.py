"""The application of `--mode=serve`.

| route | response |
|---|---|
| GET / | photographs of the index, filtered by `where`, from `start` |
| GET /image?id= | a small picture of one |
| GET /search?id= | its matches: `k` of those that `where` leaves |
| POST /search | matches of uploaded images, which are not kept |
| GET /why?query=&match= | distances, probability and reasons for two photographs |
| POST /mark | marks a pair, and returns to the search |
| GET /marks, /marks.csv | all marks, and the manifest that follows from them |

Photographs are named by their ids in the index, never by paths, so nothing else can be read.
"""

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartParser
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from cacenet_jax.data.image_files import MAX_PIXELS, ImageError, rgb
from cacenet_jax.data.images import ListedImages, batches
from cacenet_jax.decide import compare, page
from cacenet_jax.errors import UserError, printable
from cacenet_jax.find.manifest import manifest
from cacenet_jax.find.pages import search_body, thumbnail
from cacenet_jax.find.search import draw_reasons
from cacenet_jax.index.index import Index
from cacenet_jax.index.marks import identities
from cacenet_jax.index.search import SearchMatch
from cacenet_jax.serve import views
from cacenet_jax.serve.guard import MAX_BODY, Guard
from cacenet_jax.visualize import why

_K, _MOST_K = 20, 100
_ON_A_PAGE = 60
_MOST_IMAGES = 10  # of one query
_REASONS = 4  # for an uploaded query, whose pairs cannot be asked for later
_DECODING = 4  # images of the index that are decoded at a time


class App:
    """Handlers of the routes, for one index."""

    def __init__(self, index: Index):
        """Serve an index."""
        self._index = index
        self._computing = threading.Lock()  # one search or drawing at a time; the others wait
        self._decoding = threading.BoundedSemaphore(_DECODING)
        self._ids = functools.lru_cache(maxsize=8)(self._read_ids)

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/", self.photographs), Route("/image", self.image), Route("/search", self.search),
            Route("/search", self.upload, methods=["POST"]), Route("/why", self.why),
            Route("/mark", self.mark, methods=["POST"]), Route("/marks", self.marks), Route("/marks.csv", self.manifest),
        ]  # fmt: skip

    def photographs(self, request: Request) -> Response:
        """GET /: a page of photographs, with the forms."""
        where, start = _text(request.query_params, "where"), _number(request.query_params, "start", 0, 0, 10**9)
        ids = self._ids(self._index.version, where)
        shown = ids[start : start + _ON_A_PAGE]
        return _html(views.photographs(shown, len(ids), start, _ON_A_PAGE, where, _K, self._count()))

    def image(self, request: Request) -> Response:
        """GET /image: a small picture of a photograph."""
        pixels = self._pixels(self._known(request.query_params, "id"))
        return Response(thumbnail(pixels), 200, {"Cache-Control": "private, max-age=60"}, "image/webp")

    def search(self, request: Request) -> Response:
        """GET /search: matches of a photograph of the index."""
        name, k, where = self._known(request.query_params, "id"), *_options(request.query_params)
        pixels, marks = self._pixels(name), self._index.marks.of(name)
        explains = self._index.reid.network.net is not None and bool(self._index.reid.top_k)
        identity = self._index.rows_of([name])[0]["identity"]

        def below(match: SearchMatch) -> str:
            if match.id == name:
                return ""
            return views.below_match(name, match.id, marks.get(match.id), k, where, explains)

        with self._computing:
            result = self._index.search(pixels, k, where=where or None)
        known = None if identity is None else str(identity)
        body = search_body(result, self._index, [(name, pixels)], known, {name}, below=below)
        return _html(views.search(body, False, self._count()))

    async def upload(self, request: Request) -> Response:
        """POST /search: matches of uploaded images."""
        async with request.form(max_files=_MOST_IMAGES, max_fields=10) as form:
            files = [file for file in form.getlist("image") if isinstance(file, UploadFile) and file.filename]
            images = [(printable(str(file.filename), 100), await file.read()) for file in files]
        if not images:
            raise UserError("image: found no file, expected one or several of one person; choose some")
        k, where = _options(form)
        return await run_in_threadpool(self._search_uploaded, images, k, where)

    def _search_uploaded(self, images: Sequence[tuple[str, bytes]], k: int, where: str) -> Response:
        with self._computing:  # decoded images are large
            shown = _decode(images)
            result = self._index.search([pixels for _, pixels in shown], k, where=where or None)
            reasons = draw_reasons(result, self._index, shown[0][1], _REASONS)
        return _html(views.search(search_body(result, self._index, shown, reasons=reasons), True, self._count()))

    def why(self, request: Request) -> Response:
        """GET /why: distances, probability and reasons for two photographs."""
        names = [self._known(request.query_params, name) for name in ("query", "match")]
        images = [self._pixels(name) for name in names]
        reid = self._index.reid
        with self._computing:
            comparison = reid.compare(images[0], images[1])
            pixels_2HW3 = next(batches(ListedImages(images, names), reid.image_size, 2))
            drawn = why.draw(reid, pixels_2HW3)
        rows, verdict = compare.table(comparison, reid.calibration), compare.verdict(comparison, reid.calibration)
        return _html(views.why(page.body(names, pixels_2HW3, rows, verdict, drawn), self._count()))

    async def mark(self, request: Request) -> Response:
        """POST /mark: marks a pair as right (same=1) or wrong (same=0), or clears its mark (same empty)."""
        form = await request.form(max_files=0, max_fields=10)
        state = {"1": True, "0": False, "": None}
        if form.get("same") not in state:
            raise UserError("same: found another value, expected 1, 0 or nothing; use the buttons")
        k, where = _options(form)
        return await run_in_threadpool(self._mark, form, state[str(form["same"])], k, where)

    def _mark(self, form: Any, same: bool | None, k: int, where: str) -> Response:
        if same is None:  # also of photographs that are no longer there
            query, match = (_text(form, name) for name in ("query", "match"))
        else:
            query, match = (self._known(form, name) for name in ("query", "match"))
        if query == match:
            raise UserError("match: found the query itself, expected another photograph; mark another one")
        self._index.marks.set(query, match, same)
        if "start" in form:  # from the page of the marks
            return RedirectResponse(views.link("/marks", start=_number(form, "start", 0, 0, 10**9)), 303)
        return RedirectResponse(f"{views.link('/search', id=query, k=k, where=where)}#{views.anchor(match)}", 303)

    def marks(self, request: Request) -> Response:
        """GET /marks: all marks, and what follows from them."""
        marks = self._index.marks.all()
        present, start = set(self._ids(self._index.version, "")), _number(request.query_params, "start", 0, 0, 10**9)
        return _html(views.marked(marks, identities(marks, self._identities()), present, start))

    def manifest(self, request: Request) -> Response:
        """GET /marks.csv: a manifest of the photographs of the index that have an identity."""
        labelled = identities(self._index.marks.all(), self._identities())
        has = set(self._ids(self._index.version, ""))
        present = {name: identity for name, identity in labelled.identities.items() if name in has}
        headers = {"Content-Disposition": 'attachment; filename="marks.csv"', "Cache-Control": "no-store"}
        return Response(manifest(self._index, present), 200, headers, "text/csv")

    def _read_ids(self, version: int, where: str) -> list[str]:
        return self._index.images(where or None, ["id"])["id"].to_pylist()

    def _identities(self) -> dict[str, str]:
        rows = self._index.images("identity IS NOT NULL", ["id", "identity"]).to_pylist()
        return {row["id"]: str(row["identity"]) for row in rows}

    def _count(self) -> int:
        return len(self._index.marks)

    def _known(self, values: Any, name: str) -> str:
        """Return the value of a field that names a photograph of the index."""
        value = _text(values, name)
        if not self._index.has(value):
            raise HTTPException(404, f"{name}: found {printable(value, 200)!r}, expected a photograph of the index")
        return value

    def _pixels(self, name: str) -> np.ndarray:
        with self._decoding:
            return np.asarray(self._index.read_image(name))


def build(index: Index, hosts: Sequence[str]) -> Starlette:
    """Return the application for an index.

    Args:
        index: index to serve.
        hosts: names of this machine that requests may use besides its addresses; see `Guard`.
    """
    MultiPartParser.spool_max_size = MAX_BODY  # uploads are never written to a disk
    app = App(index)

    def refused(status: Callable[[Exception], int]) -> Callable[[Request, Exception], Response]:
        def answer(request: Request, error: Exception) -> Response:
            return _html(views.error(getattr(error, "detail", None) or str(error), app._count()), status(error))

        return answer

    return Starlette(
        routes=app.routes(),
        middleware=[Middleware(Guard, hosts=hosts)],
        exception_handlers={
            HTTPException: refused(lambda error: getattr(error, "status_code", 400)), UserError: refused(lambda _: 400)
        },
    )  # fmt: skip


def _html(text: str, status: int = 200) -> HTMLResponse:
    return HTMLResponse(text.encode("utf-8", "replace"), status, {"Cache-Control": "no-store"})


def _text(values: Any, name: str) -> str:
    value = values.get(name) or ""
    if not isinstance(value, str):
        raise UserError(f"{name}: found a file, expected text; use the form")
    return value


def _number(values: Any, name: str, default: int, low: int, high: int) -> int:
    text = _text(values, name) or str(default)
    if not (text.isascii() and text.isdecimal() and len(text) < 12 and low <= int(text) <= high):
        raise UserError(f"{name}: found {printable(text, 50)!r}, expected a number from {low} to {high:,}; correct it")
    return int(text)


def _options(values: Any) -> tuple[int, str]:
    """Return number of matches and filter."""
    return _number(values, "k", _K, 1, _MOST_K), _text(values, "where")


def _decode(images: Sequence[tuple[str, bytes]]) -> list[tuple[str, np.ndarray]]:
    """Decode uploaded images, together at most as large as one image may be."""
    decoded, total = [], 0
    for name, encoded in images:
        try:
            pixels = rgb(encoded)
        except ImageError as error:
            raise UserError(f"{name}: {error}") from error
        total += pixels.shape[0] * pixels.shape[1]
        if total > MAX_PIXELS:
            raise UserError(
                f"image: found images of more than {MAX_PIXELS:,} pixels together, expected fewer; scale them down"
            )
        decoded.append((name, pixels))
    return decoded
