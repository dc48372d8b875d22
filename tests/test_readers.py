"""Every way in which a file of texts is good or bad: the rows that come out, and the rejects with place and reason."""

import gzip
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepmoji import readers
from deepmoji.errors import InputError
from deepmoji.readers import read_texts
from deepmoji.rows import MAX_LINE_BYTES, Reject


def read(path: Path, **options: int) -> tuple[list[str], list[Reject]]:
    texts: list[str] = []
    rejects: list[Reject] = []
    for batch in read_texts(path, **options):  # type: ignore[arg-type]
        texts += batch.texts.to_pylist()
        rejects += batch.rejects
    return texts, rejects


def places(rejects: list[Reject]) -> list[tuple[str, str]]:
    return [(reject.place, reject.reason) for reject in rejects]


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


TEXTS = ["so happy 😂", "two\nlines", "an \u2028 inside", 'with "quotes", and commas', "", "tab\there"]


def as_csv(texts: list[str], delimiter: str = ",") -> bytes:
    rows = [f"1{delimiter}" + '"' + text.replace('"', '""') + '"' for text in texts]
    return "\n".join([f"id{delimiter}text", *rows, ""]).encode()


WRITERS: dict[str, Callable[[list[str]], bytes]] = {
    "a.jsonl": lambda texts: "".join(json.dumps(text) + "\n" for text in texts).encode(),
    "a.ndjson": lambda texts: "".join(
        json.dumps({"id": 1, "text": t}, ensure_ascii=False) + "\n" for t in texts
    ).encode(),
    "a.csv": as_csv,
    "a.tsv": lambda texts: as_csv(texts, "\t"),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
def test_every_kind_gives_the_same_texts(tmp_path: Path, name: str, packing: str) -> None:
    content = WRITERS[name](TEXTS)
    if packing:
        codec = "gzip" if packing == ".gz" else "zstd"
        content = pa.Codec(codec).compress(content, asbytes=True)
    assert read(write(tmp_path / (name + packing), content)) == (TEXTS, [])


def test_parquet(tmp_path: Path) -> None:
    table = pa.table({"text": pa.array([*TEXTS, None, "x\0y"]).dictionary_encode(), "n": range(8)})
    pq.write_table(table, tmp_path / "a.parquet")
    texts, rejects = read(tmp_path / "a.parquet")
    assert texts == TEXTS
    assert places(rejects) == [("row 7", "is null"), ("row 8", "holds a NUL character")]


def test_plain_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    content = "\ufeffone\r\ntwo \u2028 still\x85two\n\nlast".encode()
    assert read(write(tmp_path / "a.txt", content))[0] == ["one", "two \u2028 still\x85two", "", "last"]


def test_folder_in_order_without_hidden_files(tmp_path: Path) -> None:
    write(tmp_path / "b" / "x.txt", b"second\n")
    write(tmp_path / "a" / "y.txt", b"first\n")
    write(tmp_path / ".git" / "z.txt", b"never\n")
    write(tmp_path / "notes.docx", b"?")
    texts, rejects = read(tmp_path)
    assert texts == ["first", "second"]
    assert [(reject.file, reject.place) for reject in rejects] == [("notes.docx", "file")]
    assert "unknown kind" in rejects[0].reason


def test_batches_are_bounded(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", b"x\n" * 25)
    assert [len(batch.texts) for batch in read_texts(tmp_path, batch_rows=10)] == [10, 10, 5]


BAD_LINES = {
    b'"open': "is not JSON",
    b"[1, 2]": "has JSON of the wrong shape (list where a text should be)",
    b"12": "has JSON of the wrong shape (int where a text should be)",
    b'{"text": null}': "has JSON of the wrong shape (NoneType where a text should be)",
    b'{"body": "x"}': "has no columns 'text' among body",
    b'{"text": "a", "text": "b"}': "has the key 'text' twice",
    b'"nul \\u0000"': "holds a NUL character",
    b'"half \\ud83d pair"': "holds half of a surrogate pair",
    b'"caf\xe9"': "is not UTF-8",
    b"[" * 100_000: "is not JSON",
    b'"' + b"x" * MAX_LINE_BYTES * 10 + b'"': f"is longer than {MAX_LINE_BYTES} bytes",
}


@pytest.mark.parametrize("bad", BAD_LINES, ids=list(BAD_LINES.values()))
def test_bad_json_line_costs_only_itself(tmp_path: Path, bad: bytes) -> None:
    texts, rejects = read(write(tmp_path / "a.jsonl", b'"before"\n' + bad + b'\n"after"\n'))
    assert texts == ["before", "after"]
    assert places(rejects) == [("line 2", BAD_LINES[bad])]
    assert len(rejects[0].text) <= 4 * 200
    rejects[0].text.encode()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'1,"never closed', "is no record"),
        (b'1,"a"b', "is no record"),
        (b"1,2,3", "has 3 fields where the header has 2"),
        (b"1,\xff", "is not UTF-8"),
    ],
)
def test_broken_csv_row_costs_only_itself(tmp_path: Path, line: bytes, reason: str) -> None:
    content = b"id,text\n1,before\n" + line + b'\n2,after\n3,"two\nlines"\n4,last\n'
    texts, rejects = read(write(tmp_path / "a.csv", content))
    assert texts == ["before", "after", "two\nlines", "last"]
    assert [reject.place for reject in rejects] == ["line 3"]
    assert rejects[0].reason.startswith(reason)


def test_quote_left_open_over_the_whole_file(tmp_path: Path) -> None:
    rows = "".join(f"{n},fine {n}\n" for n in range(1000))
    texts, rejects = read(write(tmp_path / "a.csv", f'id,text\n0,"open\n{rows}'.encode()))
    assert texts == [f"fine {n}" for n in range(1000)]
    assert [reject.place for reject in rejects] == ["line 2"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", b"text,id,Text\nx,1,y\n", "has 2 columns 'text' among text, id, Text"),
        ("a.csv", b"body\nx\n", "has no columns 'text' among body"),
        ("a.txt", "hello\n".encode("utf-16"), "is UTF-16, it should be UTF-8"),
        ("a.gz", b"", "unknown kind of file"),
        ("a.parquet", b"PAR1 but not really", "Parquet"),
        ("a.jsonl.gz", b"no gzip", "zlib inflate failed"),
    ],
)
def test_bad_file_is_set_aside_whole(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    write(tmp_path / "good.txt", b"good\n")
    write(tmp_path / name, content)
    texts, rejects = read(tmp_path)
    assert texts == ["good"]
    assert [reject.file for reject in rejects] == [name]
    assert reason in rejects[0].reason
    assert str(tmp_path) not in rejects[0].reason


@pytest.mark.parametrize("packing", ["gzip", "zstd"])
def test_truncated_stream_keeps_the_whole_rows_before(tmp_path: Path, packing: str) -> None:
    rng = random.Random(1)
    texts = ["".join(rng.choices("abcdefgh ", k=40)) for _ in range(50_000)]
    content = pa.Codec(packing).compress("\n".join(texts).encode(), asbytes=True)
    path = write(tmp_path / f"a.txt.{'gz' if packing == 'gzip' else 'zst'}", content[: len(content) // 2])
    found, rejects = read(path)
    assert 1000 < len(found) < 50_000
    assert found == texts[: len(found)]
    assert places(rejects) == [(f"after row {len(found)}", "Truncated compressed stream")]
    assert not rejects[0].withdraws


def test_failed_checksum_withdraws_the_file(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(b"some text\n" * 1000))
    content[-6] ^= 1
    _, rejects = read(write(tmp_path / "a.txt.gz", bytes(content)))
    assert len(rejects) == 1
    assert rejects[0].withdraws


def test_file_that_changes_while_read_is_withdrawn(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"x\n" * 30)
    batches = readers.read_file(path, "a.txt", batch_rows=10)
    next(batches)
    with path.open("ab") as stream:
        stream.write(b"more\n")
    os.utime(path, ns=(1, 1))
    rejects = [reject for batch in batches for reject in batch.rejects]
    assert [(reject.reason, reject.withdraws) for reject in rejects] == [("changed while it was read", True)]


@pytest.mark.parametrize("name", ["missing", "empty", "a.docx"])
def test_nothing_to_read_is_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "a.docx", b"?")
    with pytest.raises(InputError) as caught:
        list(read_texts(tmp_path / name))
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=300),
    name=st.sampled_from(["a.txt", "a.csv", "a.tsv", "a.jsonl", "a.parquet", "a.txt.gz", "a.txt.zst"]),
)
def test_no_bytes_raise(tmp_path: Path, content: bytes, name: str) -> None:
    texts, rejects = read(write(tmp_path / name, content))
    for text in texts:
        assert "\0" not in text
        text.encode()
    if name == "a.txt" and not content.startswith((b"\xff\xfe", b"\xfe\xff")):
        assert len(texts) + len(rejects) == len(content.split(b"\n")) - (content.endswith(b"\n") or not content)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=30), max_size=8
    )
)
def test_any_text_survives_json_and_csv(tmp_path: Path, texts: list[str]) -> None:
    for name in ("a.jsonl", "a.csv"):
        assert read(write(tmp_path / name, WRITERS[name](texts))) == (texts, [])


@pytest.mark.realdata
def test_real_tweets_are_read_whole(real_data: Path) -> None:
    rows = [
        sum(len(b.texts) + len(b.rejects) for b in read_texts(path))
        for path in sorted((real_data / "tweets").iterdir())
    ]
    assert rows == [406_996, 371_348, 291_680]
