"""Checks whether the Hub is reachable, and explains what it did not provide."""

import logging
import os
import socket
from collections.abc import Iterator
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies

import datasets
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 5.0  # seconds


@cache
def reach_hub() -> bool:
    """Check once whether the Hub is reachable; otherwise switch all libraries to offline mode.

    Without this, each library retries for a minute per file. With a proxy nothing is checked.
    """
    if constants.HF_HUB_OFFLINE or getproxies():
        return True
    address = urlsplit(constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=CONNECT_TIMEOUT).close()
    except OSError as error:
        sentence = "hub: %s does not answer (%s); using only files on this machine"
        log.warning(sentence, constants.ENDPOINT, error)
        os.environ["HF_HUB_OFFLINE"] = "1"  # for child processes
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        return False
    return True


def hub_refusal(error: BaseException, *, name: str, kind: str = "model") -> str | None:
    """Return reason and remedy if the Hub did not provide `name`; None for other errors.

    `kind` is model or dataset, as `hf download --repo-type` spells it.
    """
    name = name.partition("@")[0]  # without its revision

    def among(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes(error))

    # datasets.load raises these two without their causes.
    gated = among(GatedRepoError) or "is a gated dataset on the Hub" in str(error)
    missing = among(RepositoryNotFoundError) or "doesn't exist on the Hub" in str(error)
    if gated:
        address = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
        return (
            "its authors give it to those who ask, and this machine has no access; ask on "
            f"{address}, then run `hf auth login` here"
        )
    if missing:
        return (
            f"there is no such local path, and the hub has no such {kind} or keeps it private; "
            "correct the name, or run `hf auth login` with an account that may read it"
        )
    if not among(LocalEntryNotFoundError, ConnectionError):
        return None
    absent = "there is no such local path, it is not in the cache of downloads, and"
    if constants.HF_HUB_OFFLINE and reach_hub():  # set by the user, not by `reach_hub`
        more = " --repo-type dataset" if kind == "dataset" else ""
        return (
            f"{absent} HF_HUB_OFFLINE keeps this command off the hub; unset that, run "
            f"`hf download {name}{more}` where there is a network, or give a local path"
        )
    return f"{absent} {constants.ENDPOINT} did not answer; check the network, or give a local path"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and the errors that caused it, the first cause last."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
