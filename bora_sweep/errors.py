"""The error for wrong input, and what any error message may show."""

import os
import re
from collections.abc import Sized

SECRET_NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY", re.IGNORECASE)
"""Environment variables whose values are secrets."""
SHORTEST_SECRET = 8
"""Characters. Shorter values, such as `true`, are part of ordinary words."""
URL_PASSWORD = re.compile(r"(?<=://)[^/@\s]*:[^/@\s]*(?=@)")
URL_QUERY_SECRET = re.compile(
    r"(?<=[?&])([^=&\s]*(?:token|signature|secret|password|key)[^=&\s]*)=[^&\s]+", re.IGNORECASE
)


class InputError(ValueError):
    """The user's input is wrong. The command line prints the message without a traceback and exits with 2.

    The message names the file and row, or the key, then the value, and how to mend it.
    """


def require(condition: bool, message: str) -> None:
    """Raise `InputError` with `message` unless `condition` holds."""
    if not condition:
        raise InputError(message)


def one_line(error: BaseException, limit: int = 500) -> str:
    """`Type: message` on one line of at most `limit` characters, without secrets. An `InputError` needs no type."""
    message = redact(" ".join(str(error).split())) or "no message"
    text = message if isinstance(error, InputError) else f"{type(error).__name__}: {message}"
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def redact(text: str) -> str:
    """`text` with `***` for passwords in addresses and for secrets from the environment."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST_SECRET and SECRET_NAMES.search(name):
            text = text.replace(value, "***")
    return URL_QUERY_SECRET.sub(r"\1=***", URL_PASSWORD.sub("***", text))


def and_more(names: Sized, what: str = "task") -> str:
    """What follows the first of several names in a message: " (and 2 tasks more)"; nothing for one."""
    return f" (and {plural(len(names) - 1, what)} more)" if len(names) > 1 else ""


def plural(number: int, noun: str) -> str:
    """`1 task`, `1,200 tasks`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percentage(share: float) -> str:
    """`34.5%`; `less than 0.1%` where it would round to nothing."""
    return f"{share:.1%}" if share == 0 or share >= 0.001 else "less than 0.1%"


def visible(text: str) -> str:
    """The text with control characters as escapes such as `\\x1b`, so that none of them reaches the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
