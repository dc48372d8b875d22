"""Labelled sets: as published, kept as Parquet, and from a user's own table."""

import builtins
import gzip
import json
import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepmoji.datasets import (
    CATALOG,
    Dataset,
    dataset_from_table,
    load_dataset,
    read_dataset,
    save_dataset,
    shared_texts,
    write_datasets,
)
from deepmoji.errors import DeepMojiError, InputError, UsageError
from deepmoji.rawpickle import read_raw_pickle
from deepmoji.sample import write_sample

SAMPLES = ["sample-sentiment", "sample-emotion", "sample-sarcasm"]
SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_sample(folder)
    return folder


def sizes(dataset: Dataset) -> tuple[int, ...]:
    return tuple(int((dataset.splits == split).sum()) for split in SPLITS)


def same(one: Dataset, other: Dataset) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(Dataset)]
    return all(np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in pairs)


# --- published formats ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLES)
def test_sample_sets(data: Path, name: str) -> None:
    dataset = read_dataset(name, data)
    assert sizes(dataset) == CATALOG[name].rows == (200, 100, 800)
    assert (dataset.task, dataset.metric) == (CATALOG[name].task, CATALOG[name].metric)
    if dataset.task == "multilabel":
        assert dataset.labels.shape == (1100, 5)
        assert dataset.labels.dtype == np.uint8
        assert set(dataset.labels.sum(axis=1)) == {0, 1, 2}
    else:
        assert dataset.labels.dtype == np.int64
        assert 0.4 < dataset.labels.mean() < 0.6


def test_labels_belong_to_their_texts(data: Path) -> None:
    dataset = read_dataset("sample-emotion", data)
    sad = [row for row, text in enumerate(dataset.texts) if "heartbroken" in text and "not" not in text]
    assert sad
    assert dataset.labels[sad, dataset.classes.index("sadness")].mean() > 0.8


def old_pickle(texts: list[Any], labels: list[Any], train: Any, val: Any, test: Any) -> bytes:
    content = {"texts": texts, "info": [{"label": label} for label in labels]}
    content |= {"train_ind": train, "val_ind": val, "test_ind": test}
    return pickle.dumps(content, protocol=3).replace(b"numpy._core", b"numpy.core")


def put_pickle(folder: Path, content: bytes) -> Path:
    target = folder / "deepmoji" / "SS-Twitter"
    target.mkdir(parents=True)
    (target / "raw.pickle").write_bytes(content)
    return target / "raw.pickle"


def test_raw_pickle_with_byte_strings_and_arrays(tmp_path: Path) -> None:
    content = (
        b"(dp0\nS'texts'\n(lp1\nS'caf\\xc3\\xa9 good'\naVb\\u00e4d\naS'fine'\nas"
        b"S'info'\n(lp2\n(dS'label'\nI1\nsa(dS'label'\nI0\nsa(dS'label'\nI01\nsas"
        b"S'train_ind'\n(lI2\nasS'val_ind'\n(lI0\nasS'test_ind'\n(lI1\nas."
    )
    put_pickle(tmp_path, content)
    dataset = read_dataset("SS-Twitter", tmp_path)
    assert dataset.texts == ["café good", "bäd", "fine"]
    assert dataset.splits.tolist() == ["val", "test", "train"]
    assert dataset.labels[:2].tolist() == [1, 0]


def test_raw_pickle_with_numpy_arrays(tmp_path: Path) -> None:
    content = old_pickle(["a", "b", "c"], [0, 1, 1], np.array([1]), np.array([0]), np.array([2]))
    path = put_pickle(tmp_path, content)
    assert read_raw_pickle(path)["train_ind"].tolist() == [1]


class Calls:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


@pytest.mark.parametrize("function", [builtins.eval, print, np.zeros, Path, bytearray])
def test_raw_pickle_calls_nothing(tmp_path: Path, function: Callable[..., Any]) -> None:
    target = tmp_path / "was-run"
    argument = f"open({str(target)!r}, 'w')" if function is builtins.eval else "7"
    path = put_pickle(tmp_path, pickle.dumps({"texts": [Calls(function, argument)]}, protocol=2))
    with pytest.raises(InputError, match=r"the name .* is not part of a published set"):
        read_raw_pickle(path)
    assert not target.exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not read"),
        (b"\x80\x02}q\x00.", "does not hold a published set"),
        (b"no pickle at all", "raw.pickle"),
        (old_pickle(["a", "b"], [0, 1], [0], [1], [1]), "one split"),
        (old_pickle(["a", "b", "c"], [0, 1], [0], [1], [2]), "2 labels"),
        (old_pickle(["a", "b", "c"], [0, 1, 7], [0], [1], [2]), "the label 7"),
        (old_pickle(["a", 5, "c"], [0, 1, 1], [0], [1], [2]), "int where a text"),
        (old_pickle(["a", b"\xff", "c"], [0, 1, 1], [0], [1], [2]), "utf-8"),
        (old_pickle(["a", "b", "c"], [0, 1, 1], np.zeros((1, 1), int), [1], [2]), "2 axes"),
        (old_pickle(["a", "b", "c"], [0, 1, 1], np.array(["x"], object), [1], [2]), "O8"),
    ],
)
def test_raw_pickle_that_is_no_set(tmp_path: Path, content: bytes, says: str) -> None:
    put_pickle(tmp_path, content)
    with pytest.raises(InputError, match=says):
        read_dataset("SS-Twitter", tmp_path)


def put_tweeteval(folder: Path, texts: str, labels: str) -> None:
    target = folder / "tweeteval" / "hate"
    target.mkdir(parents=True)
    (target / "mapping.txt").write_text("0\tnot-hate\r\n1\thate")
    for split in SPLITS:
        (target / f"{split}_text.txt").write_bytes(texts.encode())
        (target / f"{split}_labels.txt").write_bytes(labels.encode())


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tweeteval_keeps_a_lone_line_separator_inside_its_row(tmp_path: Path, end: str) -> None:
    put_tweeteval(tmp_path, f"one \u2028 row &amp; more &#128514; {end}two\x85rows{end}", f"1{end}0{end}")
    dataset = read_dataset("tweeteval-hate", tmp_path)
    assert dataset.texts[:2] == ["one \u2028 row & more 😂", "two\x85rows"]
    assert dataset.labels[:2].tolist() == [1, 0]
    assert dataset.classes == ("not-hate", "hate")


@pytest.mark.parametrize(
    ("texts", "labels", "says"),
    [
        ("a\nb\n", "1\n", "2 lines but train_labels.txt has 1"),
        ("a\n", "1\n0\n", "1 lines but train_labels.txt has 2"),
        ("a\n\n", "1\n", "2 lines but"),
        ("a\n", "2\n", "the label '2'"),
        ("a\n", "x\n", "the label 'x'"),
    ],
)
def test_tweeteval_texts_and_labels_must_match(tmp_path: Path, texts: str, labels: str, says: str) -> None:
    put_tweeteval(tmp_path, texts, labels)
    with pytest.raises(InputError, match=says):
        read_dataset("tweeteval-hate", tmp_path)


def test_semeval2017_columns_quotes_and_escapes(tmp_path: Path) -> None:
    folder = tmp_path / "semeval2017_4a"
    folder.mkdir()
    (folder / "twitter-2013train-A.tsv").write_text('1\tpositive\t"She said \\""hi\\"" \\u2019n more\\u002c"\n')
    (folder / "twitter-2016dev-A.tsv").write_text('2\tneutral\t"A" and "B"\r\n')
    (folder / "twitter-2016test-A.tsv").write_text("3\tnegative\tplain &amp; simple\tMon Jan 01\n4\tneutral\tx\t")
    (folder / "SemEval2017-task4-test.subtask-A.english.txt").write_text("5\tpositive\ttest \\ud83d\\ude02\n")
    dataset = read_dataset("semeval2017-4a", tmp_path)
    rows = dict(zip(dataset.texts, zip(dataset.splits.tolist(), dataset.labels.tolist(), strict=True), strict=True))
    assert rows == {
        'She said "hi" ’n more,': ("train", 2),
        '"A" and "B"': ("val", 1),
        "plain & simple": ("train", 0),
        "x": ("train", 1),
        "test 😂": ("test", 2),
    }


def test_semeval2018_and_goemotions_are_multilabel(tmp_path: Path) -> None:
    folder = tmp_path / "semeval2018" / "E-c"
    folder.mkdir(parents=True)
    for name in ("E-c-En-train.txt", "E-c-En-dev.txt", "E-c-En-test-gold.txt"):
        (folder / name).write_text('ID\tTweet\tanger\tjoy\n1\t"so\t1\t1\n2\tnone\t0\t0\n')
    emotions = read_dataset("semeval2018-ec", tmp_path)
    assert emotions.classes == ("anger", "joy")
    assert emotions.texts[0] == '"so'
    assert emotions.labels[:2].tolist() == [[1, 1], [0, 0]]
    folder = tmp_path / "goemotions" / "ekman"
    folder.mkdir(parents=True)
    (folder / "labels.txt").write_text("anger\nfear\njoy")
    for name in ("train.tsv", "dev.tsv", "test.tsv"):
        (folder / name).write_text("a text\t2,0\tabc\n")
    assert read_dataset("goemotions-ekman", tmp_path).labels.tolist() == [[1, 0, 1]] * 3
    (folder / "dev.tsv").write_text("a text\t3\tabc\n")
    with pytest.raises(InputError, match="the label '3'"):
        read_dataset("goemotions-ekman", tmp_path)


def test_davidson_is_split_the_same_way_each_time(tmp_path: Path) -> None:
    (tmp_path / "davidson").mkdir()
    rows = "".join(f'{n},3,0,0,3,{n % 3},"!! row {n},\n&#128514;"\n' for n in range(300))
    (tmp_path / "davidson" / "labeled_data.csv").write_text(
        f",count,hate_speech,offensive_language,neither,class,tweet\n{rows}"
    )
    dataset = read_dataset("davidson", tmp_path)
    assert sizes(dataset) == (210, 30, 60)
    assert dataset.texts[4] == "!! row 4,\n😂"
    assert dataset.splits.tolist() == read_dataset("davidson", tmp_path).splits.tolist()
    assert Counter(dataset.labels[dataset.splits == "val"].tolist()) == {0: 10, 1: 10, 2: 10}


def test_names_and_folders_that_are_not_there(tmp_path: Path, data: Path) -> None:
    with pytest.raises(UsageError, match=r"no set 'SE1604': choose among sample-sentiment, .*, davidson"):
        read_dataset("SE1604", data)
    with pytest.raises(InputError, match=r"Olympic is missing.*published files"):
        read_dataset("Olympic", data)
    with pytest.raises(InputError, match="run `deepmoji sample`"):
        read_dataset("sample-sarcasm", tmp_path)


def test_every_entry_says_what_a_reader_needs() -> None:
    for name, entry in CATALOG.items():
        assert entry.licence, name
        assert entry.source, name
        assert entry.task in {"binary", "multiclass", "multilabel"}
        assert all(0 < figure < 1 for figure in (*entry.paper.values(), *entry.peers.values()))
    assert CATALOG["SS-Youtube"].paper["chain-thaw"] == 0.93
    assert CATALOG["tweeteval-emotion"].peers["BiLSTM"] == pytest.approx(0.66)
    assert len(CATALOG) == 3 + 17


# --- Parquet --------------------------------------------------------------------------------------------------------


def test_written_sets_read_back_and_are_the_same_bytes(data: Path, tmp_path: Path) -> None:
    facts = write_datasets(SAMPLES, data, tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for name in SAMPLES:
        assert same(load_dataset(tmp_path / f"{name}.parquet"), read_dataset(name, data))
    assert facts == json.loads((tmp_path / "datasets.json").read_text())
    assert facts["sample-emotion"]["shared"] == {"train-val": 0, "train-test": 0, "val-test": 0}
    write_datasets(SAMPLES, data, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
    write_datasets(SAMPLES[:1], data, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["datasets.json", "sample-sentiment.parquet"]


def test_a_failing_set_changes_nothing(data: Path, tmp_path: Path) -> None:
    write_datasets(SAMPLES[:1], data, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError):
        write_datasets([SAMPLES[1], "Olympic"], data, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_metadata_travels_with_the_table(data: Path, tmp_path: Path) -> None:
    write_datasets(["sample-emotion"], data, tmp_path)
    about = json.loads(pq.read_schema(tmp_path / "sample-emotion.parquet").metadata[b"deepmoji"])
    assert about["licence"].startswith("synthetic")
    assert about["classes"] == ["joy", "love", "sadness", "anger", "fear"]


def test_a_file_that_is_no_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is missing"):
        load_dataset(tmp_path / "none.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="no labelled set"):
        load_dataset(tmp_path / "bad.parquet")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(InputError, match="no labelled set"):
        load_dataset(tmp_path / "other.parquet")


def test_shared_texts_are_counted() -> None:
    splits = np.array(["train", "train", "val", "test", "test", "test"])
    dataset = Dataset("x", ["a", "b", "a", "b", "b", "c"], np.zeros(6, np.int64), splits, ("n", "y"), "binary", "f1")
    assert shared_texts(dataset) == {"train-val": 1, "train-test": 2, "val-test": 0}


# --- own tables -----------------------------------------------------------------------------------------------------


def table_of(rows: int, classes: int = 3) -> list[tuple[str, str]]:
    return [(f"text number {n}, with a comma", f"class {n % classes}") for n in range(rows)]


def put_csv(path: Path, rows: list[tuple[str, ...]], header: str = "tweet,mood") -> Path:
    lines = [",".join(f'"{cell}"' for cell in row) for row in rows]
    content = "\n".join([header, *lines]) + "\n"
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    return path


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "tsv", "jsonl", "parquet"])
def test_own_table_in_each_format(tmp_path: Path, kind: str) -> None:
    rows, path = table_of(100), tmp_path / f"mine.{kind}"
    if kind.startswith("csv"):
        put_csv(path, list(rows))
    elif kind == "tsv":
        path.write_text("\ufefftweet\tmood\r\n" + "".join(f"{text}\t{label}\r\n" for text, label in rows))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"tweet": text, "mood": label}) + "\n" for text, label in rows))
    else:
        pq.write_table(pa.table({"tweet": [text for text, _ in rows], "mood": [label for _, label in rows]}), path)
    dataset = dataset_from_table(path, "tweet", "mood", "70/10/20", seed=3)
    assert dataset.name == "mine"
    assert (dataset.task, dataset.metric) == ("multiclass", "macro_f1")
    assert dataset.classes == ("class 0", "class 1", "class 2")
    assert dataset.texts == [text for text, _ in rows]
    assert [dataset.classes[label] for label in dataset.labels] == [label for _, label in rows]
    assert 68 <= sizes(dataset)[0] <= 72
    again = dataset_from_table(path, "tweet", "mood", "70/10/20", seed=3)
    assert same(dataset, again)
    other = dataset_from_table(path, "tweet", "mood", "70/10/20", seed=4)
    assert not same(dataset, other)
    save_dataset(dataset, tmp_path / "out.parquet")
    assert same(load_dataset(tmp_path / "out.parquet"), dataset)


def test_split_keeps_copies_together_and_classes_even(tmp_path: Path) -> None:
    rows = [(f"Same  TEXT {n // 4}" if n % 2 else f"same text {n // 4} ", f"c{n // 4 % 2}") for n in range(400)]
    dataset = dataset_from_table(put_csv(tmp_path / "mine.csv", list(rows)), "tweet", "mood", "60/20/20", seed=1)
    sides: dict[str, set[str]] = {}
    for text, split in zip(dataset.texts, dataset.splits.tolist(), strict=True):
        sides.setdefault(" ".join(text.lower().split()), set()).add(split)
    assert all(len(splits) == 1 for splits in sides.values())
    assert dataset.task == "binary"
    for label in (0, 1):
        mine = dataset.splits[dataset.labels == label].tolist()
        assert Counter(mine) == {"train": 120, "val": 40, "test": 40}


def test_a_rare_class_is_in_every_split(tmp_path: Path) -> None:
    rows = [*table_of(300, 2), ("rare one", "rare"), ("rare two", "rare"), ("rare three", "rare")]
    dataset = dataset_from_table(put_csv(tmp_path / "mine.csv", list(rows)), "tweet", "mood", "90/5/5", seed=1)
    assert set(dataset.splits[dataset.labels == dataset.classes.index("rare")].tolist()) == set(SPLITS)


def test_every_label_of_several_a_row_is_trained(tmp_path: Path) -> None:
    """Each text of e is dealt out by a rarer label: in one seed of five none of them to train."""
    rows = [(f"{name} {n}", f"{name}|e" if n == 0 else name) for name in "abcd" for n in range(3)]
    path = put_csv(tmp_path / "mine.csv", list(rows))
    for seed in range(40):
        dataset = dataset_from_table(path, "tweet", "mood", "70/10/20", seed=seed)
        assert dataset.labels[dataset.splits == "train"].any(axis=0).all()
        assert all(dataset.labels[dataset.splits == split].any() for split in SPLITS)


def test_labels_that_shares_leave_unjudged_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [(f"{name} {n}", f"{name}|e" if n == 0 else name) for name in "abcd" for n in range(3)]
    path = put_csv(tmp_path / "mine.csv", list(rows))
    for seed in range(10):
        caplog.clear()
        dataset = dataset_from_table(path, "tweet", "mood", "70/10/20", seed=seed)
        for part in ("val", "test"):
            unjudged = not dataset.labels[dataset.splits == part][:, dataset.classes.index("e")].any()
            assert (f"{part} has no row of the classes" in caplog.text) or not unjudged


def test_labels_between_bars_make_a_multilabel_set(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    moods = ["joy", "joy|love", "", "love| anger", "anger"]
    rows = [(f"text {n}", moods[n % 5]) for n in range(100)]
    dataset = dataset_from_table(put_csv(tmp_path / "mine.csv", list(rows)), "tweet", "mood", "70/10/20", seed=1)
    assert dataset.task == "multilabel"
    assert dataset.classes == ("anger", "joy", "love")
    assert dataset.labels[:5].tolist() == [[0, 1, 0], [0, 1, 1], [0, 0, 0], [1, 0, 1], [1, 0, 0]]
    assert all(dataset.labels[dataset.splits == split].any(axis=0).all() for split in SPLITS)
    assert "read as several labels a row: 40 of 100 rows have more than one, 20 have none" in caplog.text
    caplog.clear()
    dataset_from_table(put_csv(tmp_path / "mine.csv", list(table_of(30))), "tweet", "mood", "70/10/20", seed=1)
    assert "several labels" not in caplog.text


def test_list_columns_make_a_multilabel_set(tmp_path: Path) -> None:
    rows = [{"tweet": f"text {n}", "mood": [["joy"], ["joy", "love"], []][n % 3]} for n in range(60)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mine.parquet")
    from_json = dataset_from_table(tmp_path / "mine.jsonl", "tweet", "mood", "70/10/20", seed=1)
    from_parquet = dataset_from_table(tmp_path / "mine.parquet", "tweet", "mood", "70/10/20", seed=1)
    assert from_json.task == "multilabel"
    assert same(from_json, from_parquet)


def test_split_by_column(tmp_path: Path) -> None:
    names = ["train", "Validation", "test", "train", "dev"]
    rows = [(f"text {n}", f"c{n % 2}", names[n % 5]) for n in range(50)]
    path = put_csv(tmp_path / "mine.csv", list(rows), "tweet,mood,part")
    dataset = dataset_from_table(path, "tweet", "mood", "part", seed=1)
    assert sizes(dataset) == (20, 20, 10)
    put_csv(path, [*rows, ("x", "c1", "holdout")], "tweet,mood,part")
    with pytest.raises(InputError, match="'holdout' in the column 'part': train, val"):
        dataset_from_table(path, "tweet", "mood", "part", seed=1)
    put_csv(path, [row for row in rows if row[2] != "test"], "tweet,mood,part")
    with pytest.raises(InputError, match="no row for test"):
        dataset_from_table(path, "tweet", "mood", "part", seed=1)


@pytest.mark.parametrize(
    ("moods", "says"),
    [
        ({"train": "x", "val": "xy", "test": "xy"}, "no train row in the column 'part' for 1 of 2 .*'y'"),
        ({"train": "xy", "val": "xyz", "test": "xyz"}, "1 of 3 classes, such as 'z'"),
        ({"train": "xy", "val": "y", "test": "xy"}, "val rows of one class only in the column 'part'"),
    ],
)
def test_a_split_column_that_cannot_teach(tmp_path: Path, moods: dict[str, str], says: str) -> None:
    rows = [(f"{part} {n}", mood[n % len(mood)], part) for part, mood in moods.items() for n in range(12)]
    with pytest.raises(InputError, match=says) as caught:
        dataset_from_table(put_csv(tmp_path / "mine.csv", list(rows), "tweet,mood,part"), "tweet", "mood", "part", 1)
    assert "\n" not in str(caught.value)


def test_classes_that_a_split_column_cannot_judge_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    moods = {"train": "xyz", "val": "xy", "test": "yz"}
    rows = [(f"{part} {n}", mood[n % len(mood)], part) for part, mood in moods.items() for n in range(12)]
    path = put_csv(tmp_path / "mine.csv", list(rows), "tweet,mood,part")
    assert dataset_from_table(path, "tweet", "mood", "part", seed=1).classes == ("x", "y", "z")
    assert "val has no row of the classes z" in caplog.text
    assert "test has no row of the classes x" in caplog.text
    # With several labels a row, each class is a question of its own.
    put_csv(path, [(text, "x" if part == "val" else f"{mood}|x", part) for text, mood, part in rows], "tweet,mood,part")
    assert dataset_from_table(path, "tweet", "mood", "part", seed=1).task == "multilabel"


def test_case_does_not_matter_in_the_names_of_columns(tmp_path: Path) -> None:
    rows = [(f"text {n}", f"c{n % 2}", SPLITS[n % 3]) for n in range(30)]
    path = put_csv(tmp_path / "mine.csv", list(rows), "Tweet, MOOD,Part")
    dataset = dataset_from_table(path, "tweet", "mood", "part", seed=1)
    assert dataset.texts == [text for text, _, _ in rows] and sizes(dataset) == (10, 10, 10)
    put_csv(path, list(rows), "tweet,mood,Mood")
    with pytest.raises(InputError, match="has 2 columns 'mood' for the label: its columns are tweet, mood, Mood"):
        dataset_from_table(path, "tweet", "mood", "70/10/20", seed=1)


def test_numbers_are_class_names_in_their_order(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"t": [f"x {n}" for n in range(60)], "y": [n % 12 for n in range(60)]}), tmp_path / "a.parquet"
    )
    dataset = dataset_from_table(tmp_path / "a.parquet", "t", "y", "60/20/20", seed=1)
    assert dataset.classes == tuple(str(n) for n in range(12))


def test_bad_rows_are_set_aside_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [(f"text {n}", f"c{n % 2}") for n in range(30)]
    path = put_csv(tmp_path / "mine.csv", [*rows, (" ", "c1"), ("no label", ""), ("one", "too", "many")])
    dataset = dataset_from_table(path, "tweet", "mood", "70/10/20", seed=1)
    assert len(dataset.texts) == 30
    assert "1 with another number of columns than the header, 1 with empty label, 1 with empty text" in caplog.text
    (tmp_path / "mine.jsonl").write_text(
        "".join(json.dumps({"tweet": text, "mood": label}) + "\n" for text, label in rows)
        + '[1]\n{"tweet": 5, "mood": "c1"}\n{"tweet": "no mood"}\n{broken\n'
    )
    caplog.clear()
    assert len(dataset_from_table(tmp_path / "mine.jsonl", "tweet", "mood", "70/10/20", seed=1).texts) == 30
    assert "1 with empty label, 1 with empty text, 2 with no JSON object" in caplog.text


def test_halves_of_surrogate_pairs_are_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = "".join(json.dumps({"tweet": f"text {n} \U0001f602", "mood": f"c{n % 2}"}) + "\n" for n in range(30))
    (tmp_path / "mine.jsonl").write_text(
        good + '{"tweet": "cut \\ud83d", "mood": "c1"}\n{"tweet": "x", "mood": "c\\ude02"}\n'
    )
    dataset = dataset_from_table(tmp_path / "mine.jsonl", "tweet", "mood", "70/10/20", seed=1)
    assert (len(dataset.texts), dataset.classes) == (30, ("c0", "c1"))
    assert "2 with half of a surrogate pair" in caplog.text
    save_dataset(dataset, tmp_path / "out.parquet")
    assert same(load_dataset(tmp_path / "out.parquet"), dataset)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([("a", "x"), ("b", "x"), ("c", "x"), ("d", "x")], "only 'x' in the column 'mood'"),
        ([(f"t{n}", f"own {n}") for n in range(30)], "30 of 30 classes with fewer than 3 rows"),
        ([(f"t{n}", f"c{n % 2}") for n in range(20)] + [("a", "rare"), ("b", "rare")], "'rare': add rows"),
        ([(f"t{n}", f"c{n % 2}") for n in range(20)] + [("a", "rare")] * 5, "'rare' has 1 different texts"),
        ([("a", "1|2|3|4"), ("b", "5|6")], "2 rows for 6 classes"),
        ([("", "x"), (" ", "y")], "no row with both a text and a label"),
        ([], "no usable row"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, rows: list[tuple[str, ...]], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        dataset_from_table(put_csv(tmp_path / "mine.csv", rows), "tweet", "mood", "70/10/20", seed=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("split", ["80/20", "70/10/30", "a/b/c", "90/10/0", "nosuch", "", "-10/50/60"])
def test_splits_that_cannot_be(tmp_path: Path, split: str) -> None:
    path = put_csv(tmp_path / "mine.csv", list(table_of(30)))
    with pytest.raises(UsageError, match="split"):
        dataset_from_table(path, "tweet", "mood", split, seed=1)


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    path = put_csv(tmp_path / "mine.csv", list(table_of(30)))
    with pytest.raises(InputError, match="no column 'text' for the text: its columns are tweet, mood"):
        dataset_from_table(path, "text", "mood", "70/10/20", seed=1)
    with pytest.raises(InputError, match="no column 'label' for the label"):
        dataset_from_table(path, "tweet", "label", "70/10/20", seed=1)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("mine.xlsx", b"", "none of .csv"),
        ("mine.csv", b"tweet,mood\n\xff\xfe,x\n", "UTF-8"),
        ("mine.csv", b'tweet,mood\n"open,x\n', "broken quotes"),
        ("mine.csv", b"tweet,tweet\na,b\n", "'tweet' twice"),
        ("mine.csv", b"", "no usable row"),
        ("mine.csv.gz", b"\x1f\x8b\x08broken", "cannot be read"),
        ("mine.parquet", b"nothing", "cannot be read"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DeepMojiError, match=says) as caught:
        dataset_from_table(tmp_path / name, "tweet", "mood", "70/10/20", seed=1)
    assert "\n" not in str(caught.value)


# --- the published sets themselves ----------------------------------------------------------------------------------


@pytest.mark.realdata
@pytest.mark.parametrize("name", [name for name in CATALOG if not name.startswith("sample-")])
def test_published_sets_have_their_rows(real_data: Path, name: str) -> None:
    dataset = read_dataset(name, real_data)
    assert sizes(dataset) == CATALOG[name].rows
    assert len(dataset.labels) == len(dataset.texts)
    train = dataset.labels[dataset.splits == "train"]
    present = train.any(axis=0) if train.ndim == 2 else np.bincount(train, minlength=len(dataset.classes)) > 0
    assert present.all()


@pytest.mark.realdata
def test_published_facts(real_data: Path) -> None:
    headlines = read_dataset("SE0714", real_data)
    assert int((headlines.labels.sum(axis=1) == 0).sum()) == 869
    videos = read_dataset("SS-Youtube", real_data)
    assert videos.labels.mean() == pytest.approx(0.686, abs=0.001)
    assert shared_texts(videos)["train-test"] == 11
    assert sum("&amp;" in text for text in read_dataset("semeval2017-4a", real_data).texts) == 0
    emojis = read_dataset("tweeteval-emoji", real_data)
    assert len(emojis.classes) == 20
    assert emojis.classes[2] == "😂"
    assert len(read_dataset("goemotions", real_data).classes) == 28
