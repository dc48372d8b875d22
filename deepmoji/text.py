"""From text to tokens, by the published rules: one text at a time, or a whole Arrow column at once.

The rules are those of the tokenizer that the published vocabulary and weights were made with (Felbo et al. 2017,
section 3.1, and the code released with it). `tokenize` states them plainly. `tokenize_column` gives the same tokens
faster: no rule reaches across ASCII white space, so each distinct chunk between white space is worked on once.
"""

import re
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from typing import TypeAlias
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from text_unidecode import unidecode

Texts: TypeAlias = "pa.Array | pa.ChunkedArray | Sequence[str]"
AT, URL, NUMBER, BREAK = "CUSTOM_AT", "CUSTOM_URL", "CUSTOM_NUMBER", "CUSTOM_BREAK"

_BLOCK_ROWS = 1 << 16
_LETTERS = "[a-zA-Z][a-zA-Z]*+"
_MENTION = "@[a-zA-Z0-9_]+"
_WEB = r"https?://[!$-_a-z]+|www\.[!$-_a-z]+"  # $-_ are all ASCII characters from $ to _: digits and most signs
_EMAIL = r"\b[a-zA-Z0-9_.+-]++@[a-zA-Z0-9-]+\.[a-zA-Z0-9-.]+\b"
_EYES = ("[:=;]", ">:")
_NOSE_AND_MOUTH = r"[-,^'\"]?(?:d+|p+|v+|\)+|o+|\(+|3+|/+|\|+|\\+)"
# In this order: the first that fits wins, not the longest. Signs run on only as copies of themselves: "!!", "?", "!".
# Written "xx*", not "x+", for speed: the engine skips what starts with a plain character or set that is not there.
_FORMS = (
    f"{_LETTERS}[-_]{_LETTERS}",  # red-haired
    "#[a-zA-Z0-9_]+",
    _MENTION,
    "<<*/?3+(?:<+/?3+)*",  # hearts
    *map(re.escape, ("-_-", "x_x", "^_^", "o.o", "o_o", "(:", "):", ");", "(;")),
    *(eyes + _NOSE_AND_MOUTH for eyes in _EYES),
    f"{_LETTERS}'{_LETTERS}",  # contractions
    *(rf"{title}\." for title in ("mr", "ms", "mrs", "dr", "prof")),
    r"[a-zA-Z](?<![\w.].)\.(?:[a-zA-Z]\.)+",  # abbreviations, not inside a word nor after a dot
    "[0-9][0-9]*",
    _LETTERS,
    *(f"{sign}{sign}*" for sign in map(re.escape, "()<!?.,/'\"-_=\\§|´ˇ°[]>{}~$^&*;:%+€`")),
    "#+(?=#[a-zA-Z0-9_])|@+(?=@[a-zA-Z0-9_])|##*|@@*",  # ##tag is "#", "#tag"
    ".",
)
_OTHER = "[\u0300-\u20ab\u20ad-\u2129\u212b-\U0010ffff]"  # emojis and scripts: begin no other form, so are tried first
_PLAIN_WEB = re.compile(r"https?://[a-z0-9][!$-?A-_a-z]*")
_MENTION_TOKEN = re.compile(_MENTION)
_WEB_TOKEN = re.compile(_WEB)
_LINE_BREAK = re.compile(r"\\{1,2}[nr]|<br>")  # as dumps spell it
_VARIATION_SELECTOR = re.compile("[\ufe00-\ufe0f]")
_WHITE_SPACE = "".join(character for character in map(chr, range(0x3001)) if character.isspace())
_ASCII_PUNCTUATION = frozenset("!\"#$'()+,-.:;<=>?@`~")  # what Unicode punctuation may become; not "*", "/", "[", "|"
# For Arrow: chunks that are one token as they stand (not a URL with a line break spelled out inside) ...
_WHOLE = "^(?:[a-z]+|[0-9]+|[@#][a-z0-9_]+|https?://[!$-;=-\\[\\]-_a-z]+)$"
# ... and tokens that `_finish` may change.
_UNFINISHED = "|".join(("^[0-9]|@|^http|^www|[^\\x00-\\x7f]", *(re.escape(chr(code)) + "{3}" for code in range(128))))


def tokenize(text: str) -> list[str]:
    """Split a text into the tokens of the published tokenizer.

    Lower case; line breaks become CUSTOM_BREAK, variation selectors go; each word is brought to NFKC and its Unicode
    punctuation to ASCII; then the pattern splits it. Of the tokens, elongations of 3+ are cut to 2 (ASCII only), and
    numbers, mentions (e-mail addresses too) and URLs become CUSTOM_NUMBER, CUSTOM_AT and CUSTOM_URL. Halves of
    surrogate pairs are joined and lone ones read as U+FFFD, since neither UTF-8 nor Arrow can hold them.
    """
    return [_finish(token) for token in _split(_mark_lines(_without_surrogates(text).strip()))]


def tokenize_column(texts: Texts) -> tuple[pa.DictionaryArray, np.ndarray]:
    """Tokenize a column of n texts, each exactly as `tokenize` does.

    Returns the tokens of all texts one after the other (dictionary-encoded: int32 codes into distinct tokens) and the
    int64 offsets (n + 1): text i has the tokens offsets[i] to offsets[i + 1]. A null has no tokens.
    """
    column = as_column(texts)
    # Blocks, since the arrays of one block stay in the processor's cache: half the time on a million texts.
    starts = range(0, max(1, len(column)), _BLOCK_ROWS)
    blocks = [_encode_chunks(column.slice(start, _BLOCK_ROWS)) for start in starts]
    chunks, codes = _unify([found for found, _ in blocks])
    tokens, tokens_of = _tokenize_chunks(chunks)

    flat, ends = [], [np.zeros(1, np.int64)]
    for block_codes, (_, row_starts) in zip(codes, blocks, strict=True):
        found = tokens_of.take(block_codes)
        flat.append(found.values)
        ends.append(found.offsets.to_numpy()[row_starts[1:]] + ends[-1][-1])
    return pa.DictionaryArray.from_arrays(pa.concat_arrays(flat), tokens), np.concatenate(ends)


def as_column(texts: Texts) -> pa.Array:
    """One string array without nulls (large_string from 1 GB on) of whatever holds the texts."""
    if isinstance(texts, pa.ChunkedArray):
        texts = pa.concat_arrays(texts.cast(pa.large_string()).chunks) if texts.num_chunks else []
    if not isinstance(texts, pa.Array):
        try:
            texts = pa.array(texts, pa.large_string())
        except UnicodeEncodeError:
            texts = pa.array([_without_surrogates(text) for text in texts], pa.large_string())
    # Arrow is about twice as fast on 32-bit offsets; marked line ends make a text longer, hence the margin.
    return pc.fill_null(texts.cast(pa.string() if texts.nbytes < 2**30 else pa.large_string()), "")


def _buffers(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of all texts one after the other, and the n + 1 places where texts start, without copying."""
    _, offsets, data = column.buffers()
    width = np.int64 if pa.types.is_large_string(column.type) else np.int32
    starts = np.frombuffer(offsets, width)[column.offset :][: len(column) + 1] if len(column) else np.zeros(1, width)
    return np.frombuffer(data or b"", np.uint8)[: starts[-1]], starts


def _mark_lines_of_column(column: pa.Array) -> pa.Array:
    data, _ = _buffers(column)
    if not ((data == 10) | (data == 13)).any():
        return column
    several_lines = pc.match_substring_regex(column, "[\n\r]")
    marked = pc.utf8_trim(column.filter(several_lines), characters=_WHITE_SPACE)  # line ends at the ends mean nothing
    for line_end in "\n\r":
        marked = pc.replace_substring(marked, line_end, _mark_lines(line_end))
    return pc.replace_with_mask(column, several_lines, marked)


def _encode_chunks(column: pa.Array) -> tuple[pa.DictionaryArray, np.ndarray]:
    """The texts cut behind each blank and control character of ASCII, and the n + 1 places where a text's chunks start.

    A chunk keeps the character it was cut behind, so that all chunks are a view of the column's own bytes.
    """
    column = _mark_lines_of_column(pc.ascii_lower(column))
    data, row_starts = _buffers(column)
    is_cut = np.zeros(len(data) + 1, bool)
    is_cut[1:] = data <= ord(" ")
    is_cut[row_starts] = True
    is_cut[: row_starts[0]] = False
    cuts = np.flatnonzero(is_cut).astype(row_starts.dtype)
    chunks = pa.Array.from_buffers(column.type, len(cuts) - 1, [None, pa.py_buffer(cuts), pa.py_buffer(data)])
    return chunks.dictionary_encode(), np.searchsorted(cuts, row_starts)


def _unify(columns: list[pa.DictionaryArray]) -> tuple[pa.Array, list[pa.Array]]:
    """One array of distinct values for all columns, and each column's codes into it."""
    if len(columns) == 1:
        return columns[0].dictionary, [columns[0].indices]
    every = pa.concat_arrays([column.dictionary.cast(pa.large_string()) for column in columns]).dictionary_encode()
    sizes = [len(column.dictionary) for column in columns]
    new_codes = [every.indices.slice(sum(sizes[:place]), size) for place, size in enumerate(sizes)]
    return every.dictionary, [new.take(column.indices) for new, column in zip(new_codes, columns, strict=True)]


def _tokenize_chunks(chunks: pa.Array) -> tuple[pa.Array, pa.ListArray]:
    """The distinct tokens, and for each chunk the list of its tokens' codes."""
    chunks = pc.utf8_rtrim(chunks, characters=" ")
    is_whole = pc.match_substring_regex(chunks, _WHOLE)
    has_at = pc.match_substring(chunks, "@")
    is_ascii = pc.string_is_ascii(chunks)
    by_pattern = (pc.and_not(is_ascii, has_at), pc.invert(pc.or_(is_ascii, has_at)), has_at)  # see `_pattern`
    groups = [pc.and_not(group, is_whole) for group in by_pattern]
    # One call of the pattern splits a whole group; a line feed, which no chunk can hold, tells where each chunk ends.
    pieces = pa.array([piece for group in groups for piece in _split(_lines(chunks.filter(group)))], chunks.type)
    is_end = pc.equal(pieces, "\n")
    raw = pa.concat_arrays([chunks.filter(is_whole), pieces.filter(pc.invert(is_end))]).dictionary_encode()
    finished = _finish_column(raw.dictionary).dictionary_encode()

    places = [np.flatnonzero(group) for group in (is_whole, *groups)]
    lengths = np.concatenate((np.ones(len(places[0]), np.int64), np.diff(np.flatnonzero(is_end), prepend=-1) - 1))
    offsets = pa.array(np.concatenate(([0], np.cumsum(lengths))), pa.int32())
    in_group_order = pa.ListArray.from_arrays(offsets, finished.indices.take(raw.indices))
    return finished.dictionary, in_group_order.take(pa.array(np.argsort(np.concatenate(places))))


def _lines(chunks: pa.Array) -> str:
    """All chunks as one text, each ended by a line feed."""
    joined: str = pc.binary_join(pa.ListArray.from_arrays([0, len(chunks)], chunks), pa.scalar("\n", chunks.type))[
        0
    ].as_py()
    return joined + "\n" if len(chunks) else ""


def _finish_column(tokens: pa.Array) -> pa.Array:
    unfinished = pc.match_substring_regex(tokens, _UNFINISHED)
    finished = map(_finish, tokens.filter(unfinished).to_pylist())
    return pc.replace_with_mask(tokens, unfinished, pa.array(finished, tokens.type))


def _without_surrogates(text: str) -> str:
    if text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _mark_lines(text: str) -> str:
    """Line ends in the spelling with a backslash, which `_LINE_BREAK` finds: so no white space has a meaning."""
    return text.replace("\n", r" \n ").replace("\r", r" \r ")


def _split(text: str) -> list[str]:
    """What the pattern finds in the text once that is lower case, its breaks tokens, its Unicode punctuation ASCII."""
    prepared = _LINE_BREAK.sub(f" {BREAK} ", text.lower())
    if not text.isascii():
        # Word by word in the published code; the same on the whole, since nothing composes across white space.
        prepared = normalize("NFKC", _VARIATION_SELECTOR.sub("", prepared))
        prepared = prepared.translate({ord(character): _to_ascii_punctuation(character) for character in set(prepared)})
    return list(filter(None, _pattern(text.isascii(), "@" in prepared).findall(prepared)))


@cache
def _to_ascii_punctuation(character: str) -> str:
    ascii_form = unidecode(character).lower()
    return ascii_form if ascii_form and _ASCII_PUNCTUATION.issuperset(ascii_form) else character


@cache
def _pattern(is_ascii: bool, has_at: bool) -> re.Pattern[str]:
    """The pattern for texts of one kind: each leaves out only what cannot match there, and is the faster for it."""
    forms = "|".join((_WEB, _EMAIL, *_FORMS) if has_at else (_WEB, *_FORMS))
    # As published, case does not count; that only shows where NFKC, after the lowering, made capitals out of signs.
    # A line feed is a token here: it ends a chunk in `_tokenize_chunks`, and elsewhere none is left by now.
    return re.compile(rf"[^\S\n]+|(\n|{_OTHER}|{forms})", re.NOFLAG if is_ascii else re.IGNORECASE)


def _finish(token: str) -> str:
    """Cut elongations, then replace a token that stands for a whole kind."""
    if _PLAIN_WEB.fullmatch(token):
        return URL  # as below, only sooner: nearly every one is new
    token = _shorten(token)
    if token.isdecimal():
        return NUMBER
    if _MENTION_TOKEN.search(token):  # an e-mail address too, and a URL with an @ inside, as published
        return AT
    return URL if _WEB_TOKEN.search(token) else token


def _shorten(token: str) -> str:
    if len(token) < 3 or not token.isascii():
        return token
    for run in ["".join(group) for _, group in groupby(token)]:
        if len(run) > 2:
            # Replaced wherever it occurs, as published: after "aaa", the longer "aaaa" of the same word becomes "aaa".
            token = token.replace(run, run[0] * 2)
    return token
