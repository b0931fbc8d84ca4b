"""Words that the alignment gave no duration.

Alignment gives every word a time, including words that were never said or that share the sound of their neighbour:
these get no duration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mien.stream.speech.whisper import DecodedWord

INSTANT_S = 0.03  # a shorter word has no time of its own
INSTANT_WORDS = 3  # this many of them at the end have no sound


def uttered(words: Sequence[DecodedWord]) -> int:
    """Number of words before those for which no sound was left: these are all placed at its end."""
    count = len(words)
    while count and words[count - 1].end_s - words[count - 1].start_s < INSTANT_S:
        count -= 1
    return len(words) if len(words) - count < INSTANT_WORDS else count


def groups(words: Sequence[DecodedWord]) -> list[list[DecodedWord]]:
    """Words, each grouped with the following ones that have no time of their own: they were spoken within its time."""
    groups: list[list[DecodedWord]] = []
    for word in words:
        if groups and word.end_s - word.start_s < INSTANT_S:
            groups[-1].append(word)
        else:
            groups.append([word])
    return groups


def spread(words: Sequence[DecodedWord], start_s: float, end_s: float) -> list[DecodedWord]:
    """Words spread over a span, in proportion to their number of letters."""
    letters = np.cumsum([0, *(len(word.text) for word in words)])
    edges_s = start_s + (end_s - start_s) * letters / letters[-1]
    return [
        replace(word, start_s=float(begin_s), end_s=float(until_s))
        for word, begin_s, until_s in zip(words, edges_s[:-1], edges_s[1:], strict=True)
    ]
