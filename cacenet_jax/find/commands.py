"""--mode=index, search and group: an index kept up to date, searched and grouped from the command line."""

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from cacenet_jax import retriever
from cacenet_jax.data.image_files import IMAGE_SUFFIXES
from cacenet_jax.errors import UserError, printable
from cacenet_jax.index.groups import Groups
from cacenet_jax.index.index import Changes, Index, make_index, open_index
from cacenet_jax.index.search import SearchResult
from cacenet_jax.run.workdir import check_writable, write_file

_SHOWN = 10


def need(mode: str, **flags: Any) -> None:
    """Raise UserError if a flag that a mode needs is missing, or if there are several processes."""
    missing = [f"--{name}" for name, value in flags.items() if not value]
    if missing:
        raise UserError(f"{', '.join(missing)}: not given, expected with --mode={mode}; add {' and '.join(missing)}")
    if jax.process_count() > 1:
        raise UserError(f"--mode={mode}: found {jax.process_count()} processes, expected one; leave out --distributed")


def update(
    config: ConfigDict | None, workdir: str, images: str | None, place: str | None, approximate: bool
) -> Changes:
    """Make an index of photographs or bring it up to date, and print what changed.

    Args:
        config: config of the run in the workdir; None for an export or a published checkpoint.
        workdir: workdir, export folder or published checkpoint.
        images: folder or manifest.
        place: folder of the index.
        approximate: also build an approximate index of the embeddings, and print its recall.

    Raises:
        UserError: a flag is missing, or see `Index.update`.
    """
    need("index", images=images, index=place)
    index, changes = make_index(retriever.load(workdir, config=config), str(images), str(place))
    for name, reason in changes.broken[:_SHOWN]:
        print(f"left out {printable(name)}: {reason}", flush=True)
    if len(changes.broken) > _SHOWN:
        print(f"and {len(changes.broken) - _SHOWN} more", flush=True)
    for note in changes.notes:
        print(note, flush=True)
    counts = ", ".join(f"{getattr(changes, name):,} {name}" for name in ("added", "changed", "removed", "unchanged"))
    left_out = f", {len(changes.broken):,} left out" if changes.broken else ""
    done = changes.added + changes.changed
    rate = f" ({done / changes.seconds:.0f} images/s)" if done else ""
    print(f"{place}: {len(index):,} images; {counts}{left_out}; {changes.seconds:.1f} s{rate}", flush=True)
    if approximate:
        print(f"approximate index: finds {100 * index.build_vector_index():.1f} % of the 100 nearest", flush=True)
    return changes


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
    rerank: str, exact: bool, output: str | None,
) -> SearchResult:  # fmt: skip
    """Search an index and print the matches.

    Args:
        config: config of the run in the workdir; None for an export or a published checkpoint.
        workdir: workdir, export folder or published checkpoint.
        place: folder of the index.
        query: image, or folder of images of one person.
        k: number of matches.
        where: filter, an SQL condition on the columns.
        rerank: "none" or "k_reciprocal".
        exact: False to use the approximate index.
        output: folder for search.csv and search.json; None writes nothing.

    Raises:
        UserError: a flag is missing, or see `Index.search`.
    """
    need("search", index=place, query=query)
    if output is not None:
        check_writable(Path(output).expanduser())
    images = query_images(str(query))
    reid = retriever.load(workdir, batch_size=min(len(images), 16), config=config)
    index = open_index(reid, str(place))
    result = index.search(images, k, where=where, rerank=rerank, exact=exact)
    print(result, flush=True)
    if output is not None:
        write(result, index, Path(output).expanduser())
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


def write(result: SearchResult, index: Index, folder: Path) -> None:
    """Write search.csv and search.json."""
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
    print(f"{folder / 'search.csv'}, {folder / 'search.json'}", flush=True)


def group(
    config: ConfigDict | None, workdir: str, place: str | None, where: str | None, cut: float, output: str | None
) -> Groups:
    """Group the photographs of an index by person, and print how many people there are.

    Args:
        config: config of the run in the workdir; None for an export or a published checkpoint.
        workdir: workdir, export folder or published checkpoint.
        place: folder of the index.
        where: filter, an SQL condition on the columns.
        cut: distance at which groups are cut, see `Index.groups`.
        output: folder for groups.csv, a manifest to correct and to train on; None writes nothing.

    Raises:
        UserError: a flag is missing, or see `Index.groups`.
    """
    need("group", index=place)
    if output is not None:
        check_writable(Path(output).expanduser())
    index = open_index(retriever.load(workdir, config=config), str(place))
    groups = index.groups(where, cut)
    print(groups, flush=True)
    if output is None:
        print("--output=DIR writes groups.csv, a manifest to correct and to train on", flush=True)
        return groups
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "identity", "camera", "x1", "y1", "x2", "y2", "frame", "group"])
    rows = zip(index.rows_of(groups.ids), groups.labels.tolist())
    for row, label in sorted(rows, key=lambda pair: (pair[1], pair[0]["id"])):
        box = row["box"] or [None] * 4
        path = (index.root / row["path"]).as_posix()
        writer.writerow([path, label, row["camera"], *box, row["frame"], label])
    file = Path(output).expanduser() / "groups.csv"
    write_file(file, text.getvalue())
    print(f"{file}: a row for each photograph; correct the column identity", flush=True)
    return groups
