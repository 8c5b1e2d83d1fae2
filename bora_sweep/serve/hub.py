"""Uploads an export to the Hugging Face hub, as a new repository that is private unless asked otherwise.

The token is that of the login (`hf auth login`, or HF_TOKEN). It is handed to nobody else and never shown.
"""

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,  # type: ignore[reportPrivateImportUsage], of whichever client the hub's own uses
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from bora_sweep.data.known_documents import DOCUMENTS
from bora_sweep.errors import InputError, one_line, redact

OF_THE_HUB = {".gitattributes"}
"""Files that a new repository has."""
REFUSALS = (HTTPError, OfflineModeIsEnabled, OSError, ValueError)


@dataclass(frozen=True)
class Repository:
    """A repository of the hub that an export may be uploaded to."""

    name: str
    """OWNER/NAME."""
    public: bool

    def upload(self, out: Path) -> None:
        """Create the repository and upload a finished export, without the fingerprints of the run's documents.

        Raises:
            InputError: The hub refuses it, or is not reached; the export stays.
        """
        again = f"hf upload {self.name} {shlex.quote(str(out))} . --exclude '*{DOCUMENTS}'"
        again += "" if self.public else " --private"
        with _refusals(self.name, f"{out} is written; upload it by `{again}`"):
            api = HfApi()
            api.create_repo(self.name, private=not self.public, exist_ok=True)
            api.upload_folder(
                repo_id=self.name,
                folder_path=out,
                ignore_patterns=[DOCUMENTS, f"*/{DOCUMENTS}"],
                commit_message="Adapters by bora_sweep",
            )


def open_repository(name: str | None, *, public: bool) -> Repository | None:
    """The repository that `--push` names, checked before anything is written; None without.

    Raises:
        InputError: The name has another form, nobody is logged in, or the repository is there already and not empty or
            not private.
    """
    if name is None:
        if public:
            raise InputError("--public: goes with --push OWNER/NAME")
        return None
    if not re.fullmatch(r"[^/\s]+/[^/\s]+", name) or not _is_repo_id(name):
        raise InputError(f"--push {name}: need OWNER/NAME of letters, digits and -_. as on the hub")
    if get_token() is None:
        raise InputError(f"--push {name}: nobody is logged in to the hub; run `hf auth login`, or set HF_TOKEN")
    with _refusals(name, "nothing is written"):
        api = HfApi()
        api.whoami()
        try:
            found = api.model_info(name)
        except RepositoryNotFoundError:
            return Repository(name, public)
    if not found.private and not public:
        raise InputError(f"--push {name}: is there already and public; give a new name, or --public")
    if {file.rfilename for file in found.siblings or ()} - OF_THE_HUB:
        raise InputError(f"--push {name}: is there already and not empty; give a new name")
    return Repository(name, public)


def _is_repo_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


@contextmanager
def _refusals(name: str, then: str) -> Iterator[None]:
    """Within, what the hub refuses becomes an InputError of one line, without the token."""
    try:
        yield
    except InputError:
        raise
    except REFUSALS as error:
        token = get_token()
        message = one_line(error, limit=300)
        message = message.replace(token, "***") if token else message
        raise InputError(f"--push {name}: the hub does not take it ({redact(message)}); {then}") from None
