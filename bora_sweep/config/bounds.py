"""How a value out of bounds is refused."""

from bora_sweep.errors import InputError


def need(condition: bool, message: str) -> None:
    """Raise `InputError` with `message` unless `condition` holds."""
    if not condition:
        raise InputError(message)
