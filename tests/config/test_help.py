"""The help text of the configuration's keys."""

from bora_sweep.config import Config
from bora_sweep.config.help import describe_keys


def test_every_key_is_explained():
    lines = describe_keys(list(Config.__dataclass_fields__)).splitlines()
    assert len(lines) > 100
    unexplained = [key for key, text in zip(lines[::2], lines[1::2], strict=True) if not text.strip()]
    assert not unexplained
