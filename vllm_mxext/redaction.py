"""Secrets are cut out of texts that people see: tokens, passwords in URLs, and the queries of signed URLs."""

from __future__ import annotations

import logging
import re

_CUT = "…"

_RULES = (
    (re.compile(r"(?i)(\bhttps?://[^\s'\"<>?#]*)\?[^\s'\"<>)]*"), rf"\1?{_CUT}"),
    (re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*://)[^\s/'\"@]+@"), rf"\1{_CUT}@"),
    (re.compile(r"\b(Bearer|Basic|ApiKey)(\s+)([\w~+/.=-]{4})[\w~+/.=:-]{12,}"), rf"\1\2\3{_CUT}"),
    (re.compile(r"\b(hf_|nvapi-|ms-|AKIA|ASIA|ghp_|eyJ)[\w.-]{12,}"), rf"\1{_CUT}"),
    (
        re.compile(
            r"(?i)\b(x-amz-[a-z-]*(?:signature|credential|token)|x-goog-(?:signature|credential)|signature|sig|"
            r"[a-z_-]*(?:token|secret|password|api_?key)[a-z_-]*|m_session_id)=[^\s&;,'\"]+"
        ),
        rf"\1={_CUT}",
    ),
)

_LOGGERS = (
    "httpx",
    "httpcore.connection",
    "httpcore.http11",
    "httpcore.proxy",
    "httpcore.socks",
    "urllib3.connectionpool",
)
"""Loggers of libraries that print URLs and headers."""


def redact(text: str) -> str:
    """Returns a text without secrets; what is cut out leaves `…`."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def shown(secret: str) -> str:
    """Returns the first four characters of a secret, so that its owner knows which it is."""
    return (secret[:4] if len(secret) >= 12 else "") + _CUT


class RedactingFilter(logging.Filter):
    """Cuts secrets out of records that it lets pass."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Replaces the message by its redacted form."""
        record.msg, record.args = redact(record.getMessage()), ()
        return True


_FILTER = RedactingFilter()


def guard_logs() -> None:
    """Cuts secrets out of what the HTTP libraries log; may be called again."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_FILTER)
