"""Templates of text around a document, with placeholders in braces as in Python's `str.format`."""

from string import Formatter

from bora_sweep.errors import InputError, require


def check_template(template: str, key: str) -> list[str]:
    """The placeholders of `template`, in order: `{task}`, `{text}`, and columns of a row.

    Args:
        template: Text with `{name}` for a placeholder, and `{{` and `}}` for braces.
        key: The configuration key that it was given for.

    Raises:
        InputError: A placeholder is not a plain name, or a brace is part of none.
    """
    allowed = "{task} is the task's name, another name a column of the row, and {{ or }} is a brace itself"
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise InputError(f"{key}={template!r}: {error}; {allowed}") from None
    placeholders = [name for _, name, *_ in parts if name is not None]
    for _, name, form, conversion in parts:
        is_plain = name is None or (name.strip() == name != "" and not form and not conversion and "{" not in name)
        require(is_plain, f"{key}={template!r}: {{{name}}} is no placeholder; {allowed}")
    literal = "".join(text if name is None else f"{text} " for text, name, *_ in parts)
    for name in ("task", "text"):
        require(f"{{{name}}}" not in literal, f"{key}={template!r}: write {{{name}}} with one brace on each side")
    return placeholders
