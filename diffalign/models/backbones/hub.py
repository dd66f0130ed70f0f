"""Whether the hub can be asked for a model: one short attempt, since the libraries' own retries take most of a minute."""

from __future__ import annotations

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import get_session, httpx

from diffalign.core.errors import CheckpointError
from diffalign.models.backbones.folders import is_local, resolve

SECONDS = 2.0


def cache_only(name: str, file: str, revision: str | None = None) -> bool:
    """Return whether a hub id has to be read from this machine's cache, because the hub cannot be reached; False of a folder.

    `file` is one that the model cannot do without. Raises CheckpointError where the hub cannot be reached and the cache lacks it.
    """
    if is_local(resolve(name)):
        return False
    try:
        cached = isinstance(try_to_load_from_cache(name, file, revision=revision), str)
    except HFValidationError as error:
        raise CheckpointError(f"{name}: neither a folder nor a hub id ({error})") from error
    why = _fault()
    if why is not None and not cached:
        raise CheckpointError(
            f"{name}: the hub cannot be reached ({why}), and {file} of this model is not in the cache of this machine; expected a "
            "connection, or the folder of a model"
        )
    return why is not None


def _fault() -> str | None:
    """Return why the hub cannot be reached, None where it answers."""
    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except (httpx.HTTPError, OSError) as error:
        return f"{constants.ENDPOINT}: {error}"
    return None
