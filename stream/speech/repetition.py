"""Passages that follow themselves: a person who says them again, or a decoder that hears nothing more.

Text alone does not tell the two apart; the sound does. In speech, each repetition has its own stretch of voice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mien.stream.speech.agreement import plain

LONGEST = 12  # words: the longest passage that is looked for
# How often a passage of so many words must follow itself before its sayings are checked; longer ones: twice.
SUSPECT = {1: 5, 2: 4, 3: 3}
# The same for context: a decoder that is given such a beginning goes on repeating it.
MISLEADING = {1: 3}


@dataclass(frozen=True)
class Repetition:
    """A passage of `size` words from word `begin` on, said `times` times in a row."""

    begin: int
    size: int
    times: int

    @property
    def end(self) -> int:
        """The word after it."""
        return self.begin + self.times * self.size

    def sayings(self) -> list[range]:
        """The words of each saying."""
        return [range(k, k + self.size) for k in range(self.begin, self.end, self.size)]


def repetition(words: Sequence[str], known: int = 0, suspect: dict[int, int] = SUSPECT) -> Repetition | None:
    """The first passage that is repeated so often that it may be a loop; None if there is none.

    Args:
        known: so many words at the beginning are certain; a passage that ends among them is not looked at.
        suspect: sayings by number of words, 2 where a number is not there.
    """
    said = [plain(word) for word in words]
    for begin in range(len(said)):
        for size in range(1, min(LONGEST, (len(said) - begin) // 2) + 1):
            times = 1
            while said[begin + times * size : begin + (times + 1) * size] == said[begin : begin + size]:
                times += 1
            if times >= suspect.get(size, 2) and begin + times * size > known:
                return Repetition(begin, size, times)
    return None
