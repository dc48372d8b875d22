"""What counts as one emoji, how emojis are taken off a text, and which of them are labels.

One emoji is what the `emoji` library recognises as one, whatever its skin tone and whether or not a variation selector
follows: a joined family, a flag and a keycap are one each, and the two spellings of the red heart are the same.
"""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from io import StringIO
from itertools import groupby
from pathlib import Path

import emoji
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from deepmoji.errors import UsageError

OTHER_SYMBOLS = frozenset("♡")  # one of the 64 published labels, though Unicode does not call it an emoji
_TAKEN = "\ufdd0"  # stands where an emoji was; by definition in no text
_STYLE = "\ufe0e\ufe0f\U0001f3fb-\U0001f3ff"  # variation selectors and skin tones
_JOINS = f"[{_STYLE}\u200d\u20e3]+"
_LOOSE_ENDS = re.compile(f"(?<={_TAKEN}){_JOINS}|{_JOINS}(?={_TAKEN}|$)")  # of what joined an emoji that was taken
_STYLES = re.compile(f"[{_STYLE}]")
_PART = f"[^\x00-\x7f][{_STYLE}\u20e3\U000e0020-\U000e007f\U0001f1e6-\U0001f1ff]*"  # with what only joins a character
# What is one emoji or (flags) a few: a superset by structure alone; the emoji library then says what it is.
_UNIT = f"{_PART}(?:\u200d{_PART})*\u200d?"
_UNITS = re.compile(_UNIT)
_UNITS_OR_KEYCAPS = re.compile(f"[0-9#*]\ufe0f?\u20e3|{_UNIT}")  # begins with common characters, so it is slower
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})|\\U([0-9a-fA-F]{8})")


@dataclass(frozen=True)
class LabelSet:
    """What the model predicts: emojis, emoticons or class names; the place of a name is its label id.

    `spellings` says what stands for each label in a text, by default the label's own name.
    """

    names: tuple[str, ...]
    spellings: tuple[tuple[str, ...], ...] = ()

    @property
    def forms(self) -> tuple[tuple[str, ...], ...]:
        """For each label, everything that stands for it in a text."""
        return self.spellings or tuple((name,) for name in self.names)

    def __post_init__(self) -> None:
        twice = [name for name, copies in groupby(sorted(self.names)) if len(list(copies)) > 1]
        if twice or len(self.names) < 2:
            fault = f"{twice[0]!r} comes twice" if twice else f"it has {len(self.names)} label(s)"
            raise UsageError(f"The label set cannot be used, {fault}: name at least two labels, each once.")


def load_labels(name_or_path: str | Path) -> LabelSet:
    r"""Read a label set: one that ships with the package (`emojis64`, `emojis20`, `emoticons2`) or a file.

    .txt, .csv and .tsv hold one label a line, in order of their ids, alone or in the first column (in the second if the
    first counts 0, 1, 2, ...); emojis may be spelled as \U0001f602. .json holds a list, an object {label: id}, or an
    object {label: [spelling, ...]} where several emojis or emoticons stand for one label.
    UsageError for an unknown name and for a file that holds no label set.
    """
    shipped = {item.name.removesuffix(".txt"): item for item in _shipped()}
    path = Path(name_or_path)
    if str(name_or_path) in shipped:
        return LabelSet(tuple(map(normalize, _read_lines(shipped[str(name_or_path)].read_text("utf-8")))))
    if not path.is_file():
        raise UsageError(
            f"There is no label set or file {str(name_or_path)!r}: give one of {', '.join(sorted(shipped))}, or a file."
        )
    try:
        text = path.read_text("utf-8-sig")
        content = json.loads(text) if path.suffix == ".json" else _read_lines(text)
        if isinstance(content, dict) and any(isinstance(value, list) for value in content.values()):
            return _read_spellings(content)
        names = _read_json(content)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path} is no label set ({error}): give one label a line, or a JSON list.") from error
    return LabelSet(tuple(map(normalize, names)))


def normalize(name: str) -> str:
    """The emoji without variation selectors and skin tone; a skin tone alone stays what it is."""
    return _STYLES.sub("", name) or name


def split_emojis(text: str) -> tuple[str, list[str]]:
    """Take the emojis off a text: the text without them, and they in order, without skin tone and variation selector.

    The blanks around an emoji go with it, but for one between words, so that "so😂true" does not become one word.
    """
    emojis: list[str] = []

    def take(found: re.Match[str]) -> str:
        rest, here = _take_apart(found[0])
        emojis.extend(here)
        return rest

    if not text.isascii():
        marked = (_UNITS_OR_KEYCAPS if "\u20e3" in text else _UNITS).sub(take, text)
    if not emojis:
        return text, emojis
    # Once more, for what was taken may have stood between the halves of a flag or of a joined emoji.
    rest, more = split_emojis(" ".join(filter(None, (piece.strip(" ") for piece in marked.split(_TAKEN)))))
    return rest, emojis + more


def split_emojis_column(texts: "pa.Array | pa.ChunkedArray") -> tuple[pa.Array, pa.ListArray]:
    """Take the emojis off n texts, as `split_emojis` does: n texts without them, and n lists of emojis (strings).

    Rows of ASCII alone are passed by. A null counts as an empty text.
    """
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    texts = pc.fill_null(texts, "")
    candidates = pc.match_substring_regex(texts, r"[^\x00-\x7f]")
    split = [split_emojis(text) for text in texts.filter(candidates).to_pylist()]
    lengths = np.zeros(len(texts), np.int64)
    lengths[candidates.to_numpy(zero_copy_only=False)] = [len(emojis) for _, emojis in split]
    offsets = pa.array(np.concatenate(([0], np.cumsum(lengths))), pa.int32())
    found = pa.array([one for _, emojis in split for one in emojis], pa.string())
    clean = pc.replace_with_mask(texts, candidates, pa.array([text for text, _ in split], texts.type))
    return clean, pa.ListArray.from_arrays(offsets, found)


@lru_cache(1 << 16)
def _take_apart(unit: str) -> tuple[str, tuple[str, ...]]:
    """What stays in the text, with a mark where an emoji was, and the emojis."""
    rest = ""
    emojis: list[str] = []
    for token in emoji.analyze(unit, non_emoji=True):
        if isinstance(token.value, str) and token.chars not in OTHER_SYMBOLS:
            rest += token.chars
        else:
            rest += _TAKEN
            emojis.append(normalize(token.chars))
    return (_LOOSE_ENDS.sub("", rest) if emojis else unit), tuple(emojis)


def _shipped() -> Iterator[Traversable]:
    return (item for item in files("deepmoji").joinpath("data").iterdir() if item.name.endswith(".txt"))


def _read_lines(text: str) -> list[str]:
    rows = [
        row for row in csv.reader(StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE) if any(map(str.strip, row))
    ]
    is_numbered = all(len(row) > 1 and row[0].strip() == str(place) for place, row in enumerate(rows))
    return [_unescape(row[is_numbered].strip()) for row in rows]


def _unescape(name: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[1] or found[2], 16)), name)


def _read_spellings(content: dict[str, object]) -> LabelSet:
    forms = []
    for name, spellings in content.items():
        if not isinstance(spellings, list) or not spellings or not all(isinstance(one, str) for one in spellings):
            raise ValueError(f"the spellings of {name!r} are no list of texts")
        forms.append(tuple(map(normalize, spellings)))
    return LabelSet(tuple(content), tuple(forms))


def _read_json(content: object) -> list[str]:
    if isinstance(content, dict):
        if sorted(content.values()) != list(range(len(content))):
            raise ValueError("its ids are not 0, 1, 2, ...")
        content = sorted(content, key=content.__getitem__)
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise ValueError("it is neither a list of names nor an object of ids by name")
    return content
