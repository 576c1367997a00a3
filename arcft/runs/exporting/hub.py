"""Uploading an exported folder to a hub."""

from __future__ import annotations

from pathlib import Path

import httpx
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from arcft.errors import ArcftError


class HubError(ArcftError):
    """A hub that can't be reached, or that does not let us write."""


_FAILURES = (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    httpx.HTTPError,
    OSError,
    ValueError,
)


def check_hub(repository: str) -> None:
    """Raise HubError unless the hub can be reached, knows who we are, and we can own the repository."""
    try:
        validate_repo_id(repository)
        about = HfApi().whoami()
    except _FAILURES as error:
        raise HubError(
            f"push_to_hub={repository}: can't write to {constants.ENDPOINT} ({_first_line(error)}); "
            "log in with `hf auth login` or set HF_TOKEN, or drop push_to_hub"
        ) from error
    owners = [about["name"], *(organisation["name"] for organisation in about.get("orgs", ()))]
    if repository.partition("/")[0] not in owners:
        raise HubError(
            f"push_to_hub={repository}: the login at {constants.ENDPOINT} can write to {', '.join(owners)}; use one of "
            "these as the owner, or log in as another user"
        )


def upload(folder: Path, repository: str, *, private: bool) -> str:
    """Create the repository if it does not exist, and upload `folder` in one commit; return its address."""
    api = HfApi()
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Export by arcft")
    except _FAILURES as error:
        raise HubError(
            f"push_to_hub={repository}: the upload failed ({_first_line(error)}). The export in {folder} is complete; "
            f"try again with: hf upload {repository} {folder}"
        ) from error
    return str(address)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
