"""The one error type for mistakes that a user can correct."""


class UserError(ValueError):
    """A mistake in the input: a file, a field or a value.

    The message is one line that names the file or field, what was found, what was expected and what to do. The
    command line prints it without a traceback and exits with code 2.
    """
