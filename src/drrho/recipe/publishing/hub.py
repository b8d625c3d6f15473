"""Exported models on the Hugging Face Hub, through huggingface_hub."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drrho.runtime.errors import without_secrets
from drrho.runtime.optional import import_optional

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


class PushError(OSError):
    """Error: a model could not be pushed; what was exported is whole."""


def require_repository(name: str) -> None:
    """Raise ValueError where a name is none of a repository."""
    if not REPOSITORY.fullmatch(name):
        raise ValueError(
            f"push = {name!r} must be OWNER/NAME, a repository of the Hugging Face Hub"
        )


def push_folder(folder: Path, repository: str, *, files: Sequence[str], public: bool) -> str:
    """Upload files of a folder into a repository of models, which is made if need be.

    It is one commit: the repository has all of the files or none. Whoever is logged in (`hf auth
    login`, or HF_TOKEN) pushes; the token is in no message.

    Args:
        files: names of the files, in the folder; no other is uploaded.
        public: whether a repository that is made is public.

    Returns:
        Address of the repository.

    Raises:
        PushError: it could not be pushed.
        ModuleNotFoundError: huggingface_hub is not installed.
    """
    hub: Any = import_optional("huggingface_hub", user="pushed models", extra="clip")
    try:
        api = hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        made = api.create_repo(repository, repo_type="model", private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=str(folder),
            allow_patterns=list(files),
            commit_message="drrho export",
        )
    except Exception as error:  # of another program, in any kind
        reason = _without_token(str(error).strip().partition("\n")[0] or repr(error), hub)
        raise PushError(
            f"{folder} could not be pushed to {repository}: {reason}. It is whole; log in with "
            "`hf auth login`, or set HF_TOKEN, and run the same command again"
        ) from None
    return str(made)


def _without_token(text: str, hub: Any) -> str:
    token = os.environ.get("HF_TOKEN") or hub.get_token()
    return without_secrets(text.replace(token, "...") if token else text)
