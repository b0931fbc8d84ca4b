"""LocalAgreement: a word is certain once two successive hypotheses say it.

Macháček, Dabre, Bojar, "Turning Whisper into Real-Time Transcription System", IJCNLP-AACL 2023: of two successive
hypotheses, the longest common beginning is committed.
"""

from __future__ import annotations

from collections.abc import Sequence


def plain(word: str) -> str:
    """A word as it is compared: without case and punctuation, which change from one hypothesis to the next."""
    return "".join(c for c in word.casefold() if c.isalnum()) or word


def agreed(previous: Sequence[str], current: Sequence[str]) -> int:
    """Number of words at the beginning that both hypotheses have in common."""
    count = 0
    for old, new in zip(previous, current, strict=False):
        if plain(old) != plain(new):
            break
        count += 1
    return count
