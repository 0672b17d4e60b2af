"""Client of a chat model at an OpenAI-compatible endpoint, with time limits and retries.

The key is read from an environment variable and sent in one header to one host. It is never logged,
stored or part of an error message, and redirects are not followed, since they could leak it.
"""

import asyncio
import json
import os
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2

from sft.config.secrets import mask_secrets
from sft.data.json_values import LONE_SURROGATE
from sft.errors import UserError
from sft.system.hub import causes

# HTTP codes of a busy or failing endpoint; a retry of other codes gives the same error.
TRANSIENT = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
LONGEST_WAIT = 60.0  # seconds between two tries; limits Retry-After
LARGEST_REPLY = 4 * 2**20  # bytes
MOST_TOKENS = 10**9  # of one request; a larger count is an error of the endpoint


@dataclass(frozen=True)
class Endpoint:
    """Address, model and retry policy of an endpoint."""

    url: str  # up to /v1, for example http://localhost:8000/v1
    model: str
    key_variable: str = "OPENAI_API_KEY"  # if it is not set, no key is sent
    timeout: float = 120.0  # seconds for one complete reply
    tries: int = 5
    backoff: float = 1.0  # seconds before the second try, doubled for each further one


@dataclass(frozen=True)
class Reply:
    """The text of a reply, and the tokens that the endpoint counted (0 if it counts none)."""

    text: str
    prompt_tokens: int
    completion_tokens: int


class _Transient(Exception):
    """A failure that a retry may fix; `wait` is the pause in seconds that the server requested."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def check_endpoint(endpoint: Endpoint) -> None:
    """Check the address, the key and the proxy without sending anything.

    Raises:
        UserError: the URL is not http(s) or holds a password or a query, the key has white space,
            or the proxy is invalid.
    """
    try:
        parts = urlsplit(endpoint.url)
        httpx2.URL(endpoint.url)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except (ValueError, httpx2.InvalidURL):  # an invalid port, half an IPv6 address, ...
        known = False
    if not known:
        raise UserError(
            f"judge url {endpoint.url!r} is no http(s) address; give one like "
            "http://localhost:8000/v1"
        )
    if (
        parts.username
        or parts.password
        or parts.query
        or mask_secrets(endpoint.url) != endpoint.url
    ):
        raise UserError(
            f"the judge url at {parts.hostname} holds a password or a query, which would end up in "
            f"files; put the key into ${endpoint.key_variable}"
        )
    key = os.environ.get(endpoint.key_variable, "")
    if key and (not key.isascii() or not key.isprintable() or " " in key):
        raise UserError(
            f"${endpoint.key_variable} holds white space or other characters that no key has; set "
            "it again"
        )
    _transport(endpoint)


def _transport(endpoint: Endpoint) -> httpx2.AsyncHTTPTransport:
    """Connect directly, or through the environment's proxy unless `no_proxy` names the host."""
    certificates = _certificates()
    parts = urlsplit(endpoint.url)
    proxy = None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
    if proxy and "://" not in proxy:
        proxy = f"http://{proxy}"
    try:
        return httpx2.AsyncHTTPTransport(verify=certificates, proxy=proxy or None)
    except (ValueError, ImportError, httpx2.InvalidURL):  # another scheme, SOCKS, no address
        raise UserError(
            f"the proxy that ${parts.scheme}_proxy names is no http(s) address; give one like "
            f"http://proxy:3128, or name {parts.hostname} in $no_proxy"
        ) from None


@lru_cache(maxsize=1)
def _certificates() -> ssl.SSLContext:
    """Read the certificates once; it takes longer than a request."""
    try:
        return httpx2.create_ssl_context()
    except OSError as error:
        raise UserError(
            f"no certificates could be read ({error.strerror or error}); correct or unset "
            "$SSL_CERT_FILE and $SSL_CERT_DIR"
        ) from None


def ask(
    endpoint: Endpoint,
    messages: Sequence[Mapping[str, str]],
    *,
    max_tokens: int,
    temperature: float = 0.0,
) -> Reply:
    """Request one reply to a conversation, with retries.

    Raises:
        UserError: the endpoint refuses the request, or every try failed.
    """
    check_endpoint(endpoint)
    body = {
        "model": endpoint.model,
        "messages": list(messages),
        "max_tokens": max_tokens,
        "temperature": temperature,
    }
    reason = ""
    for attempt in range(endpoint.tries):
        try:
            return _read(_post(endpoint, body))
        except _Transient as failure:
            reason = str(failure)
            if attempt + 1 < endpoint.tries:
                time.sleep(min(max(endpoint.backoff * 2**attempt, failure.wait), LONGEST_WAIT))
    raise UserError(
        f"the endpoint {endpoint.url} did not answer in {endpoint.tries} tries (last: {reason}); "
        "what is done is kept: start the same command again when it is up"
    )


def _post(endpoint: Endpoint, body: Mapping[str, Any]) -> bytes:
    """Send one request and return the body of the reply.

    Raises:
        UserError: the endpoint refuses the request for good.
        _Transient: any other failure, such as no complete reply within the time limit.
    """
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "Accept-Encoding": "identity",
    }
    if key := os.environ.get(endpoint.key_variable):
        headers["Authorization"] = f"Bearer {key}"
    exchange = _exchange(endpoint, json.dumps(body).encode(), headers=headers)
    try:
        return asyncio.run(asyncio.wait_for(exchange, endpoint.timeout))
    except asyncio.TimeoutError:
        raise _Transient(f"no complete reply within {endpoint.timeout:g} seconds") from None
    except (httpx2.HTTPError, OSError) as error:
        raise _Transient(_broken(error)) from None


async def _exchange(endpoint: Endpoint, content: bytes, *, headers: Mapping[str, str]) -> bytes:
    url = endpoint.url.rstrip("/") + "/chat/completions"
    # Timeouts of httpx limit each read and write; the caller's deadline limits the exchange.
    async with (
        httpx2.AsyncClient(
            transport=_transport(endpoint), timeout=None, follow_redirects=False
        ) as client,
        client.stream("POST", url, content=content, headers=headers) as response,
    ):
        if not response.is_success:
            raise _refused(endpoint, response.status_code, response.headers)
        received = bytearray()
        async for chunk in response.aiter_raw():
            received += chunk
            if len(received) > LARGEST_REPLY:
                raise _Transient(f"a reply of more than {LARGEST_REPLY:,} bytes")
        return bytes(received)


def _broken(error: Exception) -> str:
    """Return why a connection failed, if possible the reason of the operating system."""
    for cause in causes(error):
        if isinstance(cause, ConnectionError) and cause.errno:
            return os.strerror(cause.errno)  # asyncio replaces the message
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
    return f"the connection broke ({type(error).__name__})"


def _refused(endpoint: Endpoint, code: int, headers: Mapping[str, str]) -> Exception:
    """Return the exception for an HTTP error, without its body, which may echo the key."""
    if code in TRANSIENT:
        pause = headers.get("Retry-After", "")
        return _Transient(f"HTTP {code}", wait=float(pause) if pause.isdecimal() else 0.0)
    hint = {
        401: f"set ${endpoint.key_variable} to a valid key",
        403: f"set ${endpoint.key_variable} to a key that may use the model",
        404: f"check the address (it ends in /v1) and the model's name {endpoint.model!r}",
    }.get(code, "check the address, the model's name and the endpoint's own log")
    return UserError(
        f"the endpoint {endpoint.url} refused the request (HTTP {code}); {hint}; what is done is "
        "kept"
    )


def _read(received: bytes) -> Reply:
    """Parse a body of chat.completions; anything else is a transient failure."""
    try:
        content = json.loads(received)
        text = content["choices"][0]["message"]["content"]
        usage = content.get("usage") or {}
        counts = [usage.get(k) for k in ("prompt_tokens", "completion_tokens")]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise _Transient("a reply that is no chat completion") from None
    if not isinstance(text, str):
        raise _Transient("a reply without text")
    prompt, completion = (_count(count) for count in counts)
    # A reply that was cut may end in a lone surrogate, which cannot be encoded.
    return Reply(LONE_SURROGATE.sub("\ufffd", text), prompt, completion)


def _count(value: Any) -> int:
    """Return a valid number of tokens, else 0."""
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else 0
