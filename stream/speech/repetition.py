"""Repeated passages: by the speaker, or by a decoder in a loop.

Text alone does not tell the two apart; the sound does. In speech, each repetition has voice of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from mien.stream.speech.agreement import plain

LONGEST = 12  # words in the longest passage to look for
# By number of words: how often a passage must occur in a row before it is checked; longer ones: twice.
SUSPECT = {1: 5, 2: 4, 3: 3}
# The same for context: given such a prefix, a decoder keeps repeating it.
MISLEADING = {1: 3}


def repetition(words: Sequence[str], known: int = 0, suspect: dict[int, int] = SUSPECT) -> list[range]:
    """The occurrences in a row of the first passage that is repeated often enough to be a loop; empty without one.

    Args:
        known: number of words at the beginning that are certain; a passage ending among them is ignored.
        suspect: minimum occurrences by number of words, 2 for numbers not listed.

    Returns:
        The indices of the words of each occurrence.
    """
    plain_words = [plain(word) for word in words]
    for begin in range(len(plain_words)):
        for size in range(1, min(LONGEST, (len(plain_words) - begin) // 2) + 1):
            times = 1
            while plain_words[begin + times * size : begin + (times + 1) * size] == plain_words[begin : begin + size]:
                times += 1
            if times >= suspect.get(size, 2) and begin + times * size > known:
                return [range(at, at + size) for at in range(begin, begin + times * size, size)]
    return []
