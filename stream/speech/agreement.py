"""LocalAgreement: a word is committed once two successive hypotheses agree on it.

Macháček, Dabre, Bojar, "Turning Whisper into Real-Time Transcription System", IJCNLP-AACL 2023: the longest common
prefix of two successive hypotheses is committed.
"""

from __future__ import annotations

from collections.abc import Sequence


def plain(word: str) -> str:
    """A word for comparison: without case and punctuation, which change from one hypothesis to the next."""
    return "".join(c for c in word.casefold() if c.isalnum()) or word


def agreed(previous: Sequence[str], current: Sequence[str]) -> int:
    """Number of words in the common prefix of both hypotheses."""
    count = 0
    for old, new in zip(previous, current, strict=False):
        if plain(old) != plain(new):
            break
        count += 1
    return count
