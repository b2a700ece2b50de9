"""--mode=search: a person searched for in an index."""

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cacenet_jax import retriever
from cacenet_jax.data.image_files import IMAGE_SUFFIXES
from cacenet_jax.data.images import ListedImages, batches
from cacenet_jax.errors import UserError, printable
from cacenet_jax.find.flags import need
from cacenet_jax.find.pages import search_page
from cacenet_jax.index.index import Index
from cacenet_jax.index.opening import open_index
from cacenet_jax.index.search import SearchResult
from cacenet_jax.retriever import ImageLike
from cacenet_jax.run.workdir import check_writable, write_file
from cacenet_jax.visualize import why


def query_images(query: str) -> list[Path]:
    """Return the image of a path, or those of a folder, which show one person.

    Raises:
        UserError: there is neither, or the folder holds no images.
    """
    path = Path(query).expanduser()
    if not path.is_dir():
        return [path]
    images = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    if not images:
        raise UserError(
            f"--query={printable(query)}: found no images ({', '.join(IMAGE_SUFFIXES)}), expected some of one person; "
            "correct the path"
        )
    return images


def search(
    config: ConfigDict | None, workdir: str, place: str | None, query: str | None, k: int, where: str | None,
    rerank: str, exact: bool, output: str | None, reasons: int = 8, prior: float | None = None,
) -> SearchResult:  # fmt: skip
    """Search an index and print the matches.

    Args:
        config: config of the run in the workdir; None for an export or a published checkpoint.
        workdir: workdir, export folder or published checkpoint.
        place: folder of the index.
        query: image, folder of images of one person, or name of an image of the index.
        k: number of matches.
        where: filter, an SQL condition on the columns.
        rerank: "none" or "k_reciprocal".
        exact: False to use the approximate index.
        output: folder for search.html, search.csv and search.json; None writes nothing.
        reasons: number of re-scored matches for which search.html shows why.
        prior: share of matching images that probabilities assume; that of the calibration if None.

    Raises:
        UserError: a flag is missing or wrong, or see `Index.search`.
    """
    need("search", index=place, query=query)
    if reasons < 0:
        raise UserError(f"--reasons: found {reasons}, expected 0 or more; raise it")
    if output is not None:
        check_writable(Path(output).expanduser())
    images = query_images(str(query))
    reid = retriever.load(workdir, batch_size=min(len(images), 16), config=config)
    index = open_index(reid, str(place))
    images = [path if path.exists() or not (index.root / path).is_file() else index.root / path for path in images]
    result = index.search(images, k, where=where, rerank=rerank, exact=exact, prior=prior)
    print(result, flush=True)
    if output is not None:
        write(result, index, images, Path(output).expanduser(), reasons)
    return result


def as_rows(result: SearchResult, index: Index) -> list[dict[str, Any]]:
    """Return the matches as flat dictionaries of numbers and texts; NaN becomes None."""
    rows = []
    for rank, match in enumerate(result, start=1):
        numbers = {name: getattr(match, name) for name in ("individual", "pair", "mixed", "reranked", "probability")}
        plain = {name: None if x is None or math.isnan(x) else x for name, x in numbers.items()}
        file = str(index.root / match.row["path"])
        rows.append({"rank": rank, "id": match.id, **plain, "file": file, **match.row})
    return rows


def draw_reasons(result: SearchResult, index: Index, query: ImageLike, count: int) -> dict[str, why.Why]:
    """Draw why the query resembles each of its best re-scored matches, by name."""
    reasons: dict[str, why.Why] = {}
    for match in result:
        if len(reasons) == count or (math.isnan(match.pair) and reasons):
            break
        try:
            listed = ListedImages.of([query, index.read_image(match.id)], "image")
        except UserError:  # its file is gone, which the page says
            continue
        reasons[match.id] = why.draw(index.reid, next(batches(listed, index.reid.image_size, 2)))
        if reasons[match.id].lines_png is None:  # nothing can be drawn, which holds for all
            break
    return reasons


def write(result: SearchResult, index: Index, query: Sequence[Path], folder: Path, reasons: int) -> None:
    """Write search.csv, search.json and search.html."""
    rows = as_rows(result, index)
    names = list(rows[0]) if rows else ["rank", "id"]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        box = row["box"] and ",".join(map(str, row["box"]))
        writer.writerow({**row, "box": box})
    write_file(folder / "search.csv", text.getvalue())
    whole = {"query": list(result.query), "unknown": result.unknown, "searched": result.searched, "matches": rows}
    write_file(folder / "search.json", json.dumps(whole, indent=2) + "\n")
    own = index.rows_of(sorted(result.itself))
    identities = {row["identity"] for row in own}
    known = (
        str(identities.pop()) if len(own) == len(query) and len(identities) == 1 and None not in identities else None
    )
    drawn = draw_reasons(result, index, query[0], reasons)
    page = search_page(result, index, query, known, result.itself, drawn)
    write_file(folder / "search.html", page)
    print(f"{folder / 'search.html'}: {len(page) / 1024:.0f} KiB, self-contained; search.csv, search.json", flush=True)
