"""LocalAgreement: a word is certain once two successive hypotheses say it.

Macháček, Dabre, Bojar, "Turning Whisper into Real-Time Transcription System", IJCNLP-AACL 2023: of two successive
hypotheses, the longest common beginning is committed.
"""

from __future__ import annotations

from collections.abc import Sequence

MAX_LOOP = 12  # words: the longest passage that is looked for
_REPEATS = {1: 5, 2: 4, 3: 3}  # how often a passage of so many words must follow itself to be a loop


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


def without_loop(words: Sequence[str], known: int = 0) -> int:
    """Number of words before a hypothesis begins to say the same passage again and again.

    Decoders fall into such loops at the end of what they can hear. The first saying is kept. Short passages are
    repeated by people too ("no, no, no"), so they count as a loop only after several times. The first `known` words
    are certain and stay; a decoder that hears nothing more likes to say them again.
    """
    said = [plain(word) for word in words]
    for begin in range(len(said)):
        for size in range(1, min(MAX_LOOP, (len(said) - begin) // 2) + 1):
            times = 1
            while said[begin + times * size : begin + (times + 1) * size] == said[begin : begin + size]:
                times += 1
            if times >= _REPEATS.get(size, 2) and begin + times * size > known:
                return max(begin + size, known)
    return len(said)
