"""Token stores: what is written is what is read, and a corpus becomes the same store however it is worked on."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepmoji import corpus as corpus_module
from deepmoji.corpus import ingest
from deepmoji.errors import InputError, UsageError
from deepmoji.text import tokenize
from deepmoji.tokens import Examples, encode_examples, load_store, read_meta, tokenize_corpus, write_store
from deepmoji.vocabulary import Vocabulary
from tests.tweets import LABELS, bytes_below, write_tweets

OPTIONS: dict[str, Any] = {"vocabulary_size": 24, "min_count": 2, "max_length": 5}
SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of several parts, with a text that has no tokens and one far too long."""
    folder = tmp_path_factory.mktemp("corpus")
    source = write_tweets(folder / "in")
    (source / "odd.txt").write_text("\u200b 😂\n" + "so very " * 50 + "long 🔥\n" + "onlyonce here 😭\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_module, "PARTITION_ROWS", 150)
        ingest(source, folder / "out", labels=LABELS, min_words=0, english_share=0)
    return folder / "out"


def part(lengths: Sequence[int], labels: Sequence[Sequence[int]], dtype: type = np.uint16) -> Examples:
    ids: Any = np.arange(sum(lengths)).astype(dtype)
    rows = np.repeat(np.arange(len(labels)), [len(some) for some in labels]).astype(np.int64)
    targets = np.array([label for some in labels for label in some], np.int64)
    return Examples(ids, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), rows, targets)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(
        st.lists(st.tuples(st.integers(0, 4), st.lists(st.integers(0, 9), max_size=3)), max_size=6),
        min_size=1,
        max_size=4,
    ),
    dtype=st.sampled_from([np.uint16, np.uint32]),
)
def test_store_gives_back_what_was_written(
    tmp_path: Path, parts: list[list[tuple[int, list[int]]]], dtype: type
) -> None:
    made = [part([length for length, _ in some], [labels for _, labels in some], dtype) for some in parts]
    meta = write_store(tmp_path / "store", made, {"max_length": 4})
    store = load_store(tmp_path / "store")
    assert store.ids.dtype == dtype
    texts = [one.ids[a:b].tolist() for one in made for a, b in zip(one.offsets[:-1], one.offsets[1:], strict=True)]
    assert [store.ids[a:b].tolist() for a, b in zip(store.offsets[:-1], store.offsets[1:], strict=True)] == texts
    flat = [labels for some in parts for _, labels in some]
    assert list(zip(store.rows.tolist(), store.targets.tolist(), strict=True)) == [
        (row, label) for row, labels in enumerate(flat) for label in labels
    ]
    assert meta == read_meta(tmp_path / "store")
    assert (meta["rows"], meta["tokens"], meta["examples"]) == (len(texts), len(store.ids), len(store.rows))


def test_store_is_mapped_not_read(tmp_path: Path) -> None:
    write_store(tmp_path / "store", [part([3, 2], [[1], [0, 2]])], {})
    store = load_store(tmp_path / "store")
    assert isinstance(store.ids, np.memmap)
    assert isinstance(store.offsets, np.memmap)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "meta.json").unlink(), "no finished token store"),
        (lambda folder: (folder / "meta.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "meta.json").write_text('{"format": "other"}'), "no token store of this version"),
        (lambda folder: (folder / "ids.npy").unlink(), "cannot be read"),
        (lambda folder: _cut(folder / "ids.npy"), "cannot be read"),
        (lambda folder: _cut(folder / "labels.npy"), "cannot be read"),
        (lambda folder: np.save(folder / "ids.npy", np.zeros(4, np.uint16)), "does not hold what its meta.json says"),
        (lambda folder: np.save(folder / "ids.npy", np.zeros(5, np.uint32)), "does not hold what its meta.json says"),
        (lambda folder: np.save(folder / "offsets.npy", np.array([0, 3, 4])), "does not hold what its meta.json says"),
        (lambda folder: np.save(folder / "ids.npy", np.array([{}] * 5, object)), "cannot be read"),
    ],
)
def test_broken_store_is_one_sentence(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    write_store(tmp_path / "store", [part([3, 2], [[1], [0, 2]])], {})
    damage(tmp_path / "store")
    with pytest.raises(InputError, match=message) as caught:
        load_store(tmp_path / "store")
    assert "\n" not in str(caught.value)


def test_killed_writing_leaves_no_store(tmp_path: Path) -> None:
    def parts() -> Iterable[Examples]:
        yield part([3], [[1]])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "store", parts(), {})
    assert not list(tmp_path.iterdir())


def test_corpus_becomes_ids_of_its_tokens(tmp_path: Path, corpus: Path) -> None:
    numbers = tokenize_corpus(corpus, tmp_path / "out", **OPTIONS)
    vocabulary = Vocabulary.load(tmp_path / "out" / "vocabulary.json")
    assert numbers["vocabulary_size"] == len(vocabulary) == 24
    assert json.loads((tmp_path / "out" / "labels.json").read_text()) == list(LABELS.names)
    tables = [pq.read_table(path) for path in sorted(corpus.glob("part-*"))]
    rows = [row for table in tables for row in table.to_pylist()]
    known = {word: place for place, word in enumerate(vocabulary.words)}
    for split in SPLITS:
        mine = [(tokenize(row["text"]), row["labels"]) for row in rows if row["split"] == split]
        wanted = [([known.get(token, 1) for token in tokens], labels) for tokens, labels in mine if tokens]
        store = load_store(tmp_path / "out" / split)
        found = [store.ids[a:b].tolist() for a, b in zip(store.offsets[:-1], store.offsets[1:], strict=True)]
        assert found == [ids[:5] for ids, _ in wanted]
        pairs = [(place, label) for place, (_, labels) in enumerate(wanted) for label in labels]
        assert list(zip(store.rows.tolist(), store.targets.tolist(), strict=True)) == pairs
        meta = numbers[split]
        assert meta == read_meta(tmp_path / "out" / split)
        assert meta["corpus_rows"] == len(mine) == meta["rows"] + meta["empty_rows"]
        assert meta["truncated_rows"] == sum(len(ids) > 5 for ids, _ in wanted)
        assert meta["unknown"] == sum(ids[:5].count(1) for ids, _ in wanted)
        assert meta["lengths"] == [Counter(min(len(ids), 5) for ids, _ in wanted)[n] for n in range(6)]
        assert meta["labels"] == [sum(label in labels for _, labels in wanted) for label in range(4)]
        assert (meta["vocabulary"], meta["max_length"]) == (vocabulary.digest, 5)
    assert sum(numbers[split]["corpus_rows"] for split in SPLITS) == len(rows)


def test_vocabulary_is_of_the_training_words_by_count(tmp_path: Path, corpus: Path) -> None:
    tokenize_corpus(corpus, tmp_path / "out", vocabulary_size=1000, min_count=2, max_length=30)
    words = Vocabulary.load(tmp_path / "out" / "vocabulary.json").words
    rows = [row for path in corpus.glob("part-*") for row in pq.read_table(path).to_pylist() if row["split"] == "train"]
    counts = Counter(token for row in rows for token in tokenize(row["text"]))
    plain = [word for word in words if not word.startswith("CUSTOM_")]
    assert set(plain) == {word for word, count in counts.items() if count >= 2 and not word.startswith("CUSTOM_")}
    assert [counts[word] for word in plain] == sorted((counts[word] for word in plain), reverse=True)


def test_text_without_tokens_is_counted_and_not_stored(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "labels.json").write_text((corpus / "labels.json").read_text())
    table = pq.read_table(min(corpus.glob("part-*")))
    texts = ["\ufe0f", *table["text"].to_pylist()[1:]]
    pq.write_table(table.set_column(1, "text", [texts]), odd / "part-00000.parquet")
    assert tokenize("\ufe0f") == []
    numbers = tokenize_corpus(odd, tmp_path / "out", **OPTIONS)
    assert sum(numbers[split]["empty_rows"] for split in SPLITS) == 1
    assert sum(numbers[split]["rows"] for split in SPLITS) == len(table) - 1


def test_bytes_depend_neither_on_workers_nor_on_a_stop(tmp_path: Path, corpus: Path) -> None:
    tokenize_corpus(corpus, tmp_path / "one", **OPTIONS)
    tokenize_corpus(corpus, tmp_path / "two", workers=2, **OPTIONS)
    parts = len(list(corpus.glob("part-*")))
    for steps in (1, parts, parts + 1, 2 * parts + 1):
        done: list[object] = []

        def stopping(
            function: Any, items: Sequence[Any], done: list[object] = done, steps: int = steps
        ) -> Iterable[Any]:
            for item in items:
                if len(done) == steps:
                    raise KeyboardInterrupt
                done.append(item)
                yield function(item)

        with pytest.raises(KeyboardInterrupt):
            tokenize_corpus(corpus, tmp_path / "three", map_shards=stopping, **OPTIONS)
        assert not (tmp_path / "three").exists()
    tokenize_corpus(corpus, tmp_path / "three", **OPTIONS)
    one = bytes_below(tmp_path / "one")
    assert len(one) == 2 + 3 * 4
    assert bytes_below(tmp_path / "two") == one
    assert bytes_below(tmp_path / "three") == one
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "three", "two"]


def test_many_words_take_wider_ids(tmp_path: Path, corpus: Path) -> None:
    vocabulary = Vocabulary.load(_vocabulary(tmp_path, corpus))
    wide = vocabulary.extend(["".join(letters) for letters in product("abcdefghijklmnopqrst", repeat=4)])
    assert encode_examples(["the cat"], np.array([0]), vocabulary, 30).ids.dtype == np.uint16
    assert len(wide) > 1 << 16
    ids = encode_examples(["the cat tsrq"], np.array([0]), wide, 30).ids
    assert ids.dtype == np.uint32
    assert wide.words[ids[-1]] == "tsrq"


def _vocabulary(tmp_path: Path, corpus: Path) -> Path:
    tokenize_corpus(corpus, tmp_path / "tokens", **OPTIONS)
    return tmp_path / "tokens" / "vocabulary.json"


def test_examples_keep_every_row_in_order(tmp_path: Path, corpus: Path) -> None:
    vocabulary = Vocabulary.load(_vocabulary(tmp_path, corpus))
    texts = ["the cat and dog", "", "the"]
    single = encode_examples(texts, np.array([2, 0, 1]), vocabulary, 3)
    assert np.diff(single.offsets).tolist() == [3, 0, 1]
    assert single.rows.tolist() == [0, 1, 2]
    assert single.targets.dtype == np.int64
    assert single.targets.tolist() == [2, 0, 1]
    many = encode_examples(texts, np.eye(3, dtype=np.uint8), vocabulary, None)
    assert many.targets.dtype == np.float32
    assert many.targets.tolist() == np.eye(3).tolist()
    assert np.diff(many.offsets).tolist() == [4, 0, 1]


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_what_is_no_corpus_is_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is no labelled corpus") as caught:
        tokenize_corpus(tmp_path / name, tmp_path / "out", **OPTIONS)
    assert "\n" not in str(caught.value)


def test_impossible_numbers_are_refused(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(UsageError, match="max_length is 0"):
        tokenize_corpus(corpus, tmp_path / "out", vocabulary_size=100, min_count=1, max_length=0)


def test_a_damaged_part_of_the_corpus_is_one_sentence(corpus: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(corpus, tmp_path / "corpus"))
    part = sorted(damaged.glob("part-*.parquet"))[-1]
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(InputError, match=rf"{part.name} cannot be read as Parquet") as caught:
        tokenize_corpus(damaged, tmp_path / "out", **OPTIONS)
    assert "\n" not in str(caught.value)
