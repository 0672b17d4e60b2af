"""Detect passwords and API keys: refused in presets, masked in messages."""

import os
import re
from collections.abc import Iterator
from typing import Any

MASK = "***"

# API keys by the prefix that their issuer gives them, and the pattern of the rest. The list is ours
# because that of detect-secrets (1.5.0) lacks the Hub's, most clouds' and signed URLs, and matches
# only a part of others.
_PREFIXED = {
    # Models and data sets.
    "hf_|api_org_|gsk_|r8_|fw_|pplx-|xai-|csk-": r"[A-Za-z0-9]{20,}",
    "nvapi-|tgp_v1_|wandb_v1_|KGAT_": r"[A-Za-z0-9_-]{20,}",
    # OpenAI, Anthropic, DeepSeek and others; not names made of words, such as sk-learn-questions.
    "sk-": r"(?:[A-Za-z0-9]{1,40}[_-]){0,9}(?=[A-Za-z]{0,40}\d)[A-Za-z0-9]{16,}[A-Za-z0-9_-]*",
    "ms-": r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    # Clouds.
    "AKIA|ASIA|ABIA|ACCA": r"[A-Z0-9]{16}",
    "ABSK": r"[A-Za-z0-9+/=]{40,}",
    "AIza": r"[A-Za-z0-9_-]{35}",
    r"ya29\.|GOCSPX-": r"[A-Za-z0-9_-]{20,}",
    "AccountKey=|SharedAccessKey=": r"[A-Za-z0-9+/=]{40,}",
    "LTAI": r"[A-Za-z0-9]{12,}",
    "AKID": r"[A-Za-z0-9]{32}",
    "do[opr]_v1_": r"[0-9a-f]{64}",
    "dapi": r"[0-9a-f]{32}",
    r"hv[sbr]\.|tskey-|dp\.(?:pt|st|ct|sa)\.": r"[A-Za-z0-9_-]{20,}",
    "pul-|sbp_": r"[0-9a-f]{40}",
    # Forges and registries of packages.
    "gh[pousr]_|github_pat_": r"[A-Za-z0-9_]{20,}",
    "gl(?:pat|dt|rt|rtr|ft|ptt|cbt|imt|soat|oas|agent|wt)-": r"[A-Za-z0-9_-]{20,}",
    "ATATT3|ATCTT3|ATBB": r"[A-Za-z0-9_=-]{20,}",
    "npm_": r"[A-Za-z0-9]{30,}",
    "pypi-AgE": r"[A-Za-z0-9_-]{50,}",
    "dckr_[po]at_": r"[A-Za-z0-9_-]{20,}",
    "rubygems_": r"[0-9a-f]{40,}",
    # Services.
    "xox[abeoprs]-|xapp-": r"[A-Za-z0-9-]{10,}",
    r"hooks\.slack\.com/services/": r"[A-Za-z0-9/]{20,}",
    "[rs]k_(?:live|test)_": r"[A-Za-z0-9]{20,}",
    r"SG\.": r"[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}",
    "sntry[su]_|glsa_|glc_|lin_api_|ntn_|figd_|NRAK-|PMAK-": r"[A-Za-z0-9_+/=-]{20,}",
    "shp(?:at|ss|ca|pa)_|SK": r"[0-9a-f]{32}",
    "AGE-SECRET-KEY-1": r"[A-Z0-9]{50,}",
    # A JSON Web Token begins with {" in base64url.
    "eyJ": r"[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}[A-Za-z0-9_.-]*",
}
_KEY = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    + "|".join(f"(?:{prefix}){rest}" for prefix, rest in _PREFIXED.items())
    + r"|[0-9]{8,10}:AA[A-Za-z0-9_-]{33})"  # Telegram
    # A private key in PEM, up to its end line or, if that is missing, the end of the text.
    + r"|-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----"
    + r"(?s:.*?)(?:-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|\Z)"
    + r"|(?s:PuTTY-User-Key-File-[0-9].*)"
)
# user:password@ or token@ in a URL.
_IN_ADDRESS = re.compile(r"(?<=://)[^\s/@:]*(?::[^\s/@]*)?@(?=[^\s/])")
# Signatures in URLs and credentials in headers; the name of the parameter stays.
_VALUE = re.compile(
    r"([?&;](?:x-(?:amz|goog|oss|tos|obs|cos)-(?:signature|credential|security-token)"
    r"|(?:q-|upload_?)?signature|sig|hmac|q-ak|(?:aws|oss|google)?access_?key_?(?:id)?|googleaccessid"
    r"|(?:[a-z]{1,20}[_-]){0,5}(?:token|api[_-]?key|secret|password|passwd|pwd))="
    r"|\b(?:bearer|basic) +(?=[A-Za-z0-9._~+/-]{16}))[^\s&#;'\"<>]+",
    re.IGNORECASE,
)
# Environment variables whose values are masked, unless they are short enough to be words.
_NAMED = re.compile(
    r"(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CONNECTION_STRING|_PAT"
    r"|(API|ACCESS|SECRET|PRIVATE|ACCOUNT|AUTH)_?KEY)$"
)
_SHORTEST = 12  # characters; a shorter value, such as "none", would mask ordinary words


def mask_secrets(text: str) -> str:
    """Mask passwords and signatures in URLs, and API keys, in a text.

    The values of environment variables such as $HF_TOKEN and $OPENAI_API_KEY are masked too.
    """
    for name, value in os.environ.items():
        if _NAMED.search(name) and len(value) >= _SHORTEST:
            text = text.replace(value, MASK)
    return _KEY.sub(MASK, _VALUE.sub(rf"\1{MASK}", _IN_ADDRESS.sub(f"{MASK}@", text)))


def secret_places(value: Any) -> Iterator[str]:
    """Yield the keys of nested data whose value or name contains a password or an API key."""
    yield from (
        mask_secrets(place) for place, text in nested_texts(value) if mask_secrets(text) != text
    )


def nested_texts(value: Any, *, where: str = "") -> Iterator[tuple[str, str]]:
    """Yield the place (`section.key[0]`) and the text of every key and string of nested data."""
    if isinstance(value, dict):
        for key, inner in value.items():
            place = f"{where}.{key}" if where else str(key)
            yield place, str(key)
            yield from nested_texts(inner, where=place)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from nested_texts(inner, where=f"{where}[{i}]")
    elif isinstance(value, str):
        yield where, value
