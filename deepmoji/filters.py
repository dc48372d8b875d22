"""What makes a raw text fit for the corpus: clean it, take its emojis off as labels, and drop it by counted rules.

Columnar throughout: a rule looks at a whole column, or at each distinct white-space chunk once.
"""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from deepmoji.emojis import LabelSet, split_emojis, split_emojis_column
from deepmoji.english import ENGLISH
from deepmoji.errors import UsageError

Flags = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

# In the order in which they are applied; the last three need the whole corpus and come in `splits`.
RULES = {
    "not_sampled": "left out by the limit on rows",
    "empty": "blank",
    "too_long": "more characters than allowed",
    "retweet": "repeats somebody else's tweet (RT @name)",
    "url": "holds a web address, so it is about something not in the text",
    "no_label": "holds none of the wanted emojis",
    "no_text": "nothing but emojis",
    "broken": "more than a tenth is U+FFFD, what a wrong encoding leaves",
    "mentions_only": "nothing but names, addresses and emojis",
    "too_short": "fewer words than wanted",
    "not_english": "too few common English words",
    "spam": "the same text from too many rows",
    "duplicate": "the same text as an earlier row",
    "near_duplicate": "the same words as an earlier row, but for case, punctuation, names and numbers",
}

_RETWEET = r"(?:^|\W)RT\s*:?\s*@\w"
# The second half is what is left of an address in a tweet cut at 140 characters.
_URL = r"(?i)https?://|\bwww\.\w|\bt\.co/|\bpic\.twitter\.com/|\bhtt?p?s?:?/{0,2}(?:…|$)"
_LINE_BREAKS = r"\r\n|[\r\x0b\x0c\x1c-\x1e\x85\x{2028}\x{2029}]"  # all that str.splitlines breaks at
# Pieces of emojis that show nothing by themselves, and would still tell that one was there.
_REMAINS = r"[\x{FE0E}\x{FE0F}\x{20E3}\x{1F3FB}-\x{1F3FF}\x{E0020}-\x{E007F}]"
# Blocks where emojis live, generously: what matches is looked at once more.
EMOJI_LIKE = r"[©®\x{203C}\x{2049}\x{2122}\x{2139}\x{2190}-\x{2BFF}\x{3030}\x{303D}\x{3297}\x{3299}\x{1F000}-\x{1FBFF}]"
_LOOSE_JOINER = re.compile("(?<!\\w)\u200d|\u200d(?!\\w)")
_MENTION = re.compile(r"@\w+\W*$")
_ADDRESS = re.compile(r"(?:https?://|www\.\w)", re.IGNORECASE)
_NOT_WORD = re.compile(r"[\W_]+")
MAX_REPLACED = 0.1  # of a text's characters: more U+FFFD means a wrong encoding, not a broken character
MIN_JUDGED_WORDS = 4  # a share of fewer words says nothing about the language


@dataclass(frozen=True)
class Options:
    """The filters of the `ingest` section in params.yaml that look at one row."""

    drop_retweets: bool
    drop_urls: bool
    drop_mentions_only: bool
    english_share: float
    min_words: int
    max_characters: int


@dataclass(frozen=True)
class Cleaned:
    """What is left of a shard: n rows with their labels as lists, and how many rows each rule took."""

    rows: Ints  # (n,) places in the shard
    texts: pa.Array  # (n,) emoji-free
    labels: pa.Array  # (n,) list<int32>, ascending
    ids: pa.Array  # (n,) 32 hex digits
    keys: npt.NDArray[np.uint64]  # (n,) equal for near-duplicates
    dropped: dict[str, int]


class _Rows:
    """The rows still in, as places in the shard; every rule takes its share and is counted."""

    def __init__(self, count: int) -> None:
        self.left: Ints = np.arange(count)
        self.dropped: dict[str, int] = {}

    def drop(self, rule: str, hit: Flags) -> Flags:
        """Take out what is hit; returns which of the rows before are kept, to narrow columns by."""
        self.dropped[rule] = int(hit.sum())
        self.left = self.left[~hit]
        return ~hit


def label_table(labels: LabelSet) -> tuple[dict[str, int], dict[str, int]]:
    """Label ids by emoji, and by written label (an emoticon like ":)") for the spellings that hold no emoji.

    UsageError for a spelling that is neither one emoji nor one word, or that comes twice.
    """
    emojis: dict[str, int] = {}
    written: dict[str, int] = {}
    for label, name in ((label, name) for label, forms in enumerate(labels.forms) for name in forms):
        rest, found = split_emojis(name)
        rest = re.sub("[\ufe0e\ufe0f\u200d]", "", rest).strip()
        table, key = (emojis, found[0]) if len(found) == 1 and not rest else (written, name)
        if (found and table is written) or not key or key.split() != [key] or key in table:
            raise UsageError(f"Label {name!r} should be one emoji or one word that comes once in its label set.")
        table[key] = label
    return emojis, written


def clean_shard(texts: pa.Array, labels: LabelSet, options: Options, sampled: Flags | None = None) -> Cleaned:
    """Apply every rule that looks at one row, to a shard of raw texts (a string array without nulls)."""
    rows = _Rows(len(texts))
    if sampled is not None:
        texts = _keep(texts, rows.drop("not_sampled", ~sampled))
    texts = _keep(texts, rows.drop("empty", _flags(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0))))
    texts = _unescape(texts)
    texts = _keep(texts, rows.drop("too_long", _flags(pc.greater(pc.utf8_length(texts), options.max_characters))))
    if options.drop_retweets:
        texts = _keep(texts, rows.drop("retweet", _flags(pc.match_substring_regex(texts, _RETWEET))))
    if options.drop_urls:
        texts = _keep(texts, rows.drop("url", _flags(pc.match_substring_regex(texts, _URL))))
    texts, found = _take_labels(texts, labels)
    kept = rows.drop("no_label", _lengths(found) == 0)
    texts, found = _keep(texts, kept), _keep(found, kept)
    words = _Words(texts)
    kept = np.ones(len(texts), np.bool_)
    for rule, hit in words.rules(options):
        kept[kept] = rows.drop(rule, hit[kept])
    texts, found = _keep(texts, kept), _keep(found, kept)
    ids = [blake2b(text.encode(), digest_size=16).hexdigest() for text in texts.to_pylist()]
    return Cleaned(rows.left, texts, found, pa.array(ids, pa.string()), words.keys(kept), rows.dropped)


def _flags(array: pa.Array) -> Flags:
    flags: Flags = array.to_numpy(zero_copy_only=False)
    return flags


def _keep(array: pa.Array, kept: Flags) -> pa.Array:
    return array if kept.all() else array.filter(pa.array(kept))


def _lengths(lists: pa.Array) -> Ints:
    lengths: Ints = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths


def _replace_where(texts: pa.Array, hit: Flags, new: Sequence[str]) -> pa.Array:
    return pc.replace_with_mask(texts, pa.array(hit), pa.array(new, pa.string())) if len(new) else texts


def _unescape(texts: pa.Array) -> pa.Array:
    """`&amp;` and `&#128514;` as what they stand for; before the emojis are looked for, as some are written so."""
    hit = _flags(pc.match_substring_regex(texts, r"&#?\w+;?"))
    new = [html.unescape(text).replace("\0", "\ufffd") for text in _keep(texts, hit).to_pylist()]
    return _replace_where(texts, hit, new)


def tidy(texts: pa.Array) -> pa.Array:
    """One kind of line break, single blanks, no blanks around, and no invisible remains of emojis."""
    texts = pc.replace_substring_regex(texts, pattern=_LINE_BREAKS, replacement="\n")
    texts = pc.replace_substring_regex(texts, pattern=_REMAINS, replacement="")
    joined = _flags(pc.match_substring(texts, "\u200d"))
    texts = _replace_where(texts, joined, [_LOOSE_JOINER.sub("", text) for text in _keep(texts, joined).to_pylist()])
    texts = pc.replace_substring_regex(texts, pattern=r"[ \t]*\n[ \t\n]*", replacement="\n")
    texts = pc.replace_substring_regex(texts, pattern=r"[ \t]{2,}", replacement=" ")
    return pc.utf8_trim_whitespace(texts)


def _take_labels(texts: pa.Array, labels: LabelSet) -> tuple[pa.Array, pa.Array]:
    """Texts without emojis (and written labels), and each row's distinct label ids, ascending."""
    emojis, written = label_table(labels)
    classes = len(labels.names)
    rows: list[Ints] = []
    values: list[Ints] = []
    hit = np.ones(len(texts), np.bool_)
    while hit.any():  # again, where what was taken out may have brought the halves of another emoji together
        some, found = split_emojis_column(_keep(texts, hit))
        texts = pc.replace_with_mask(texts, pa.array(hit), tidy(some))
        rows.append(np.repeat(np.flatnonzero(hit), _lengths(found)))
        values.append(_look_up(pc.list_flatten(found), emojis))
        hit[hit] = _lengths(found) > 0
        hit &= _flags(pc.match_substring_regex(texts, EMOJI_LIKE))
    if written:
        texts, written_rows, written_values = _take_written(texts, written)
        texts = tidy(texts)
        rows.append(written_rows)
        values.append(written_values)
    row = np.concatenate([*rows, np.zeros(0, np.int64)])
    value = np.concatenate([*values, np.zeros(0, np.int64)])
    pairs = np.unique(row[value >= 0] * classes + value[value >= 0])
    offsets = np.searchsorted(pairs, np.arange(len(texts) + 1) * classes)
    lists = pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), pa.array((pairs % classes).astype(np.int32), pa.int32())
    )
    return texts, lists


def _look_up(values: pa.Array, table: Mapping[str, int]) -> Ints:
    """Label ids, -1 for what is no label."""
    place = pc.index_in(values, pa.array(list(table), pa.string())).fill_null(len(table))
    ids = np.array([*table.values(), -1], np.int64)
    found: Ints = ids[place.to_numpy(zero_copy_only=False)]
    return found


def _take_written(texts: pa.Array, table: Mapping[str, int]) -> tuple[pa.Array, Ints, Ints]:
    names = "|".join(re.escape(name) for name in sorted(table, key=len, reverse=True))
    pattern = re.compile(rf"(?<!\S)(?:{names})(?!\S)")
    rows: list[int] = []
    values: list[int] = []
    clean = []
    for row, text in enumerate(texts.to_pylist()):
        for name in pattern.findall(text):
            rows.append(row)
            values.append(table[name])
        clean.append(pattern.sub("", text))
    return pa.array(clean, pa.string()), np.array(rows, np.int64), np.array(values, np.int64)


class _Words:
    """The white-space chunks of a column, each distinct one looked at once."""

    def __init__(self, texts: pa.Array) -> None:
        self.texts = texts
        chunks = pc.utf8_split_whitespace(texts)
        flat = pc.list_flatten(chunks).dictionary_encode()
        self.index: Ints = flat.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        self.row = np.repeat(np.arange(len(texts)), _lengths(chunks))
        distinct = flat.dictionary.to_pylist()
        self.forms = [_word_form(chunk) for chunk in distinct]
        named = [_MENTION.match(chunk) is not None or _ADDRESS.match(chunk) is not None for chunk in distinct]
        self.named = np.array(named, np.bool_)  # a mention or an address
        self.worded = np.array([bool(_NOT_WORD.sub("", chunk)) for chunk in distinct], np.bool_)
        self.judged = np.array(
            [form.isalpha() and not c.startswith("#") for form, c in zip(self.forms, distinct, strict=True)], np.bool_
        )
        self.english = np.array([form in ENGLISH for form in self.forms], np.bool_) & self.judged

    def count(self, of: Flags) -> Ints:
        """(n,) how many chunks of each row are of this kind."""
        counts: Ints = np.bincount(self.row[of[self.index]], minlength=len(self.texts))
        return counts

    def rules(self, options: Options) -> list[tuple[str, Flags]]:
        worded = self.count(self.worded | self.named)
        result = [("no_text", _flags(pc.equal(pc.utf8_length(self.texts), 0)))]
        replaced = np.asarray(pc.count_substring(self.texts, "\ufffd")) / np.maximum(pc.utf8_length(self.texts), 1)
        result.append(("broken", replaced > MAX_REPLACED))
        if options.drop_mentions_only:
            result.append(("mentions_only", (worded > 0) & (worded == self.count(self.named))))
        result.append(("too_short", worded < options.min_words))
        if options.english_share > 0:
            judged = self.count(self.judged)
            share = self.count(self.english) / np.maximum(judged, 1)
            result.append(("not_english", (judged >= MIN_JUDGED_WORDS) & (share < options.english_share)))
        return result

    def keys(self, kept: Flags) -> npt.NDArray[np.uint64]:
        """Hashes of the kept rows' word forms; of the text itself where it has none (only signs)."""
        formed = np.array([bool(form) for form in self.forms], np.bool_)[self.index]
        flat = pa.array(self.forms, pa.string()).take(pa.array(self.index[formed]))
        offsets = np.searchsorted(self.row[formed], np.arange(len(self.texts) + 1))
        joined = pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat), " ")
        whole = pc.equal(pc.utf8_length(joined), 0)
        texts = _keep(pc.if_else(whole, self.texts, joined), kept).to_pylist()
        hashes = b"".join(blake2b(text.encode(), digest_size=8).digest() for text in texts)
        return np.frombuffer(hashes, "<u8").astype(np.uint64)


def _word_form(chunk: str) -> str:
    """Lower case without punctuation; "" for mentions and addresses, "0" for anything with a digit."""
    if chunk.startswith("@") or _ADDRESS.match(chunk):
        return ""
    form = _NOT_WORD.sub("", chunk).lower()
    return "0" if any(map(str.isdigit, form)) else form
