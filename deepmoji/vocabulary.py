"""The vocabulary: which words have an id, how it is counted together, and texts as ids."""

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from deepmoji.errors import InputError, UsageError
from deepmoji.text import Texts, tokenize_column

SPECIALS = tuple(
    f"CUSTOM_{name}"
    for name in ("MASK", "UNKNOWN", "AT", "URL", "NUMBER", "BREAK", "BLANK_6", "BLANK_7", "BLANK_8", "BLANK_9")
)
MASK, UNKNOWN = 0, 1
MAX_WORD_LENGTH = 30  # longer words get no id, as in the published vocabulary


@dataclass(frozen=True)
class Coverage:
    """How much of some texts a vocabulary knows; special tokens count as known, but for CUSTOM_UNKNOWN."""

    tokens: int
    known: int
    distinct: int
    known_distinct: int
    missing: tuple[tuple[str, int], ...]  # the most frequent unknown words with their counts

    @property
    def share(self) -> float:
        """Known tokens among all; 1.0 for no tokens."""
        return self.known / self.tokens if self.tokens else 1.0


@dataclass(frozen=True)
class Vocabulary:
    """Words by id: the place of a word is its id. The first is CUSTOM_MASK (padding), the second CUSTOM_UNKNOWN."""

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.words[:2] != SPECIALS[:2]:
            raise InputError(
                f"The vocabulary begins with {self.words[:2]}, not with {SPECIALS[:2]}: give ids 0 and 1 so."
            )
        if len(self._ids) < len(self.words):
            twice = next(word for word, count in Counter(self.words).items() if count > 1)
            raise InputError(f"The word {twice!r} stands in the vocabulary twice: keep one of them.")
        id_type(len(self.words))

    @classmethod
    def load(cls, path: str | Path) -> "Vocabulary":
        """Read {word: id} from JSON, with ids 0, 1, 2, ... in any order: what `save` wrote, or the published file."""
        try:
            ids = json.loads(Path(path).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path} cannot be read as a vocabulary ({error}): give JSON of the form {{word: id}}."
            ) from error
        if not isinstance(ids, dict) or sorted(ids.values(), key=repr) != sorted(range(len(ids)), key=repr):
            raise InputError(f"{path} is no vocabulary: its JSON should map words to the ids 0, 1, 2, ..., each once.")
        return cls(tuple(sorted(ids, key=ids.__getitem__)))

    def save(self, path: str | Path) -> None:
        """Write {word: id} as JSON in the order of the ids; the file appears whole."""
        path = Path(path)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            beside.write_text(json.dumps(self._ids, ensure_ascii=False, indent=0) + "\n", "utf-8")
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {word: place for place, word in enumerate(self.words)}

    @property
    def dtype(self) -> np.dtype:
        """The type of the ids: uint16 up to 65,536 words, else uint32."""
        return id_type(len(self.words))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the words in order, as hex: equal for equal vocabularies."""
        return hashlib.sha256(json.dumps(self.words).encode()).hexdigest()

    def ids(self, tokens: Iterable[str]) -> np.ndarray:
        """Ids of tokens: unknown ones are 1, and so is a token spelled like the mask, for 0 is padding alone."""
        known = self._ids
        return np.array([known.get(token, UNKNOWN) or UNKNOWN for token in tokens], self.dtype)

    def encode_flat(self, texts: Texts, max_length: int | None = None) -> tuple[np.ndarray, np.ndarray, int]:
        """Ids of n texts, one text after the other: (ids, offsets (n + 1) int64, number of texts cut at max_length).

        UsageError: the words are only `numbered`, so that each one of a text would count as unknown.
        """
        if self.words[len(SPECIALS) : len(SPECIALS) + 1] == (_number_word(len(SPECIALS)),):
            raise UsageError(
                "The model came without its vocabulary, so it knows its words by number only and reads no text: "
                "import its weights again with --vocabulary, or give it ids."
            )
        tokens, offsets = tokenize_column(texts)
        ids = self.ids(tokens.dictionary.to_pylist())[tokens.indices.to_numpy()]
        if max_length is None:
            return ids, offsets, 0
        if max_length < 1:
            raise UsageError(f"max_length is {max_length}: give the number of tokens to keep of a text, 1 or more.")
        full = np.diff(offsets)
        lengths = np.minimum(full, max_length)
        ids = ids[_first(offsets, lengths)]
        return ids, np.concatenate(([0], np.cumsum(lengths))), int((full > max_length).sum())

    def encode(self, texts: Texts, max_length: int) -> np.ndarray:
        """Ids of n texts as (n, max_length), zero padded; longer texts are cut."""
        ids, offsets, _ = self.encode_flat(texts, max_length)
        padded = np.full((len(offsets) - 1, max_length), MASK, self.dtype)
        padded[np.arange(max_length) < np.diff(offsets)[:, None]] = ids
        return padded

    def decode(self, ids: Iterable[int]) -> list[str]:
        """The words of ids."""
        return [self.words[id_] for id_ in ids]

    def extend(self, words: Iterable[str]) -> "Vocabulary":
        """A vocabulary with the words that are new and not too long added behind, in their order."""
        new = (word for word in dict.fromkeys(words) if word not in self._ids and 0 < len(word) <= MAX_WORD_LENGTH)
        return Vocabulary((*self.words, *new))

    def coverage(self, texts: Texts, *, max_length: int | None = None, missing: int = 20) -> Coverage:
        """How many of the texts' tokens (the first max_length of each) are known, and the commonest that are not."""
        counts = count_words(texts, max_length)
        known = {word: count for word, count in counts.items() if word in self._ids and word != SPECIALS[UNKNOWN]}
        unknown = {word: -count for word, count in counts.items() if word not in known}
        most = sorted(unknown, key=lambda word: (unknown[word], word))[:missing]
        return Coverage(
            tokens=counts.total(),
            known=sum(known.values()),
            distinct=len(counts),
            known_distinct=len(known),
            missing=tuple((word, counts[word]) for word in most),
        )


def numbered(size: int) -> Vocabulary:
    """`size` words of which nothing but the ids is known: `<10>`, `<11>`, ... behind the special ones."""
    return Vocabulary((*SPECIALS[:size], *map(_number_word, range(len(SPECIALS), size))))


def _number_word(number: int) -> str:
    return f"<{number}>"


def id_type(words: int) -> np.dtype:
    """The smallest type that holds the ids of so many words; UsageError when there is none (more than 2^32)."""
    for dtype in (np.dtype(np.uint16), np.dtype(np.uint32)):
        if words <= np.iinfo(dtype).max + 1:
            return dtype
    raise UsageError(f"A vocabulary of {words:,} words is too big for ids of 32 bits: keep fewer words.")


def count_words(texts: Texts, max_length: int | None = None) -> Counter[str]:
    """How often each token comes in the texts (in the first max_length tokens of each)."""
    tokens, offsets = tokenize_column(texts)
    codes = tokens.indices.to_numpy()
    if max_length is not None:
        codes = codes[_first(offsets, np.minimum(np.diff(offsets), max_length))]
    counts = np.bincount(codes, minlength=len(tokens.dictionary)).tolist()
    return Counter({word: count for word, count in zip(tokens.dictionary.to_pylist(), counts, strict=True) if count})


def merge_counts(shards: Iterable[tuple[str, Mapping[str, int]]], min_count: int = 1) -> dict[str, float]:
    """Put (source, counts) of shards together so that every source weighs the same, however much of it there is.

    Shards of one source are added up and words below min_count in it left out; then each source is scaled to the
    number of words of the largest. With one source the counts stay as they are. Order of shards makes no difference.
    """
    by_source: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for source, counts in shards:
        by_source[source].update(counts)
    kept = {
        source: {word: counts[word] for word in counts if counts[word] >= min_count and word not in SPECIALS}
        for source, counts in sorted(by_source.items())
    }
    totals = {source: sum(counts.values()) for source, counts in kept.items()}
    largest = max(totals.values(), default=0)
    merged: defaultdict[str, float] = defaultdict(float)
    for source, counts in kept.items():
        for word, count in counts.items():
            merged[word] += count * largest / totals[source]
    return dict(merged)


def most_frequent(counts: Mapping[str, float], min_count: float = 1, limit: int | None = None) -> list[str]:
    """Words by falling count, equals by spelling, without special tokens and words too long for a vocabulary."""
    words = (word for word in counts if counts[word] >= min_count and 0 < len(word) <= MAX_WORD_LENGTH)
    return sorted((word for word in words if word not in SPECIALS), key=lambda word: (-counts[word], word))[:limit]


def build_vocabulary(counts: Mapping[str, float], size: int, min_count: float = 1) -> Vocabulary:
    """The special tokens and the most frequent words with at least min_count, at most `size` in all."""
    if size < len(SPECIALS):
        raise UsageError(
            f"A vocabulary of {size} words has no room for the {len(SPECIALS)} special ones: ask for more."
        )
    return Vocabulary((*SPECIALS, *most_frequent(counts, min_count, size - len(SPECIALS))))


def _first(offsets: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Where the first lengths[i] elements of each run offsets[i] .. offsets[i + 1] lie, run after run."""
    ends = np.cumsum(lengths)
    return np.repeat(offsets[:-1] - (ends - lengths), lengths) + np.arange(lengths.sum())
