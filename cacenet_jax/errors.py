"""Error types for mistakes and obstacles that the user can correct, file names in messages, and lines on stderr."""

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence

_MAX_MISTAKES = 10  # told together
# Refusals of the file system, by any library. Other OSErrors, such as lost connections, are not about a folder.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_REFUSALS = (*_FULL, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ESTALE)
_NAMED = {os.strerror(number): number for number in (*_FULL, errno.EACCES, errno.EIO)}


class UserError(ValueError):
    """An error in user input, such as a file, a config field or a value.

    The message is one line: the file or field, the actual value, the expected value and the remedy. The command line
    prints it without a traceback and exits with code 2.
    """


def printable(text: str, length: int = 0) -> str:
    """Return a name as one line that any terminal shows.

    Args:
        text: name of a file or in a file. Bytes that are not UTF-8 and control characters are escaped.
        length: number of characters to which the name is shortened, 0 for all.
    """
    text = text if not length or len(text) <= length else text[: length - 1] + "\u2026"
    if text.isprintable():
        return text
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def print_line(line: object) -> None:
    """Print a line to stderr with its end in one write, because the thread that obeys signals prints too."""
    print(f"{line}\n", end="", file=sys.stderr, flush=True)


class WriteError(UserError):
    """Error for a folder whose file system refuses to write, such as a full disk."""


def refusal(error: BaseException) -> int | None:
    """Return the errno with which a file system refused a file, or None for any other error.

    Libraries in C++ raise errors of their own, with the text of the errno in the message.
    """
    if isinstance(error, OSError):
        return error.errno if error.errno in _REFUSALS else None
    text = str(error)
    return next((number for name, number in _NAMED.items() if name in text), None)


def cannot_write(folder: str | os.PathLike[str], number: int, kept: str = "") -> WriteError:
    """Return the error for a folder that cannot be written.

    Args:
        folder: the folder.
        number: errno.
        kept: clause on what is intact.
    """
    verb = "written" if number in _FULL else "read or written"
    kept = f"{kept}; " if kept else ""
    return WriteError(
        f"{os.fspath(folder)}: files cannot be {verb} ({os.strerror(number).lower()}), expected a folder with free space "
        f"and write permission; {kept}correct that, then start the same command again"
    )


@contextlib.contextmanager
def writing(folder: str | os.PathLike[str], kept: Callable[[], str] = str) -> Iterator[None]:
    """Turn a refusal of the file system into a WriteError.

    Args:
        folder: folder that the block writes to, for an error that does not name its file.
        kept: function that returns a clause on what is intact.

    Raises:
        WriteError: a file could not be read or written.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = refusal(error)
        if number is None:
            raise
        file = getattr(error, "filename", None)
        raise cannot_write(
            os.path.dirname(file) or folder if isinstance(file, str) else folder, number, kept()
        ) from error


def raise_together(mistakes: Sequence[str]) -> None:
    """If there are any mistakes, raise UserError with one line for each of the first ten."""
    if mistakes:
        more = [f"and {len(mistakes) - _MAX_MISTAKES:,} more"] if len(mistakes) > _MAX_MISTAKES else []
        raise UserError("\n".join([*mistakes[:_MAX_MISTAKES], *more]))
