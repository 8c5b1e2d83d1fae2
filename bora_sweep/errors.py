"""The one exception that means: what the user gave is wrong, and here is how to mend it; and what errors may say."""

import os
import re

SECRET_NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY", re.IGNORECASE)
IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]*:[^/@\s]*(?=@)")
IN_QUERY = re.compile(r"(?<=[?&])([^=&\s]*(?:token|signature|secret|password|key)[^=&\s]*)=[^&\s]+", re.IGNORECASE)
SHORTEST_SECRET = 8  # characters; shorter values, such as `true`, are in many a word


class InputError(ValueError):
    """Wrong input from the user: the command line prints it alone, without a traceback, and exits with 2.

    The message names the file, the row or key, the value, and the mend.
    """


def one_line(error: BaseException, limit: int = 500) -> str:
    """`Type: first line of the message`, for a table cell; `InputError` speaks for itself and goes without its type."""
    text = redact(" ".join(str(error).split())) or "no message"
    named = text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"
    return named if len(named) <= limit else f"{named[: limit - 1]}…"


def redact(text: str) -> str:
    """`text` without the passwords of addresses and the values of secrets in the environment."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST_SECRET and SECRET_NAMES.search(name):
            text = text.replace(value, "***")
    return IN_QUERY.sub(r"\1=***", IN_ADDRESS.sub("***", text))


def plural(number: int, noun: str) -> str:
    """`1 task`, `1,200 tasks`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
