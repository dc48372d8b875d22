"""The tokenizer's rules written down line by line, with no thought of speed: what `tokenizing.py` measures against.

It shares no code with `deepmoji.text`, so that equal tokens say something about both.
"""

import re
import unicodedata
from itertools import groupby, product

from text_unidecode import unidecode

EMOTICONS = [re.escape(e) for e in ("-_-", "x_x", "^_^", "o.o", "o_o", "(:", "):", ");", "(;")] + [
    f"{re.escape(eyes)}{re.escape(nose)}?{re.escape(mouth)}+"
    for eyes, nose, mouth in product((">:", ":", "=", ";"), "-,^'\"", "DdpPv)oO(3/|\\")
]
SYMBOLS = [re.escape(symbol) + "+" for symbol in "()<!?.,/'\"-_=\\§|´ˇ°[]>{}~$^&*;:%+€`"]
RULES = [
    r"(?:https?://|www\.)(?:[a-zA-Z]|[0-9]|[$-_@.&+]|[!*(),]|%[0-9a-fA-F][0-9a-fA-F])+",
    r"\b[a-zA-Z0-9_.+-]+@[a-zA-Z0-9-]+\.[a-zA-Z0-9.-]+\b",
    r"[a-zA-Z]+[-_][a-zA-Z]+",
    r"#[a-zA-Z0-9_]+",
    r"@[a-zA-Z0-9_]+",
    r"(?:<+/?3+)+",
    *EMOTICONS,
    r"[a-zA-Z]+'[a-zA-Z]+",
    *(rf"{title}\." for title in ("Mr", "Ms", "Mrs", "Dr", "Prof")),
    r"\b(?<!\.)(?:[A-Za-z]\.){2,}",
    r"[0-9]+",
    r"[a-zA-Z]+",
    *SYMBOLS,
    r"#+(?=#[a-zA-Z0-9_]+)",
    r"@+(?=@[a-zA-Z0-9_]+)",
    r"#+",
    r"@+",
    r".",
]
TOKEN = re.compile(rf"\s+|({'|'.join(RULES)})", re.IGNORECASE)
URL, MENTION = re.compile(RULES[0]), re.compile(RULES[4])
BREAKS = ("\\\\n", "\\n", "\n", "\\\\r", "\\r", "\r", "<br>")
PUNCTUATION = "!\"#$'()+,-.:;<=>?@`~"


def tokenize(line: str) -> list[str]:
    """One line to its tokens."""
    line = line.strip().lower()
    for mark in BREAKS:
        line = line.replace(mark, " CUSTOM_BREAK ")
    for code in range(0xFE00, 0xFE10):
        line = line.replace(chr(code), "")
    line = " ".join(punctuation_to_ascii(word) for word in line.split())
    return [special(shorten(token)) for token in TOKEN.findall(line) if token.strip()]


def punctuation_to_ascii(word: str) -> str:
    """NFKC, then every character that reads as ASCII punctuation becomes it."""
    if word.isascii():
        return word
    characters = []
    for character in unicodedata.normalize("NFKC", word):
        reading = unidecode(character).lower()
        is_punctuation = bool(reading) and all(part in PUNCTUATION for part in reading)
        characters.append(reading if is_punctuation else character)
    return "".join(characters)


def shorten(token: str) -> str:
    """Runs of three and more of one character become two, in ASCII tokens."""
    if not token.isascii():
        return token
    runs = ["".join(group) for _, group in groupby(token)]
    for run in runs:
        if len(run) >= 3:
            token = token.replace(run, run[0] * 2)
    return token


def special(token: str) -> str:
    """Numbers, mentions and URLs are one token each."""
    try:
        int(token)
    except ValueError:
        if MENTION.search(token):
            return "CUSTOM_AT"
        return "CUSTOM_URL" if URL.search(token) else token
    return "CUSTOM_NUMBER"
