"""A character corpus of real English text that comes with every Python."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int64
from torch import Tensor

OTHER = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, eq=False)
class TextCorpus:
    """A text as numbers, one for each character.

    Args:
        text: the text.
        vocabulary: the known characters, most frequent first, and last ``OTHER``, which stands for all others.
    """

    text: str
    vocabulary: tuple[str, ...]

    @classmethod
    def of_text(cls, text: str, characters: int = 63) -> TextCorpus:
        """Make a corpus whose vocabulary is the most frequent characters of the text, and one for all others.

        Args:
            text: the text.
            characters: how many characters are distinguished; equally frequent ones are taken in the order of Unicode.

        Raises:
            ValueError: if ``text`` is empty or ``characters`` is less than 1.
        """
        if not text:
            raise ValueError("text must not be empty")
        if characters < 1:
            raise ValueError(f"characters must be at least 1, got {characters}")
        counts = Counter(text)
        counts.pop(OTHER, None)
        known = sorted(counts, key=lambda character: (-counts[character], character))[:characters]
        return cls(text, (*known, OTHER))

    @cached_property
    def ids(self) -> Int64[Tensor, " characters"]:
        """The whole text as indices into the vocabulary."""
        return self.encode(self.text)

    def __len__(self) -> int:
        return len(self.text)

    def encode(self, text: str) -> Int64[Tensor, " characters"]:
        """Turn a text into indices; characters outside the vocabulary become the last index."""
        other = len(self.vocabulary) - 1
        return torch.tensor([self._index.get(character, other) for character in text], dtype=torch.int64)

    def decode(self, ids: Int64[Tensor, " characters"]) -> str:
        """Turn indices into text; the last index becomes ``OTHER``.

        Raises:
            ValueError: if an index is outside the vocabulary.
        """
        numbers = ids.tolist()
        if numbers and not 0 <= min(numbers) <= max(numbers) < len(self.vocabulary):
            raise ValueError(
                f"ids must lie in [0, {len(self.vocabulary)}), got values from {min(numbers)} to {max(numbers)}"
            )
        return "".join(self.vocabulary[number] for number in numbers)

    def train_validation_split(
        self, validation: float = 0.1
    ) -> tuple[Int64[Tensor, " train"], Int64[Tensor, " validation"]]:
        """Return the ids of the beginning and of the end of the text.

        The validation part is contiguous: characters drawn at random would have their own neighbours in the training
        part.

        Args:
            validation: fraction of the text, taken from its end, in (0, 1).

        Raises:
            ValueError: if ``validation`` is outside (0, 1) or a part would be empty.
        """
        if not 0.0 < validation < 1.0:
            raise ValueError(f"validation must lie in (0, 1), got {validation!r}")
        held_out = round(validation * len(self))
        if not 0 < held_out < len(self):
            raise ValueError(f"validation {validation!r} of a text of {len(self)} characters leaves a part empty")
        return self.ids[:-held_out], self.ids[-held_out:]

    @cached_property
    def _index(self) -> dict[str, int]:
        return {character: number for number, character in enumerate(self.vocabulary[:-1])}


def load_text() -> TextCorpus:
    """Load the reference manual of the Python language as a character corpus, from the running Python itself.

    About half a million characters of technical English (``pydoc_data.topics``, what ``help("assert")`` prints), the
    topics in alphabetical order; 63 characters and one for all others. The text differs a little between
    versions of Python: numbers measured on it compare within one version only.

    Raises:
        ModuleNotFoundError: if this Python was installed without ``pydoc_data``.
    """
    # Imported here: half a megabyte that no other function needs.
    from pydoc_data.topics import topics

    return TextCorpus.of_text("\n\n".join(topics[name] for name in sorted(topics)))
