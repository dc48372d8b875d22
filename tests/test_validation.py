"""Each rule of the data validation, broken by one row; and the report that says so."""

import json
import re
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepmoji import validation_frames
from deepmoji.corpus import SCHEMA, ingest
from deepmoji.datasets import write_datasets
from deepmoji.emojis import LabelSet
from deepmoji.errors import InputError, ValidationFailed
from deepmoji.sample import write_sample
from deepmoji.tokens import tokenize_corpus
from deepmoji.validation import validate, validate_raw, validate_tokens
from deepmoji.validation_rules import (
    corpus_rules,
    example_rules,
    reject_rules,
    set_rules,
    source_rules,
    store_rules,
)

LABELS = ["😂", "😍", "😭"]
NAMES = [first + last for first in "bcdfgklmnprst" for last in ("anna", "otto", "ella")]
LIMITS: dict[str, Any] = {
    "min_per_label": 4,
    "max_duplicate_share": 0.0,
    "max_leaked_share": 0.0,
    "max_dataset_leaked_share": 0.05,
}
Row = dict[str, Any]


def row(text: str, label: int = 0, split: str = "train", **other: Any) -> Row:
    id_ = blake2b(text.encode("utf-8", "replace"), digest_size=16).hexdigest()
    return {"id": id_, "text": text, "labels": [label], "source": "test", "split": split} | other


def good_rows(count: int = 60) -> list[Row]:
    return [row(f"text number {n}", n % 3, ("train", "train", "train", "val", "test")[n % 5]) for n in range(count)]


def put_corpus(folder: Path, rows: list[Row], shards: int = 2, schema: pa.Schema = SCHEMA, **funnel: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(shards):
        table = pa.Table.from_pylist(rows[number::shards], schema)
        pq.write_table(table, folder / f"part-{number:05d}.parquet")
    facts = {
        "rows_in": len(rows) + 3,
        "rejects": 1,
        "dropped": {"url": 2},
        "rows_out": len(rows),
        "sources": [{"source": "test", "rows_in": funnel.get("rows_in", len(rows) + 3) - 1, "rows_out": len(rows)}],
        "reject_reasons": [{"reason": "is not JSON", "rows": 1}],
    }
    (folder / "labels.json").write_text(json.dumps(LABELS))
    (folder / "funnel.json").write_text(json.dumps(facts | funnel))
    put_rejects(folder, REJECT)
    return folder


REJECT: Row = {"file": "test/a.jsonl", "place": "line 7", "reason": "is not JSON", "text": "{", "rows": 1}


def put_rejects(corpus: Path, *records: Row) -> None:
    (corpus / "rejects.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    write_sample(folder / "data")
    write_datasets(["sample-sentiment"], folder / "data", folder / "sets")
    return folder / "sets"


def report_of(out: Path) -> dict[tuple[str, str], Row]:
    return {(rule["suite"], rule["rule"]): rule for rule in json.loads((out / "validation.json").read_text())["rules"]}


def broken(out: Path) -> set[str]:
    return {rule for (_, rule), found in report_of(out).items() if not found["passed"]}


def test_good_data_passes_and_the_report_says_so(tmp_path: Path, sets: Path) -> None:
    heard: list[dict[str, float]] = []
    corpus = put_corpus(tmp_path / "corpus", good_rows())
    summary = validate(corpus, sets, tmp_path / "out", **LIMITS, report=lambda numbers, _: heard.append(numbers))
    assert summary["passed"]
    assert (summary["rows"], summary["shards"], summary["least_per_label"]) == (60, 2, 20)
    assert heard == [{"rules": summary["rules"], "failed_rules": 0}]
    page = (tmp_path / "out" / "validation.html").read_text()
    assert f"all {summary['rules']} rules hold" in page
    assert "fails" not in page
    first = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    validate(corpus, sets, tmp_path / "again", **LIMITS)
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == first
    assert sorted(first) == ["validation.html", "validation.json"]
    assert str(tmp_path) not in page + first["validation.json"].decode()


A_ROW_BREAKS: dict[str, Row] = {
    "id is there": row("no id", id=None),
    "id format": row("bad id", id="ABC"),
    "id fits text": row("other id", id="0" * 32),
    "text is there": row("") | {"text": None},
    "no NUL": row("a \0 b"),
    "no flood of U+FFFD": row("\ufffd\ufffd caf\ufffd"),
    "label domain": row("label", labels=[0, 3]),
    "labels are distinct": row("twice", labels=[1, 1]),
    "split is there": row("no split") | {"split": None},
    "split domain": row("split", split="dev"),
    "text is not blank": row(" \n "),
    "text is free of emojis": row("an emoji is left \U0001f44d\U0001f3fd"),
    "label is there": row("no label", labels=[]),
    "source is there": row("no source", source=None),
}
ALSO = {
    "id is there": {"id fits text"},
    "id format": {"id fits text"},
    "text is there": {"id fits text", "text is not blank"},
    "split is there": set(),
}


@pytest.mark.parametrize("rule", A_ROW_BREAKS)
def test_one_row_breaks_a_rule_of_the_corpus(tmp_path: Path, sets: Path, rule: str) -> None:
    corpus = put_corpus(tmp_path / "corpus", [*good_rows(), A_ROW_BREAKS[rule]])
    with pytest.raises(ValidationFailed) as caught:
        validate(corpus, sets, tmp_path / "out", **LIMITS)
    assert broken(tmp_path / "out") == {rule} | ALSO.get(rule, set())
    found = report_of(tmp_path / "out")["corpus", rule]
    assert (found["checked"], found["failed"]) == (61, 1)
    assert found["places"] == [{"place": "part-00000.parquet", "rows": 1}]
    assert [example["row"] for example in found["examples"]] == [30]
    sentence = str(caught.value)
    assert "part-00000.parquet" in sentence
    assert "in 1 of 61 rows" in sentence
    assert repr(rule) in sentence
    assert "\n" not in sentence


def test_text_that_is_not_utf8_breaks_its_rule(tmp_path: Path, sets: Path) -> None:
    """Arrow takes any bytes for a string if told to; a lone surrogate is such bytes."""
    corpus = put_corpus(tmp_path / "corpus", good_rows(), shards=1)
    path = corpus / "part-00000.parquet"
    table = pq.read_table(path)
    raw = [text.encode() for text in table["text"].to_pylist()]
    raw[7] = b"lone \xed\xa0\xbd"
    bad = pa.array(raw, pa.binary()).view(pa.string())
    pq.write_table(table.set_column(1, "text", bad), path)
    with pytest.raises(ValidationFailed):
        validate(corpus, sets, tmp_path / "out", **LIMITS)
    assert "text is UTF-8" in broken(tmp_path / "out")
    assert report_of(tmp_path / "out")["corpus", "text is UTF-8"]["examples"][0]["row"] == 7


def test_every_rule_of_the_suites_is_broken_by_a_test() -> None:
    """A new rule needs a row that breaks it."""
    assert {rule.name for rule in corpus_rules(3)} == {*A_ROW_BREAKS, "text is UTF-8"}
    shared = {rule.name for rule in set_rules(2, "binary")} & {rule.name for rule in corpus_rules(3)}
    assert {rule.name for rule in set_rules(2, "binary")} - shared == {"few blank texts", "label count"}
    assert {rule.name for rule in reject_rules()} == set(A_REJECT_BREAKS)
    assert {rule.name for rule in source_rules()} == {"source is readable", "no source grows"}
    assert {rule.name for rule in (*store_rules(9), *example_rules(9, 9))} == set(STORE_BREAKS)


def test_examples_are_five_at_most_and_the_count_is_whole(tmp_path: Path, sets: Path) -> None:
    rows = good_rows() + [row(f"odd {n}", labels=[9]) for n in range(14)]
    with pytest.raises(ValidationFailed, match="in 14 of 74 rows"):
        validate(put_corpus(tmp_path / "corpus", rows), sets, tmp_path / "out", **LIMITS)
    found = report_of(tmp_path / "out")["corpus", "label domain"]
    assert len(found["examples"]) == 5
    assert sum(place["rows"] for place in found["places"]) == 14


def test_a_shard_of_another_shape(tmp_path: Path, sets: Path) -> None:
    fields = [field.with_type(pa.int64()) if field.name == "source" else field for field in SCHEMA]
    rows = [entry | {"source": 1} for entry in good_rows()]
    corpus = put_corpus(tmp_path / "corpus", rows, schema=pa.schema(fields))
    with pytest.raises(ValidationFailed, match=r"'schema'.*part-00000.parquet"):
        validate(corpus, sets, tmp_path / "out", **LIMITS)
    assert "source: int64" in report_of(tmp_path / "out")["corpus", "schema"]["observed"]


def test_copies_and_leaks_across_shards(tmp_path: Path, sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = good_rows()
    copy, leak = dict(rows[0]), dict(rows[1]) | {"split": "test"}  # end up in the other shard
    corpus = put_corpus(tmp_path / "corpus", [rows[2], *rows, copy, leak, rows[5]], shards=3)
    with pytest.raises(ValidationFailed, match=r"'no copies'.*in 4 of 64 rows.*'no leaks'"):
        validate(corpus, sets, tmp_path / "out", **LIMITS)
    report = report_of(tmp_path / "out")
    assert broken(tmp_path / "out") == {"no copies", "no leaks"}
    assert report["corpus", "no copies"]["observed"].startswith("4 of 64")
    assert report["corpus", "no leaks"]["failed"] == 1
    texts = {example["text"] for example in report["corpus", "no copies"]["examples"]}
    assert texts == {f"text number {n}" for n in (0, 1, 2, 5)}
    assert {example["text"] for example in report["corpus", "no leaks"]["examples"]} == {"text number 1"}
    monkeypatch.setattr(validation_frames, "IDS_PER_PASS", 9)  # several passes, the same result
    with pytest.raises(ValidationFailed):
        validate(corpus, sets, tmp_path / "passes", **LIMITS)
    assert report_of(tmp_path / "passes") == report
    allowed = LIMITS | {"max_duplicate_share": 0.07, "max_leaked_share": 0.02}
    assert validate(corpus, sets, tmp_path / "allowed", **allowed)["duplicate_share"] == 4 / 64


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("texts per label", {"rows": [*good_rows(), *[row(f"x{n}") for n in range(9)]], "labels": [*LABELS, "✨"]}),
        ("every split", {"rows": [entry for entry in good_rows() if entry["split"] != "val"]}),
        ("rows as in the funnel", {"rows_out": 59, "rows_in": 62}),
        ("every row is accounted for", {"rows_in": 64}),
    ],
)
def test_totals(tmp_path: Path, sets: Path, rule: str, change: dict[str, Any]) -> None:
    rows, labels = change.pop("rows", good_rows()), change.pop("labels", LABELS)
    corpus = put_corpus(tmp_path / "corpus", rows, **change)
    (corpus / "labels.json").write_text(json.dumps(labels))
    with pytest.raises(ValidationFailed, match=repr(rule)):
        validate(corpus, sets, tmp_path / "out", **LIMITS)
    assert broken(tmp_path / "out") == {rule}


# --- raw input ------------------------------------------------------------------------------------------------------


A_REJECT_BREAKS: dict[str, Row] = {
    "reject names its file": {"file": None},
    "reject names its place": {"place": None},
    "reject has a reason": {"reason": None},
    "reject stands for rows": {"rows": 0},
}


@pytest.mark.parametrize("rule", A_REJECT_BREAKS)
def test_one_record_of_the_rejects_breaks_a_rule(tmp_path: Path, rule: str) -> None:
    record = REJECT | A_REJECT_BREAKS[rule]
    reasons: dict[str, int] = {"is not JSON": 1}
    reasons[str(record["reason"])] = reasons.get(str(record["reason"]), 0) + record["rows"]
    funnel = raw(62 + sum(reasons.values()), reasons, {"url": 2}, test=(62, 60))
    corpus = put_corpus(tmp_path / "corpus", good_rows(), **funnel)
    put_rejects(corpus, REJECT, record)
    with pytest.raises(ValidationFailed, match=repr(rule)):
        validate_raw(corpus, tmp_path / "out")
    assert broken(tmp_path / "out") == {rule}
    found = report_of(tmp_path / "out")["raw input", rule]
    assert (found["checked"], found["failed"], [row["row"] for row in found["examples"]]) == (2, 1, [1])


def raw(rows_in: int, rejects: dict[str, int], dropped: dict[str, int], **sources: tuple[int, int]) -> Row:
    """A funnel of raw input; sources are name=(rows in, rows out)."""
    return {
        "rows_in": rows_in,
        "rejects": sum(rejects.values()),
        "dropped": dropped,
        "sources": [{"source": name, "rows_in": came, "rows_out": out} for name, (came, out) in sources.items()],
        "reject_reasons": [{"reason": reason, "rows": rows} for reason, rows in rejects.items()],
    }


RAW_BREAKS: dict[str, tuple[Row, list[Row]]] = {
    "source is readable": (
        raw(1000, {"is not JSON": 60}, {"url": 880}, big=(890, 50), test=(50, 10)), [REJECT | {"rows": 60}]
    ),
    "no source grows": (raw(63, {"is not JSON": 1}, {"url": 2}, test=(10, 11), other=(52, 49)), [REJECT]),
    "rejects as in the funnel": (raw(63, {"is not JSON": 1}, {"url": 2}, test=(62, 60)), [REJECT | {"reason": "odd"}]),
    "sources as in the funnel": (raw(63, {"is not JSON": 1}, {"url": 2}, test=(61, 60)), [REJECT]),
    "encoding": (
        raw(70, {"is not UTF-8": 8}, {"url": 2}, test=(62, 60)), [REJECT | {"reason": "is not UTF-8", "rows": 8}]
    ),
    "few blank rows": (raw(161, {"is not JSON": 1}, {"empty": 100}, test=(160, 60)), [REJECT]),
    "few rows too long": (raw(161, {"is not JSON": 1}, {"too_long": 100}, test=(160, 60)), [REJECT]),
    "few rows too short": (raw(1061, {"is not JSON": 1}, {"too_short": 1000}, test=(1060, 60)), [REJECT]),
}  # fmt: skip


@pytest.mark.parametrize("rule", RAW_BREAKS)
def test_raw_input_breaks_a_rule(tmp_path: Path, rule: str) -> None:
    funnel, rejects = RAW_BREAKS[rule]
    corpus = put_corpus(tmp_path / "corpus", good_rows(), **funnel)
    put_rejects(corpus, *rejects)
    with pytest.raises(ValidationFailed, match=f"{rule!r}.*raw input"):
        validate_raw(corpus, tmp_path / "out")
    assert broken(tmp_path / "out") == {rule}
    assert "<h2>Raw input</h2>" in (tmp_path / "out" / "validation.html").read_text()
    if rule == "source is readable":
        assert [example["source"] for example in report_of(tmp_path / "out")["raw input", rule]["examples"]] == ["test"]


def test_a_file_set_aside_whole_stops_nothing_by_itself(tmp_path: Path, sets: Path) -> None:
    """One truncated file among many is counted; how many may be is ingest's max_reject_share."""
    funnel = raw(1063, {"is not JSON": 1, "Truncated": 400}, {"url": 602}, test=(662, 60))
    corpus = put_corpus(tmp_path / "corpus", good_rows(), **funnel)
    put_rejects(corpus, REJECT, REJECT | {"file": "cut.txt.gz", "reason": "Truncated", "rows": 400})
    numbers = validate(corpus, sets, tmp_path / "out", **LIMITS)["raw"]
    assert numbers["rows"] == 1063
    assert numbers["set_aside_share"] == 401 / 1063


def test_what_ingest_writes_is_what_the_raw_suite_reads(tmp_path: Path, sets: Path) -> None:
    """A small source in another encoding hides in the whole, and shows by itself."""
    (tmp_path / "raw" / "good").mkdir(parents=True)
    (tmp_path / "raw" / "latin").mkdir()
    texts = [f"{word} number {n} of the day {LABELS[n % 3]}" for n in range(40) for word in NAMES]
    (tmp_path / "raw" / "good" / "a.txt").write_text("\n".join(texts) + "\n")
    lines = [f"{word} is my friend {LABELS[0]}".encode() for word in NAMES[:20]] + [b"caf\xe9 au lait"] * 100
    (tmp_path / "raw" / "latin" / "b.txt").write_bytes(b"\n".join(lines) + b"\n")
    ingest(
        tmp_path / "raw", tmp_path / "corpus", labels=LabelSet(tuple(LABELS)), english_share=0.0, max_reject_share=0.5,
        drop_near_duplicates=False, eval_per_label=4,
    )  # fmt: skip
    with pytest.raises(ValidationFailed, match="'source is readable'"):
        validate(tmp_path / "corpus", sets, tmp_path / "out", **LIMITS)
    assert broken(tmp_path / "out") == {"source is readable"}
    assert report_of(tmp_path / "out")["raw input", "encoding"]["observed"].startswith("100 of 1")


# --- labelled sets --------------------------------------------------------------------------------------------------


def change_set(sets: Path, target: Path, change: Callable[[list[Row]], None], **about: Any) -> Path:
    table = pq.read_table(sets / "sample-sentiment.parquet")
    rows = table.to_pylist()
    change(rows)
    meta = json.loads(table.schema.metadata[b"deepmoji"]) | about
    target.mkdir()
    schema = table.schema.with_metadata({"deepmoji": json.dumps(meta)})
    pq.write_table(pa.Table.from_pylist(rows, schema), target / "mine.parquet")
    return target


def put(at: int, **values: Any) -> Callable[[list[Row]], None]:
    return lambda rows: rows[at].update(values)


def copy_text(wanted: int, split: str) -> Callable[[list[Row]], None]:
    """Give `wanted` rows of a split the text of the first training row."""

    def change(rows: list[Row]) -> None:
        for entry in [entry for entry in rows if entry["split"] == split][1 : wanted + 1]:
            entry["text"] = rows[0]["text"]

    return change


def blanks(rows: list[Row]) -> None:
    for number, entry in enumerate(rows[:12]):
        entry["text"] = " " * (number + 1)


def only_one_class_in(split: str) -> Callable[[list[Row]], None]:
    def change(rows: list[Row]) -> None:
        for entry in rows:
            if entry["split"] == split:
                entry["labels"] = [0]

    return change


def without(split: str) -> Callable[[list[Row]], None]:
    def change(rows: list[Row]) -> None:
        rows[:] = [entry for entry in rows if entry["split"] != split]

    return change


@pytest.mark.parametrize(
    ("rules", "change"),
    [
        ({"text is there"}, put(3, text=None)),
        ({"no NUL"}, put(3, text="a\0b")),
        ({"no flood of U+FFFD"}, put(3, text="\ufffd\ufffd\ufffd")),
        ({"label domain"}, put(3, labels=[2])),
        ({"labels are distinct"}, put(3, labels=[1, 1])),
        ({"label count"}, put(3, labels=[0, 1])),
        ({"label count"}, put(3, labels=[])),
        ({"split is there"}, put(3, split=None)),
        ({"split domain"}, put(3, split="dev")),
        ({"few blank texts"}, blanks),
        ({"every split"}, without("val")),
        ({"classes in train"}, only_one_class_in("train")),
        ({"classes in test"}, only_one_class_in("test")),
        ({"few copies"}, copy_text(60, "train")),
        ({"few leaks"}, copy_text(50, "val")),
    ],
)
def test_one_change_breaks_a_rule_of_a_set(
    tmp_path: Path, sets: Path, rules: set[str], change: Callable[[list[Row]], None]
) -> None:
    corpus = put_corpus(tmp_path / "corpus", good_rows(), shards=1)
    folder = change_set(sets, tmp_path / "sets", change)
    with pytest.raises(ValidationFailed, match="set mine"):
        validate(corpus, folder, tmp_path / "out", **LIMITS)
    assert broken(tmp_path / "out") == rules


def test_few_leaks_are_reported_and_pass(tmp_path: Path, sets: Path) -> None:
    corpus = put_corpus(tmp_path / "corpus", good_rows(), shards=1)
    folder = change_set(sets, tmp_path / "sets", copy_text(20, "test"))
    summary = validate(corpus, folder, tmp_path / "out", **LIMITS)
    assert summary["datasets"]["mine"]["leaked_share"] == 20 / 900
    assert report_of(tmp_path / "out")["set mine", "few leaks"]["observed"].startswith("20 of 900")


def test_a_multilabel_set_may_have_no_label(tmp_path: Path, sets: Path) -> None:
    corpus = put_corpus(tmp_path / "corpus", good_rows(), shards=1)
    folder = change_set(sets, tmp_path / "sets", put(3, labels=[]), task="multilabel")
    assert validate(corpus, folder, tmp_path / "out", **LIMITS)["passed"]


def test_the_page_shows_the_rows_and_escapes_them(tmp_path: Path, sets: Path) -> None:
    bad = row("<script>alert('x')</script> & co", labels=[7])
    with pytest.raises(ValidationFailed):
        validate(put_corpus(tmp_path / "corpus", [*good_rows(), bad]), sets, tmp_path / "out", **LIMITS)
    page = (tmp_path / "out" / "validation.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; co" in page
    assert re.search(r"1 of \d+ rules fail", page)
    assert page.index("Failing rules") < page.index("<h2>Corpus</h2>")
    assert "http" not in page  # complete in itself


@pytest.mark.parametrize("missing", ["funnel.json", "rejects.jsonl", "labels.json", "part-*.parquet", "sets"])
def test_nothing_to_check_is_one_sentence(tmp_path: Path, sets: Path, missing: str) -> None:
    corpus = put_corpus(tmp_path / "corpus", good_rows(), shards=1)
    for path in corpus.glob(missing):
        path.unlink()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="run"):
        validate(corpus, tmp_path / "empty" if missing == "sets" else sets, tmp_path / "out", **LIMITS)
    assert not (tmp_path / "out").exists()


# --- token stores ---------------------------------------------------------------------------------------------------


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    corpus = put_corpus(tmp_path / "corpus", good_rows(), splits={"train": 36, "val": 12, "test": 12})
    tokenize_corpus(corpus, tmp_path / "tokens", vocabulary_size=100, min_count=1, max_length=30, workers=1)
    return tmp_path / "tokens"


def edit(path: Path, at: Any, value: Any) -> None:
    array = np.load(path)
    array[at] = value
    np.save(path, array)


STORE_BREAKS: dict[str, tuple[str, Any, int]] = {
    "ids in the vocabulary": ("ids.npy", 5, 60_000),
    "offsets ascend": ("offsets.npy", 3, 2),
    "texts have tokens": ("offsets.npy", 3, 6),
    "label domain": ("labels.npy", (4, 1), 3),
    "examples show texts": ("labels.npy", (4, 0), 999),
}


def test_a_good_store(tokens: Path) -> None:
    facts = validate_tokens(tokens, max_unknown_share=0.5)
    assert facts["passed"]
    assert facts["train"]["texts"] == 36
    assert facts["train"]["length_p50"] == facts["train"]["mean_length"] == 3
    assert (tokens / "validation.html").is_file()


@pytest.mark.parametrize("rule", STORE_BREAKS)
def test_one_value_breaks_a_rule_of_a_store(tokens: Path, rule: str) -> None:
    name, at, value = STORE_BREAKS[rule]
    edit(tokens / "train" / name, at, value)
    with pytest.raises(ValidationFailed, match=repr(rule)):
        validate_tokens(tokens, max_unknown_share=0.5)
    report = report_of(tokens)
    assert report["tokens", rule]["places"] == [{"place": "train", "rows": 1}]


def test_unknown_words_and_short_texts(tokens: Path) -> None:
    edit(tokens / "val" / "ids.npy", slice(0, 12), 1)
    with pytest.raises(ValidationFailed, match="'unknown words in val'"):
        validate_tokens(tokens, max_unknown_share=0.3)
    assert broken(tokens) == {"unknown words in val"}
    assert report_of(tokens)["tokens", "unknown words in val"]["observed"].startswith("12 of 36")
    assert validate_tokens(tokens, max_unknown_share=0.5)["val"]["unknown_share"] >= 1 / 3


def test_length_distribution(tmp_path: Path) -> None:
    words = [f"ab{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(60)]
    rows = [row(word, n % 3, entry["split"]) for n, (word, entry) in enumerate(zip(words, good_rows(), strict=True))]
    corpus = put_corpus(tmp_path / "corpus", rows, splits={"train": 36, "val": 12, "test": 12})
    tokenize_corpus(corpus, tmp_path / "tokens", vocabulary_size=100, min_count=1, max_length=30, workers=1)
    with pytest.raises(ValidationFailed, match="length distribution"):
        validate_tokens(tmp_path / "tokens", max_unknown_share=1.0, out=tmp_path / "out")
    assert broken(tmp_path / "out") == {f"length distribution of {split}" for split in ("train", "val", "test")}
