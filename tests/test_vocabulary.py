"""The vocabulary: ids of texts, its file, counting together, and the published coverage table."""

import gzip
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepmoji.datasets import read_dataset
from deepmoji.errors import InputError, UsageError
from deepmoji.text import tokenize
from deepmoji.vocabulary import (
    SPECIALS,
    UNKNOWN,
    Vocabulary,
    build_vocabulary,
    count_words,
    id_type,
    merge_counts,
    most_frequent,
)

U16, U32 = np.dtype(np.uint16), np.dtype(np.uint32)
SMALL = Vocabulary((*SPECIALS, "i", "love", "it", "."))

# Words known of the test tokens, in % of the first 30 tokens of a text: own, published, extended vocabulary.
COVERAGE = {
    "SE0714": (40.6, 92.5, 92.8),
    "Olympic": (73.8, 90.0, 95.9),
    "PsychExp": (85.2, 98.2, 98.5),
    "SS-Twitter": (80.0, 96.9, 97.0),
    "SS-Youtube": (79.4, 97.1, 97.2),
    "SCv1": (88.4, 97.0, 97.7),
    "SCv2-GEN": (86.2, 96.9, 97.7),
}


def test_encode_pads_and_cuts() -> None:
    ids = SMALL.encode(["I love it. Really @you", "", "it"], 5)
    assert ids.tolist() == [[10, 11, 12, 13, 1], [0, 0, 0, 0, 0], [12, 0, 0, 0, 0]]
    assert ids.dtype == np.uint16
    assert SMALL.encode(pa.array(["@you 12 http://x.y \n", "a\nb"]), 3).tolist() == [[2, 4, 3], [1, 5, 1]]


def test_encode_flat_counts_what_it_cuts() -> None:
    ids, offsets, cut = SMALL.encode_flat(["i love it .", "", "it i"], 2)
    assert (ids.tolist(), offsets.tolist(), cut) == ([10, 11, 12, 10], [0, 2, 2, 4], 1)
    ids, offsets, cut = SMALL.encode_flat(["i love it .", "", "it i"])
    assert (ids.tolist(), offsets.tolist(), cut) == ([10, 11, 12, 13, 12, 10], [0, 4, 4, 6], 0)
    with pytest.raises(UsageError, match="max_length is 0"):
        SMALL.encode_flat(["i"], 0)


@settings(deadline=None)
@given(st.lists(st.text(), max_size=5))
def test_ids_go_back_to_tokens(texts: list[str]) -> None:
    tokens = [tokenize(text) for text in texts]
    vocabulary = SMALL.extend(token for row in tokens for token in row)
    ids, offsets, _ = vocabulary.encode_flat(texts)
    back = [vocabulary.decode(ids[start:end]) for start, end in pairwise(offsets.tolist())]
    assert back == [[token if len(token) <= 30 else SPECIALS[UNKNOWN] for token in row] for row in tokens]
    assert vocabulary.ids(vocabulary.words[2:]).tolist() == list(range(2, len(vocabulary)))


def test_padding_never_comes_out_of_a_text() -> None:
    mask = "𝐂𝐔𝐒𝐓𝐎𝐌_𝐌𝐀𝐒𝐊"  # NFKC makes the capitals of the mask of it
    assert tokenize(mask) == ["CUSTOM_MASK"]
    assert SMALL.encode_flat([mask])[0].tolist() == [UNKNOWN]


def test_file_keeps_the_vocabulary(tmp_path: Path) -> None:
    vocabulary = SMALL.extend(["ñ", '"', "\\", "😂"])
    vocabulary.save(tmp_path / "v.json")
    assert Vocabulary.load(tmp_path / "v.json") == vocabulary
    assert json.loads((tmp_path / "v.json").read_text("utf-8"))["😂"] == 17
    assert [path.name for path in tmp_path.iterdir()] == ["v.json"]
    assert vocabulary.digest == Vocabulary.load(tmp_path / "v.json").digest != SMALL.digest


def test_file_in_any_order(tmp_path: Path) -> None:
    ids = {word: place for place, word in enumerate(SMALL.words)}
    (tmp_path / "v.json").write_text(json.dumps(dict(sorted(ids.items()))), "utf-8")
    assert Vocabulary.load(tmp_path / "v.json") == SMALL


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "should map words"),
        ('{"CUSTOM_MASK": 0, "CUSTOM_UNKNOWN": 2}', "should map words"),
        ('{"CUSTOM_MASK": 0, "CUSTOM_UNKNOWN": "1"}', "should map words"),
        ('{"CUSTOM_MASK": 1, "CUSTOM_UNKNOWN": 0}', "begins with"),
        ("{}", "begins with"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "v.json").write_text(content, "utf-8")
    with pytest.raises(InputError, match=message):
        Vocabulary.load(tmp_path / "v.json")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"v\.json cannot be read"):
        Vocabulary.load(tmp_path / "v.json")


def test_a_word_stands_once() -> None:
    with pytest.raises(InputError, match="'x' stands in the vocabulary twice"):
        Vocabulary((*SPECIALS, "x", "y", "x"))


def test_id_type_grows_with_the_vocabulary() -> None:
    assert (id_type(65_536), id_type(65_537), id_type(1 << 32)) == (U16, U32, U32)
    with pytest.raises(UsageError, match="4,294,967,297 words is too big"):
        id_type((1 << 32) + 1)
    large = SMALL.extend(f"w{n}" for n in range(65_536 - len(SMALL)))
    assert large.encode(["w65521 love"], 2).dtype == np.uint16
    larger = large.extend(["last"])
    assert larger.encode(["last love"], 2).tolist() == [[65_536, 11]]


def test_extend_keeps_ids_and_adds_new_words_in_order() -> None:
    extended = SMALL.extend(["new", "love", "newer", "new", "x" * 31, ""])
    assert extended.words == (*SMALL.words, "new", "newer")


def test_build_takes_the_most_frequent() -> None:
    counts = {"b": 3, "a": 3, "c": 5, "rare": 1, "CUSTOM_AT": 9, "x" * 31: 9}
    assert build_vocabulary(counts, 13, 2).words == (*SPECIALS, "c", "a", "b")
    assert build_vocabulary(counts, 12, 2).words == (*SPECIALS, "c", "a")
    with pytest.raises(UsageError, match="no room"):
        build_vocabulary(counts, 9, 1)


def test_count_words_counts_tokens() -> None:
    texts = ["So so SOOOO!", "@a @b so", ""]
    assert count_words(texts) == {"so": 3, "soo": 1, "!": 1, "CUSTOM_AT": 2}
    assert count_words(texts, 1) == {"so": 1, "CUSTOM_AT": 1}


def test_merge_weighs_sources_alike() -> None:
    shards = [
        ("big", {"a": 60, "b": 20}),
        ("small", {"a": 1, "c": 3}),
        ("big", {"a": 10, "b": 10, "d": 1, "CUSTOM_AT": 7}),
    ]
    merged = merge_counts(shards, min_count=1)
    assert merged == pytest.approx({"a": 70 + 101 / 4, "b": 30, "c": 303 / 4, "d": 1})
    assert merge_counts(shards[::-1], min_count=1) == merged
    assert "d" not in merge_counts(shards, min_count=2)
    assert merge_counts([("one", Counter(a=2)), ("one", Counter(a=1, b=1))]) == {"a": 3, "b": 1}
    assert merge_counts([]) == {} == merge_counts([("empty", {}), ("rare", {"a": 1})], min_count=2)


def test_coverage_names_what_is_missing() -> None:
    report = SMALL.coverage(["I love cats. cats dogs cats", "it @me ants"], missing=2)
    assert (report.tokens, report.known, report.distinct, report.known_distinct) == (10, 5, 8, 5)
    assert report.missing == (("cats", 3), ("ants", 1))
    assert report.share == 0.5
    assert SMALL.coverage([]).share == 1.0


@pytest.mark.realdata
def test_published_vocabulary_gives_the_published_ids(real_data: Path, tmp_path: Path) -> None:
    vocabulary = Vocabulary.load(real_data / "deepmoji" / "vocabulary.json")
    assert (len(vocabulary), vocabulary.words[:10]) == (50_000, SPECIALS)
    vocabulary.save(tmp_path / "v.json")
    assert Vocabulary.load(tmp_path / "v.json") == vocabulary
    with gzip.open(real_data.parent / "reference" / "tokens.jsonl.gz", "rt", encoding="utf-8") as lines:
        reference = [json.loads(line) for line in lines]
    ids, offsets, _ = vocabulary.encode_flat([line["text"] for line in reference])
    assert ids.tolist() == [id_ for line in reference for id_ in line["ids"]]
    assert np.diff(offsets).tolist() == [len(line["ids"]) for line in reference]


@pytest.mark.realdata
@pytest.mark.parametrize("name", COVERAGE)
def test_published_coverage(real_data: Path, name: str) -> None:
    """Within 1.0 point of the published figures (Felbo et al. 2017, the table of word coverage)."""
    dataset = read_dataset(name, real_data)
    train, test = (
        [text for text, part in zip(dataset.texts, dataset.splits, strict=True) if part == split]
        for split in ("train", "test")
    )
    published = Vocabulary.load(real_data / "deepmoji" / "vocabulary.json")
    counts = count_words(train)
    extended = published.extend(most_frequent(counts, limit=10_000))
    # The published figure for a set's own vocabulary has no special ids: the most frequent word took the id of padding
    # and went uncounted, the second that of unknown words and counted as such.
    first, _, *own = sorted(counts, key=lambda word: (-counts[word], word))
    tokens = count_words(test, 30)
    own_share = sum(tokens[word] for word in own) / (tokens.total() - tokens[first])
    shares = (own_share, *(vocabulary.coverage(test, max_length=30).share for vocabulary in (published, extended)))
    assert [100 * share for share in shares] == pytest.approx(COVERAGE[name], abs=1.0)
