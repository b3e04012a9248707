"""Private keys and access tokens in texts: what must never be learned by heart by a model."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    clue: str  # a literal part: a plain search for it is far cheaper than the pattern
    pattern: re.Pattern[str]


_KINDS = tuple(
    _Kind(name, clue, re.compile(pattern))
    for name, clue, pattern in (
        ("private key", "PRIVATE KEY", r"-----BEGIN (?:[A-Z]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"),
        ("AWS access key", "AKIA", r"\bAKIA[0-9A-Z]{16}\b"),
        ("GitHub token", "gh", r"\bgh[pousr]_[A-Za-z0-9]{36,}\b"),
        ("GitHub token", "github_pat_", r"\bgithub_pat_[A-Za-z0-9_]{50,}\b"),
        ("GitLab token", "glpat-", r"\bglpat-[A-Za-z0-9_-]{20,}"),
        ("API key (sk-…)", "sk-", r"\bsk-(?:proj-|ant-|or-)?[A-Za-z0-9_-]{32,}"),
        ("Stripe key", "_live_", r"\b[sr]k_live_[A-Za-z0-9]{20,}\b"),
        ("Slack token", "xox", r"\bxox[abprs]-[A-Za-z0-9-]{20,}"),
        ("Google API key", "AIza", r"\bAIza[0-9A-Za-z_-]{35}\b"),
        ("Hugging Face token", "hf_", r"\bhf_[A-Za-z]{34}\b"),
    )
)


def find_secret(text: str) -> str | None:
    """The kind of the first secret in `text`; None when there is none. Never the secret itself."""
    for kind in _KINDS:
        if kind.clue in text and kind.pattern.search(text):
            return kind.name
    return None
