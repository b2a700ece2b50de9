"""An index made, brought up to date or opened at a place."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from cacenet_jax import __version__
from cacenet_jax.data.photographs import KNOWN, list_photographs
from cacenet_jax.distributed import processes
from cacenet_jax.errors import UserError
from cacenet_jax.index.index import Index
from cacenet_jax.index.stored_terms import layout_of
from cacenet_jax.index.table import NAME, Table, locked
from cacenet_jax.index.update import Changes, update

if TYPE_CHECKING:
    from cacenet_jax.retriever import Retriever


def make_index(
    reid: "Retriever", images: str | os.PathLike[str], place: str | os.PathLike[str]
) -> tuple[Index, Changes]:
    """Make an index of photographs, or update one. Of several processes, each embeds its share.

    Args:
        reid: network.
        images: folder, with its subfolders, or manifest.
        place: folder of the index, made if it is missing, or a URI that LanceDB knows.

    Raises:
        UserError: see `Index.update`; or the index is one of another network.
    """
    name, listed = _name(place), None
    with processes.writer_first("index opened"):
        table = Table.open(name)
        if table is None:
            _check_new(name)
            listed = list_photographs(images)
            settings = {
                "package": __version__, "network": reid.network.fingerprint, "embedding_size": reid.embedding_size,
                "image_size": list(reid.image_size), "terms": layout_of(reid.terms_like),
                "root": str(listed.root.resolve()),
            }  # fmt: skip
            names = dict.fromkeys([*KNOWN, *(name for row in listed.rows for name in row.columns)])
            with locked(name):  # another command may have made it meanwhile
                columns = {n: [row.columns.get(n) for row in listed.rows] for n in names}
                table = Table.open(name)
                if table is None:
                    table = Table.create(name, settings, columns)
        index = Index(reid, table)
    with locked(name):
        return index, update(reid, table, list_photographs(images) if listed is None else listed)


def _check_new(place: str) -> None:
    """Raise UserError if a folder holds anything else, which an index must not be mixed with."""
    if "://" in place or not Path(place).exists():
        return
    if not Path(place).is_dir() or set(os.listdir(place)) - {".lock", f"{NAME}.lance"}:  # an interrupted creation
        raise UserError(
            f"--index={place}: found something else there, expected an index or nothing; choose another --index"
        )


def open_index(reid: "Retriever", place: str | os.PathLike[str]) -> Index:
    """Open an index.

    Raises:
        UserError: there is none, or it is one of another network.
    """
    name = _name(place)
    table = Table.open(name)
    if table is None:
        raise UserError(f"--index={name}: found no index, expected one; make it with --mode=index --images=FOLDER")
    return Index(reid, table)


def _name(place: str | os.PathLike[str]) -> str:
    return str(place) if "://" in str(place) else str(Path(place).expanduser())
