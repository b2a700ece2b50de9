"""Error type for mistakes that the user can correct."""


class UserError(ValueError):
    """An error in user input, such as a file, a config field or a value.

    The message is one line: the file or field, the actual value, the expected value and the remedy. The command line
    prints it without a traceback and exits with code 2.
    """
