"""The one exception that means: what the user gave is wrong, and here is how to mend it."""


class InputError(ValueError):
    """Wrong input from the user: the command line prints it alone, without a traceback, and exits with 2.

    The message names the file, the row or key, the value, and the mend.
    """


def one_line(error: BaseException, limit: int = 500) -> str:
    """`Type: first line of the message`, for a table cell; `InputError` speaks for itself and goes without its type."""
    text = " ".join(str(error).split()) or "no message"
    named = text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"
    return named if len(named) <= limit else f"{named[: limit - 1]}…"
