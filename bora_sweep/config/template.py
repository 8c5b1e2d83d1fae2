"""Templates of text around a document, with placeholders in braces as in Python's `str.format`."""

from collections.abc import Collection
from string import Formatter

from bora_sweep.errors import InputError, require


def check_template(template: str, key: str, names: Collection[str]) -> list[str]:
    """The placeholders of `template`, in order.

    Args:
        template: Text with `{name}` for a placeholder, and `{{` and `}}` for braces.
        key: The configuration key that it was given for.
        names: The placeholders that are allowed.

    Raises:
        InputError: It has another placeholder, or a brace that is neither.
    """
    allowed = f"there is {' and '.join(f'{{{name}}}' for name in names)}, and {{{{ or }}}} is a brace itself"
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise InputError(f"{key}={template!r}: {error}; {allowed}") from None
    placeholders = []
    for _, name, form, conversion in parts:
        if name is not None:
            is_known = name in names and not form and not conversion
            require(is_known, f"{key}={template!r}: has no placeholder {{{name}}}; {allowed}")
            placeholders.append(name)
    literal = template.format(**dict.fromkeys(names, " "))
    for name in names:
        require(f"{{{name}}}" not in literal, f"{key}={template!r}: write {{{name}}} with one brace on each side")
    return placeholders
