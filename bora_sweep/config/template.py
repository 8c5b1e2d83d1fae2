"""Words around a document's text: braces are as in Python's `str.format`, which fills them in."""

from collections.abc import Collection
from string import Formatter

from bora_sweep.config.bounds import need
from bora_sweep.errors import InputError


def check_template(words: str, key: str, names: Collection[str]) -> list[str]:
    """The placeholders of `words` in their order.

    Args:
        words: A template: `{name}` for what is filled in, `{{` and `}}` for braces themselves.
        key: That it was given for.
        names: Of the placeholders that there are.

    Raises:
        InputError: It has others, or braces that are neither.
    """
    there_are = f"there is {' and '.join(f'{{{name}}}' for name in names)}, and {{{{ or }}}} is a brace itself"
    try:
        parts = list(Formatter().parse(words))
    except ValueError as error:
        raise InputError(f"{key}={words!r}: {error}; {there_are}") from None
    found = []
    for _, name, form, conversion in parts:
        if name is not None:
            is_known = name in names and not form and not conversion
            need(is_known, f"{key}={words!r}: has no placeholder {{{name}}}; {there_are}")
            found.append(name)
    literal = words.format(**dict.fromkeys(names, " "))
    for name in names:
        need(f"{{{name}}}" not in literal, f"{key}={words!r}: write {{{name}}} with one brace on each side")
    return found
