"""From text to tokens, by the published rules: one text at a time, or a whole Arrow column at once.

The rules are those of the tokenizer that the published vocabulary and weights were made with (Felbo et al. 2017,
section 3.1, and the code released with it). `tokenize` states them plainly. `tokenize_column` gives the same tokens
faster: no rule reaches across ASCII white space, so each distinct chunk between white space is worked on once.
"""

import re
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import groupby
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from text_unidecode import unidecode

AT, URL, NUMBER, BREAK = "CUSTOM_AT", "CUSTOM_URL", "CUSTOM_NUMBER", "CUSTOM_BREAK"

_MENTION = "@[a-zA-Z0-9_]+"
_WEB = r"(?:https?://|www\.)[!$-_a-z]+"  # $-_ are all ASCII characters from $ to _: capitals, digits, most signs
_EMAIL = r"\b[a-z0-9_.+-]++@[a-z0-9-]+\.[a-z0-9-.]+\b"
# In this order: the first that fits wins, not the longest. Signs run on only as copies of themselves: "!!", "?", "!".
_FORMS = (
    "[a-z]++[-_][a-z]+",  # red-haired
    "#[a-z0-9_]+",
    _MENTION,
    "(?:<+/?3+)+",  # hearts
    r"-_-|x_x|\^_\^|o\.o|o_o|\(:|\):|\);|\(;",
    r"(?:>:|[:=;])[-,^'\"]?(?:d+|p+|v+|\)+|o+|\(+|3+|/+|\|+|\\+)",  # :-)
    "[a-z]++'[a-z]+",  # contractions
    r"(?:mrs?|ms|dr|prof)\.",
    r"\b(?<!\.)(?:[a-z]\.){2,}",  # abbreviations
    "[0-9]+",
    "[a-z]+",
    "|".join(re.escape(sign) + "+" for sign in "()<!?.,/'\"-_=\\§|´ˇ°[]>{}~$^&*;:%+€`"),
    r"#+(?=#[a-z0-9_])|@+(?=@[a-z0-9_])|#+|@+",  # ##tag is "#", "#tag"
    ".",
    "\n",  # ends a chunk in `_tokenize_chunks`; elsewhere no line feed is left by now
)
# Case does not count, as in the published pattern: after the lowering, NFKC makes capitals out of some signs.
_TOKEN = re.compile(rf"[^\S\n]+|({'|'.join((_WEB, _EMAIL, *_FORMS))})", re.IGNORECASE)
_TOKEN_WITHOUT_AT = re.compile(rf"[^\S\n]+|({'|'.join((_WEB, *_FORMS))})", re.IGNORECASE)  # nothing to scan for e-mail
_MENTION_TOKEN = re.compile(_MENTION)
_WEB_TOKEN = re.compile(_WEB)
_LINE_BREAK = re.compile(r"\\{1,2}[nr]|<br>")  # as dumps spell it
_VARIATION_SELECTOR = re.compile("[\ufe00-\ufe0f]")
_WHITE_SPACE = "".join(character for character in map(chr, range(0x3001)) if character.isspace())
_ASCII_PUNCTUATION = frozenset("!\"#$'()+,-.:;<=>?@`~")  # what Unicode punctuation may become; not "*", "/", "[", "|"


def tokenize(text: str) -> list[str]:
    """Split a text into the tokens of the published tokenizer.

    Lower case; line breaks become CUSTOM_BREAK, variation selectors go; each word is brought to NFKC and its Unicode
    punctuation to ASCII; then the pattern splits it. Of the tokens, elongations of 3+ are cut to 2 (ASCII only), and
    numbers, mentions (e-mail addresses too) and URLs become CUSTOM_NUMBER, CUSTOM_AT and CUSTOM_URL. Halves of
    surrogate pairs are joined and lone ones read as U+FFFD, since neither UTF-8 nor Arrow can hold them.
    """
    return [_finish(token) for token in _split(_prepare(_mark_lines(_without_surrogates(text).strip())))]


def tokenize_column(texts: "pa.Array | pa.ChunkedArray | Sequence[str]") -> tuple[pa.DictionaryArray, np.ndarray]:
    """Tokenize a column of n texts, each exactly as `tokenize` does.

    Returns the tokens of all texts one after the other (dictionary-encoded: int32 codes into distinct tokens) and the
    int64 offsets (n + 1): text i has the tokens offsets[i] to offsets[i + 1]. A null has no tokens.
    """
    # Only the ends need Python's notion of white space: between them a chunk is free to hold the non-ASCII kinds.
    column = pc.utf8_trim(pc.ascii_lower(as_column(texts)), characters=_WHITE_SPACE)
    for line_end in "\n\r":
        column = pc.replace_substring(column, line_end, _mark_lines(line_end))
    rows = pc.ascii_split_whitespace(column)
    chunks = rows.flatten().dictionary_encode()
    occurrences = chunks.indices.to_numpy()

    tokens, codes, lengths = _tokenize_chunks(chunks.dictionary.to_pylist())
    starts = np.cumsum(lengths) - lengths
    row_codes = codes[ragged_index(starts[occurrences], lengths[occurrences])]
    token_ends = np.concatenate(([0], np.cumsum(lengths[occurrences])))
    return pa.DictionaryArray.from_arrays(pa.array(row_codes), tokens), token_ends[rows.offsets.to_numpy()]


def as_column(texts: "pa.Array | pa.ChunkedArray | Sequence[str]") -> pa.Array:
    """One large_string array without nulls of whatever holds the texts."""
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    if not isinstance(texts, pa.Array):
        try:
            texts = pa.array(texts, pa.large_string())
        except UnicodeEncodeError:
            texts = pa.array([_without_surrogates(text) for text in texts], pa.large_string())
    return pc.fill_null(texts.cast(pa.large_string()), "")


def ragged_index(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Where the elements of the runs starts[i] .. starts[i] + lengths[i] lie, run after run."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(lengths.sum())


def _tokenize_chunks(chunks: list[str]) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    """Distinct tokens, the codes of all chunks' tokens one after the other, and the number of tokens of each chunk."""
    simple = np.fromiter((chunk.isascii() and "@" not in chunk for chunk in chunks), bool, len(chunks))
    order = np.argsort(~simple, kind="stable")
    count = int(simple.sum())
    # One call of the pattern splits them all; a line feed, which no chunk can hold, tells where each ends.
    plain = "".join(f"{chunks[i]}\n" for i in order[:count])
    other = "".join(f"{_prepare(chunks[i])}\n" for i in order[count:])
    pieces = pa.array(_split(_LINE_BREAK.sub(f" {BREAK} ", plain)) + _split(other), pa.large_string())
    is_end = pc.equal(pieces, "\n")
    raw = pieces.filter(pc.invert(is_end)).dictionary_encode()
    finished = pa.array(map(_finish, raw.dictionary.to_pylist()), pa.large_string()).dictionary_encode()

    ends = np.flatnonzero(is_end.to_numpy(zero_copy_only=False))
    lengths = np.empty(len(chunks), np.int64)
    lengths[order] = np.diff(ends, prepend=-1) - 1
    codes = finished.indices.to_numpy()[raw.indices.to_numpy()]
    in_place = np.empty(len(codes), np.int32)
    in_place[ragged_index((np.cumsum(lengths) - lengths)[order], lengths[order])] = codes
    return finished.dictionary, in_place, lengths


def _without_surrogates(text: str) -> str:
    if text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _mark_lines(text: str) -> str:
    """Line ends in the spelling with a backslash, which `_LINE_BREAK` finds: so no white space has a meaning."""
    return text.replace("\n", r" \n ").replace("\r", r" \r ")


def _prepare(text: str) -> str:
    """The text ready for the pattern: lower case, breaks as tokens, ASCII punctuation, single spaces."""
    text = _VARIATION_SELECTOR.sub("", _LINE_BREAK.sub(f" {BREAK} ", text.lower()))
    return " ".join(word if word.isascii() else _normalize(word) for word in text.split())


def _normalize(word: str) -> str:
    return "".join(map(_to_ascii_punctuation, normalize("NFKC", word)))


@cache
def _to_ascii_punctuation(character: str) -> str:
    ascii_form = unidecode(character).lower()
    return ascii_form if ascii_form and _ASCII_PUNCTUATION.issuperset(ascii_form) else character


def _split(prepared: str) -> Iterable[str]:
    pattern = _TOKEN if "@" in prepared else _TOKEN_WITHOUT_AT
    return list(filter(None, pattern.findall(prepared)))


def _finish(token: str) -> str:
    """Cut elongations, then replace a token that stands for a whole kind."""
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
