"""Error type for mistakes that the user can correct, and file names in its messages."""


class UserError(ValueError):
    """An error in user input, such as a file, a config field or a value.

    The message is one line: the file or field, the actual value, the expected value and the remedy. The command line
    prints it without a traceback and exits with code 2.
    """


def printable(text: str) -> str:
    """Return a file name in one line that any terminal shows; bytes that are not UTF-8 and control characters escaped."""
    if text.isprintable():
        return text
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
