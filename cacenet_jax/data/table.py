"""Tables of a user's own images, as people, spreadsheets and programs write them: a first line of names, then rows."""

import codecs
import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cacenet_jax.errors import UserError, printable, raise_together

_SEPARATORS = (",", ";", "\t", "|")


class Row(NamedTuple):
    """Row of a table.

    Attributes:
        line: number of its line in the file.
        cells: text by column, without spaces around it.
    """

    line: int
    cells: Mapping[str, str]


def read_text(path: str | os.PathLike[str], where: str, expected: str) -> str:
    """Read a text file in UTF-8, or in UTF-16 if it has a byte order mark.

    Args:
        path: path of the file.
        where: flag and file, for error messages.
        expected: description of the file, for error messages.

    Raises:
        UserError: the file cannot be read or has another encoding.
    """
    try:
        with open(path, "rb") as file:
            return decode_text(file.read())
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"{where}: cannot be read ({reason}), expected {expected}; correct it") from error


def decode_text(content: bytes) -> str:
    """Decode UTF-8, or UTF-16 with a byte order mark.

    Raises:
        UnicodeDecodeError: the encoding is another one.
    """
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if is_utf16 else "utf-8-sig")


def parse(
    text: str, where: str, required: Sequence[str], expected: str, aliases: Mapping[str, str]
) -> tuple[list[str], list[Row]]:
    """Parse a table whose cells are separated by commas, semicolons, tabs or bars.

    Args:
        text: contents of the file; a first line such as sep=; is skipped.
        where: file, for error messages.
        required: columns that must be there.
        expected: the columns, for error messages.
        aliases: other names of columns.

    Returns:
        names of the columns, in small letters, and the rows that are not empty.

    Raises:
        UserError: a column is missing or occurs twice, or rows have other numbers of cells, which are listed.
    """
    skipped = 0
    if re.match(r"sep=.\r?\n", text):  # written by Excel
        text, skipped = text.split("\n", 1)[1], 1
    header = text.split("\n", 1)[0].strip()
    separator = max(_SEPARATORS, key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    try:
        names = [cell.strip().lower() for cell in next(reader, ())]
        while names and not names[-1]:
            names.pop()
        columns = [aliases.get(name, name) for name in names]
        _check_columns(columns, header, where, required, expected)
        rows = [(reader.line_num + skipped, [cell.strip() for cell in row]) for row in reader if any(row)]
    except csv.Error as error:
        raise UserError(f"{where} line {reader.line_num + skipped}: {error}; correct the line") from error
    raise_together(
        [f"{where} line {line}: {mistake}" for line, row in rows if (mistake := _length_error(row, columns))]
    )
    return columns, [Row(line, dict(zip(columns, row))) for line, row in rows]


def whole_number(cells: Mapping[str, str], column: str) -> int | None:
    """Return a whole number from 0, or None if there is no such column or its cell is empty.

    Raises:
        ValueError: the cell holds something else.
    """
    cell = cells.get(column, "")
    if not cell:
        return None
    number = float(cell) if cell.replace(".", "", 1).replace("-", "", 1).isdigit() else -1.0
    if number < 0 or number != int(number):
        raise ValueError(f"found {column} {cell!r}, expected a whole number from 0; correct it")
    return int(number)


def box(cells: Mapping[str, str]) -> tuple[int, int, int, int] | None:
    """Return the box (x1, y1, x2, y2) in the columns x1, y1, x2 and y2 or in the column box, or None.

    Raises:
        ValueError: the cells hold something else.
    """
    corners = cells.get("box", "").replace(";", ",").strip("[]() ").split(",") if cells.get("box") else [
        cells[name] for name in ("x1", "y1", "x2", "y2") if cells.get(name)
    ]  # fmt: skip
    if not corners:
        return None
    try:
        left, top, right, bottom = (round(float(cell)) for cell in corners)
    except (ValueError, OverflowError):
        raise ValueError(
            f"found a box of {', '.join(corners)!r}, expected x1, y1, x2, y2 in pixels; correct it"
        ) from None
    if left >= right or top >= bottom:
        raise ValueError(f"found the box {left},{top},{right},{bottom}, expected x1 < x2 and y1 < y2; correct it")
    return left, top, right, bottom


def _check_columns(columns: Sequence[str], header: str, where: str, required: Sequence[str], expected: str) -> None:
    if missing := [column for column in required if column not in columns]:
        raise UserError(
            f"{where}: found {printable(header, 200) or 'nothing'} in the first line, without {' and '.join(missing)}, "
            f"expected {expected}, separated by commas, semicolons, tabs or |; correct the first line"
        )
    if twice := [column for column in required if columns.count(column) > 1]:
        raise UserError(f"{where}: found the column {twice[0]} twice, expected it once; rename one")


def _length_error(row: Sequence[str], columns: Sequence[str]) -> str:
    """Return the mistake in the number of cells, or an empty string."""
    if len(row) < len(columns):
        missing = columns[len(row) :]
        return (
            f"found {len(row)} cells, expected {len(columns)}: {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing; fill in the line"
        )
    if any(row[len(columns) :]):
        return f"found {len(row)} cells, expected {len(columns)}; quote cells that contain the separator"
    return ""
