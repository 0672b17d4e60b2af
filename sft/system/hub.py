"""Whether the hub answers; and what it did not give, in words that say what to do about it."""

import logging
import os
import socket
from collections.abc import Iterator
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies

import datasets
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

log = logging.getLogger(__name__)

DOOR = 5.0  # seconds that the hub has to open a connection


@cache
def reach_hub() -> bool:
    """Knock once, before the first thing that is wanted from the hub; False where it does not open.

    Then every library is kept off it, as HF_HUB_OFFLINE=1 would, and takes what lies in the cache:
    each would try several times over, a minute for every file. Behind a proxy nobody knocks.
    """
    if constants.HF_HUB_OFFLINE or getproxies():
        return True
    address = urlsplit(constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=DOOR).close()
    except OSError as error:
        log.warning(
            "hub: %s does not answer (%s); going on with what lies on this machine",
            *(constants.ENDPOINT, error),
        )
        os.environ["HF_HUB_OFFLINE"] = "1"  # of processes that this one starts
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        return False
    return True


def hub_refusal(error: BaseException, *, name: str, kind: str = "model") -> str | None:
    """The reason and the remedy where the hub itself did not give `name`; None for other errors.

    Args:
        error: what a loader of upstream raised, with the hub's own error among its causes.
        kind: model or dataset, as `hf download --repo-type` spells it.
    """
    name = name.partition("@")[0]  # without its revision
    kinds_of = tuple(type(cause) for cause in causes(error))

    def among(*kinds: type[BaseException]) -> bool:
        return any(issubclass(kind, kinds) for kind in kinds_of)

    # datasets.load cuts the causes of these two off.
    gated = among(GatedRepoError) or "is a gated dataset on the Hub" in str(error)
    missing = among(RepositoryNotFoundError) or "doesn't exist on the Hub" in str(error)
    place = "datasets/" if kind == "dataset" else ""
    if gated:
        return (
            "its authors give it to those who ask, and this machine has no access; ask on "
            f"{constants.ENDPOINT}/{place}{name}, then run `hf auth login` here"
        )
    if missing:
        return (
            f"there is no such local path, and the hub has no such {kind} or keeps it private; "
            "correct the name, or run `hf auth login` with an account that may read it"
        )
    if not among(LocalEntryNotFoundError, ConnectionError):
        return None
    if constants.HF_HUB_OFFLINE and reach_hub():  # by the user's wish, not by our own knock
        more = " --repo-type dataset" if kind == "dataset" else ""
        return (
            "there is no such local path, it is not in the cache of downloads, and HF_HUB_OFFLINE "
            f"keeps this command off the hub; unset that, run `hf download {name}{more}` where "
            "there is a network, or give a local path"
        )
    return (
        "there is no such local path, it is not in the cache of downloads, and "
        f"{constants.ENDPOINT} did not answer; check the network, or give a local path"
    )


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from, the latter last."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
