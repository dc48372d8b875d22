"""Tokens: each rule of the published tokenizer by an example, and the column path against the plain one."""

import gzip
import json
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from itertools import pairwise
from pathlib import Path
from subprocess import run

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepmoji.text import tokenize, tokenize_column

# What rules are about, so that chance brings them together: Unicode alone would hardly ever spell "www.".
PIECES = """
@ # ## @@user http:// https://t.co/x www. a@b.co .com . .. … !!! <3 < /3 : - ) :-) >:( =D x_x o.o -_- ^_^ mr. Mrs.
U.S.A. don't ' ’ “ red-haired _ 1 22 333 ٣ ² ½ ™ ℡ 𝐓 𝐃 ı ſ K İ Σ ΑΣ \\n \\\\r \\ <br> <BR> \ufe0f ❤️ 👍🏽 soooo
aaabaaaa HAHAHAAA é ñandú 日本 £ €€ § ´ ˇ ° ¨ ﬁ ① Ⅷ \0 \x7f %41 $ &amp; ~ ` | [ ] { } * + = ‼ ⁉ « — ＠user ＃tag ： ）
\ufffd \U0001f1fa\U0001f1f8 e-mail \u200d \u0301
""".split()  # noqa: SIM905
WHITE = (" ", "  ", "\n", "\r", "\r\n", "\t", "\v", "\x1c", "\x85", "\xa0", "\u2028", "\u3000")
TEXTS = st.one_of(
    st.text(),
    st.text(st.characters()),  # with lone surrogates
    st.lists(st.sampled_from((*PIECES, *WHITE)) | st.characters(), max_size=12).map("".join),
)


def rows(texts: list[str]) -> list[list[str]]:
    tokens, offsets = tokenize_column(texts)
    flat = tokens.to_pylist()
    assert offsets[0] == 0 and offsets[-1] == len(flat)
    return [flat[start:end] for start, end in pairwise(offsets.tolist())]


@pytest.fixture(scope="module")
def plain(project_root: Path) -> Callable[[str], list[str]]:
    """The line-by-line tokenizer of the benchmarks, which shares no code with the library."""
    spec = spec_from_file_location("plain_tokenizer", project_root / "benchmarks" / "plain_tokenizer.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    tokenize_line: Callable[[str], list[str]] = module.tokenize
    return tokenize_line


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", []),
        (" \n ", []),
        ("I LOVE it", ["i", "love", "it"]),
        ("see https://t.co/aB1?x=1 now", ["see", "CUSTOM_URL", "now"]),
        ("http://x\\ny http://z<br>", ["CUSTOM_URL", "CUSTOM_BREAK", "y", "CUSTOM_URL", "CUSTOM_BREAK"]),
        ("www.x.com", ["ww.x.com"]),  # the elongation rule comes first, as published
        ("me.you+1@mail.example.com", ["CUSTOM_AT"]),
        ("http://x.com/@me", ["CUSTOM_AT"]),
        ("@Some_1: @@two", ["CUSTOM_AT", ":", "@", "CUSTOM_AT"]),
        ("##Tag1 #", ["#", "#tag1", "#"]),
        ("<3 <//3 <33<3", ["<3", "<", "//", "CUSTOM_NUMBER", "<33<3"]),
        (":-) :)) >:( ;D =/ x_x o.o (:", [":-)", ":))", ">:(", ";d", "=/", "x_x", "o.o", "(:"]),
        ("don't y'all'd", ["don't", "y'all", "'", "d"]),
        ("Mr. Mrs. Prof. Sir.", ["mr.", "mrs.", "prof.", "sir", "."]),
        ("U.S.A. a.m x.y.z.", ["u.s.a.", "a", ".", "m", "x.y.z."]),
        ("red-haired a_b-c", ["red-haired", "a_b", "-", "c"]),
        (
            "42 4ever 1,000.5",
            [
                "CUSTOM_NUMBER",
                "CUSTOM_NUMBER",
                "ever",
                *("CUSTOM_NUMBER", ",") * 1,
                "CUSTOM_NUMBER",
                ".",
                "CUSTOM_NUMBER",
            ],
        ),
        ("٣ ² ½", ["CUSTOM_NUMBER", "CUSTOM_NUMBER", "CUSTOM_NUMBER", "⁄", "CUSTOM_NUMBER"]),
        ("!!!! ?!? ......", ["!!", "?", "!", "?", ".."]),
        ("sooooo haaahaaaa", ["soo", "haahaaa"]),  # "aaa" is replaced first, inside "aaaa" too, as published
        ("ñooooo", ["ñ", "oo"]),
        ("££ €€€€", ["£", "£", "€€€€"]),
        ("a\nb\r\nc", ["a", "CUSTOM_BREAK", "b", "CUSTOM_BREAK", "CUSTOM_BREAK", "c"]),
        ("a\\nb\\\\rc<BR>d", ["a", "CUSTOM_BREAK", "b", "CUSTOM_BREAK", "c", "CUSTOM_BREAK", "d"]),
        ("“so”… it’s — ‼", ['"', "so", '"', "..", "it's", "--", "!!"]),
        ("a\xa0b\u3000c", ["a", "b", "c"]),
        ("❤️❤ 👍🏽", ["❤", "❤", "👍", "🏽"]),
        ("ﬁne ＡＢ ℡", ["fine", "ab", "TEL"]),  # capitals made by NFKC stay, as published
        (":𝐃", [":D"]),
        ("日本", ["日", "本"]),
        ("ΑΣ ΑΣΑ", ["α", "ς", "α", "σ", "α"]),
        ("CUSTOM_URL", ["custom_url"]),
        ("\ud83d\ude00 \ud83d", ["😀", "\ufffd"]),
    ],
)
def test_each_rule(text: str, tokens: list[str]) -> None:
    assert tokenize(text) == tokens
    assert rows([text]) == [tokens]


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_any_text_gives_the_tokens_of_the_plain_rules(plain: Callable[[str], list[str]], text: str) -> None:
    joined = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert tokenize(text) == plain(joined)


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXTS, max_size=6))
def test_a_column_gives_the_tokens_of_each_text(texts: list[str]) -> None:
    assert rows(texts) == [tokenize(text) for text in texts]


@settings(deadline=None)
@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=8))
def test_chunks_by_themselves_give_the_tokens_of_the_line(chunks: list[str]) -> None:
    chunks = [chunk for chunk in chunks if not any(map(str.isspace, chunk))]
    assert tokenize(" ".join(chunks)) == [token for chunk in chunks for token in tokenize(chunk)]


@settings(deadline=None)
@given(TEXTS)
def test_tokens_hold_no_white_space_and_are_not_empty(text: str) -> None:
    assert all(token and not any(map(str.isspace, token)) for token in tokenize(text))


def test_column_takes_every_holder_of_texts() -> None:
    expected = [["a", "b"], [], ["b", "CUSTOM_BREAK", "c"]]
    texts = ["a b", None, "b\nc"]
    for held in (
        pa.array(texts),
        pa.array(texts, pa.large_string()),
        pa.array(["x", *texts, "y"]).slice(1, 3),
        pa.array(texts).dictionary_encode(),
        pa.chunked_array([texts[:1], texts[1:]]),
        texts,
    ):
        tokens, offsets = tokenize_column(held)
        flat = tokens.to_pylist()
        assert [flat[a:b] for a, b in pairwise(offsets.tolist())] == expected
    for empty in (pa.array([], pa.string()), pa.chunked_array([], pa.string()), list[str]()):
        tokens, offsets = tokenize_column(empty)
        assert len(tokens) == 0 and offsets.tolist() == [0]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_blocks_give_the_tokens_of_the_whole(monkeypatch: pytest.MonkeyPatch, kind: pa.DataType) -> None:
    texts = ["so good!", "", "…good good\n\nso", "@you so", "\n", "bad", "so good!"]
    expected = [tokenize(text) for text in texts]
    for size in (1, 2, 3, 7):
        monkeypatch.setattr("deepmoji.text._BLOCK_ROWS", size)
        tokens, offsets = tokenize_column(pa.array(texts, kind))
        flat = tokens.to_pylist()
        assert [flat[a:b] for a, b in pairwise(offsets.tolist())] == expected
        assert len(set(tokens.dictionary.to_pylist())) == len(tokens.dictionary)


def test_distinct_tokens_stand_once() -> None:
    tokens, _ = tokenize_column(["Soooo sooo soo!", "so SOO 1 22 @a @b"])
    assert sorted(tokens.dictionary.to_pylist()) == ["!", "CUSTOM_AT", "CUSTOM_NUMBER", "so", "soo"]


def test_import_is_light() -> None:
    code = "import sys, deepmoji.text; print(sorted({'torch', 'pandas', 'sklearn', 'mlflow'} & set(sys.modules)))"
    assert run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.realdata
def test_published_tokens(real_data: Path) -> None:
    with gzip.open(real_data.parent / "reference" / "tokens.jsonl.gz", "rt", encoding="utf-8") as lines:
        reference = [json.loads(line) for line in lines]
    assert len(reference) == 10_267
    expected = [line["tokens"] for line in reference]
    texts = [line["text"] for line in reference]
    assert sum(tokenize(text) != tokens for text, tokens in zip(texts, expected, strict=True)) == 0
    assert sum(found != tokens for found, tokens in zip(rows(texts), expected, strict=True)) == 0
