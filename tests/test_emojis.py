"""Emojis and label sets: what is one emoji, what is left of a text, which files name labels."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepmoji.emojis import LabelSet, load_labels, normalize, split_emojis, split_emojis_column
from deepmoji.errors import UsageError

PIECES = ["a", "1", "#", "😂", "❤", "❤️", "♡", "🏽", "👍🏽", "\u200d", "️", "⃣", "🇺", "🇸", "👩", "⚕", "é", "™"]
TEXTS = st.one_of(st.text(), st.lists(st.sampled_from((*PIECES, " ", "\n"))).map("".join))


@pytest.mark.parametrize(
    ("text", "clean", "emojis"),
    [
        ("plain  text ", "plain  text ", []),
        ("I ❤️ you ❤", "I you", ["❤", "❤"]),
        ("so😂true", "so true", ["😂"]),
        ("so 😂 😂  true", "so true", ["😂", "😂"]),
        ("👩🏽‍⚕️ ok 👍🏿👍", "ok", ["👩‍⚕", "👍", "👍"]),
        ("1️⃣2⃣3 #️⃣", "3", ["1⃣", "2⃣", "#⃣"]),
        ("🇺🇸🇬🇧 🇺", "🇺", ["🇺🇸", "🇬🇧"]),
        ("👨‍👩‍👧‍👦 at home", "at home", ["👨‍👩‍👧‍👦"]),
        ("👨🏽‍👩🏽‍👧🏽", "", ["👨‍👩‍👧"]),
        ("🏴󠁧󠁢󠁥󠁮󠁧󠁿 wins", "wins", ["🏴󠁧󠁢󠁥󠁮󠁧󠁿"]),
        ("🗺🇫\u200d🇮", "🇫\u200d🇮", ["🗺"]),  # two halves must not become a flag by what is taken
        ("♡ ♥︎", "", ["♡", "♥"]),
        ("क्‍ष é…", "क्‍ष é…", []),
    ],
)
def test_split(text: str, clean: str, emojis: list[str]) -> None:
    assert split_emojis(text) == (clean, emojis)


@settings(deadline=None)
@given(TEXTS)
def test_what_is_left_holds_no_emoji(text: str) -> None:
    clean, emojis = split_emojis(text)
    assert split_emojis(clean) == (clean, [])
    assert all(normalize(one) == one for one in emojis)
    assert len(clean) <= len(text)
    assert clean == text or emojis


@settings(deadline=None)
@given(st.lists(TEXTS, max_size=8))
def test_column_gives_what_each_text_gives(texts: list[str]) -> None:
    expected = [split_emojis(text) for text in texts]
    whole = pa.array(texts, pa.string())
    for column in (whole, pa.chunked_array([whole[:2], whole[2:]])):
        clean, emojis = split_emojis_column(column)
        assert list(zip(clean.to_pylist(), emojis.to_pylist(), strict=True)) == expected


def test_column_reads_null_as_empty() -> None:
    clean, emojis = split_emojis_column(pa.array(["😂 a", None]))
    assert (clean.to_pylist(), emojis.to_pylist()) == (["a", ""], [["😂"], []])


def test_shipped_sets() -> None:
    names = load_labels("emojis64").names
    assert (len(names), names[:6], names[8], names[-1]) == (64, ("😂", "😒", "😩", "😭", "😍", "😔"), "❤", "✨")
    assert all(split_emojis(name) == ("", [name]) for name in names)  # each is found in texts
    assert len(load_labels("emojis20").names) == 20
    assert load_labels("emoticons2").names == (":)", ":(")


@pytest.mark.realdata
def test_shipped_set_is_the_published_one(real_data: Path) -> None:
    assert load_labels("emojis64") == load_labels(real_data / "deepmoji" / "wanted_emojis.csv")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "❤️\n😂\n\n:)\n"),
        ("a.csv", "\\u2764\\ufe0f\n\\U0001F602\n:)"),
        ("a.tsv", "0\t❤\t_red_heart_\n1\t😂\t_joy_\n2\t:)\t_smile_\n"),
        ("a.json", json.dumps(["❤", "😂", ":)"])),
        ("b.json", json.dumps({"😂": 1, ":)": 2, "❤": 0})),
    ],
)
def test_label_files(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert load_labels(tmp_path / name) == LabelSet(("❤", "😂", ":)"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "❤\n❤️\n", "'❤' comes twice"),
        ("a.txt", "❤\n", "1 label"),
        ("a.json", '{"a": 0, "b": 2}', "ids are not"),
        ("a.json", '{"a": "0", "b": 1}', "no label set"),
        ("a.json", '["a", 1]', "neither"),
        ("a.json", '["a"', "no label set"),
        ("a.json", '{"a": [":)"], "b": []}', "spellings of 'b'"),
        ("a.bin", b"\xff\xfe\x00", "no label set"),
    ],
)
def test_unusable_label_files_are_refused(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UsageError, match=message):
        load_labels(tmp_path / name)


def test_a_label_may_be_spelled_in_several_ways(tmp_path: Path) -> None:
    (tmp_path / "moods.json").write_text(json.dumps({"good": [":)", "❤️"], "bad": [":("]}))
    assert load_labels(tmp_path / "moods.json") == LabelSet(("good", "bad"), ((":)", "❤"), (":(",)))
    assert LabelSet(("a", "b")).forms == (("a",), ("b",))


def test_unknown_set_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'emojis65'.*emojis20, emojis64, emoticons2"):
        load_labels("emojis65")
