"""Phrase boundaries: at punctuation, or where the speaker pauses."""

from __future__ import annotations

from collections.abc import Iterable

from mien.clock import NS_PER_S
from mien.messages import Word

_PAUSE_NS = 7 * NS_PER_S // 10  # from one word to the next; a longer one ends a phrase
_ENDINGS = (".", "!", "?", "…")


def begins_phrase(word: Word, before: Word | None) -> bool:
    """Whether a word begins a phrase, given the word `before` it."""
    return before is None or before.text.rstrip().endswith(_ENDINGS) or word.t_start_ns - before.t_end_ns >= _PAUSE_NS


def phrases_of(words: Iterable[Word]) -> list[list[Word]]:
    """Words in order of time, split into phrases."""
    phrases: list[list[Word]] = []
    for word in words:
        if begins_phrase(word, phrases[-1][-1] if phrases else None):
            phrases.append([])
        phrases[-1].append(word)
    return phrases
