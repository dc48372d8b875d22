"""The corpus: what each rule takes, that every row is accounted for, that killed or parallel runs change nothing."""

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import emoji
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepmoji import corpus, splits
from deepmoji.corpus import ingest
from deepmoji.emojis import LabelSet, split_emojis
from deepmoji.errors import InputError, UsageError
from deepmoji.filters import EMOJI_LIKE, Options, clean_shard
from deepmoji.funnel import describe
from tests.tweets import LABELS, bytes_below, write_tweets

LOOSE = Options(
    drop_retweets=False, drop_urls=False, drop_mentions_only=False, english_share=0, min_words=0, max_characters=10_000
)


def clean(*texts: str, options: Options = LOOSE, labels: LabelSet = LABELS) -> tuple[list[Any], dict[str, int]]:
    done = clean_shard(pa.array(texts, pa.string()), labels, options)
    rows = list(zip(done.texts.to_pylist(), done.labels.to_pylist(), strict=True))
    return rows, {rule: count for rule, count in done.dropped.items() if count}


def test_one_label_may_have_several_spellings() -> None:
    moods = LabelSet(("good", "bad"), ((":)", ":-)", "😂"), (":(",)))
    assert clean("fine :-) 😂", "ok :)", "oh :(", "none", "both :( :)", labels=moods)[0] == [
        ("fine", [0]), ("ok", [0]), ("oh", [1]), ("both", [0, 1]),
    ]  # fmt: skip


def read_corpus(out: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(out.glob("part-*.parquet"))])


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("so good 😂😂 ❤️", [("so good", [0, 1])]),
        ("fire&#128514; &amp; ice", [("fire & ice", [0])]),
        ("two\r\nlines\u2028here 🔥", [("two\nlines\nhere", [3])]),
        ("🔥  wide   blanks\t\there  ", [("wide blanks here", [3])]),
        ("no label 😀", []),
        ("nothing at all", []),
        ("😂", []),
    ],
)
def test_labels_come_off_the_text(text: str, rows: list[Any]) -> None:
    assert clean(text)[0] == rows


@pytest.mark.parametrize(
    ("rule", "bad", "good", "change"),
    [
        ("empty", "  \n ", "words 😂", {}),
        ("too_long", "words words 😂", "words 😂", {"max_characters": 10}),
        ("retweet", "RT @you: words 😂", "START @you words 😂", {"drop_retweets": True}),
        ("retweet", "look: RT @you words 😂", "rt if you agree 😂", {"drop_retweets": True}),
        ("url", "see HTTPS://t.co/x 😂", "the http protocol 😂", {"drop_urls": True}),
        ("url", "cut off htt… 😂", "what… 😂", {"drop_urls": True}),
        ("url", "www.example.com 😂", "wwww cool 😂", {"drop_urls": True}),
        ("no_label", "words 😀", "words 😂", {}),
        ("no_text", "😂 😀", "! 😂", {}),
        ("broken", "don\ufffdt \ufffd 😂", "one broken \ufffd here 😂", {}),
        ("mentions_only", "@you @me 😂", "@you hi 😂", {"drop_mentions_only": True}),
        ("too_short", "one ! 😂", "one two 😂", {"min_words": 2}),
        ("not_english", "je ne sais pas pourquoi 😂", "i do not know why 😂", {"english_share": 0.2}),
        ("not_english", "これ は とても いい です 😂", "kurz 😂", {"english_share": 0.2}),
    ],
)
def test_each_rule_takes_its_row_and_can_be_switched(rule: str, bad: str, good: str, change: dict[str, Any]) -> None:
    options = Options(**{**LOOSE.__dict__, **change})
    assert clean(bad, options=options)[1] == {rule: 1}
    assert clean(good, options=options)[1] == {}
    if change:
        assert clean(bad)[1] == {}


def test_emoticons_and_signs_are_labels_too() -> None:
    labels = LabelSet((":)", ":(", "♡", "😂"))
    rows, _ = clean("fine :) x", "x:)y", "so♡sweet :(", "both :( 😂", "twice ♡ ♡", labels=labels)
    assert [(text.split(), found) for text, found in rows] == [
        (["fine", "x"], [0]),
        (["so", "sweet"], [1, 2]),
        (["both"], [1, 3]),
        (["twice"], [2]),
    ]


@pytest.mark.parametrize("names", [("😂", "😂\ufe0f"), ("😂😭", "🔥"), ("a b", "c"), ("x😂", "🔥")])
def test_unusable_label_set_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="should be one emoji"):
        ingest(write_tweets(tmp_path / "in"), tmp_path / "out", labels=LabelSet(names))


_PIECES = [
    "😂",
    "❤️",
    "❤",
    "\ufe0f",
    "\u200d",
    "👩\u200d🚀",
    "🏽",
    "👍🏽",
    "🇩🇪",
    "🇩",
    "1\ufe0f\u20e3",
    "\u20e3",
    "a",
    " ",
    "&#10084;",
    "\u2028",
    "@x",
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(_PIECES) | st.text(st.characters(exclude_categories=["Cs"]), max_size=3), max_size=10))
def test_no_emoji_and_no_trace_of_one_stays(pieces: list[str]) -> None:
    rows, dropped = clean("".join(pieces) + " 😂")
    assert len(rows) + sum(dropped.values()) == 1
    for text, labels in rows:
        assert split_emojis(text)[1] == []
        assert not set(text) & set("\ufe0e\ufe0f\u20e3🏻🏼🏽🏾🏿\u2028\r")
        assert 0 in labels
        assert text == text.strip()


def test_second_look_knows_every_block_of_emojis() -> None:
    pattern = re.compile(re.sub(r"\\x\{(\w+)\}", lambda code: chr(int(code[1], 16)), EMOJI_LIKE))
    assert all(pattern.match(character) for one in emoji.EMOJI_DATA for character in one[0] if not character.isascii())


def test_funnel_accounts_for_every_row(tmp_path: Path) -> None:
    source = write_tweets(tmp_path / "in")
    more = ["same spam with you 😂"] * 6 + ["same words of the day 😂"] * 3 + ["Same WORDS, of the day! @me 🔥"]
    more += ["RT @you what 😂", "", "no label", "the cat and dog www.x.org 😂"]
    (source / "more.txt").write_bytes("\n".join([*more, "bad"]).encode() + b"\xff\n")
    funnel = ingest(source, tmp_path / "out", labels=LABELS, max_reject_share=0.01)
    assert funnel["rows_in"] == 600 + len(more) + 1
    assert funnel["rejects"] == 1
    wanted = {"spam": 6, "duplicate": 2, "near_duplicate": 1, "retweet": 1, "empty": 1, "no_label": 1, "url": 1}
    assert {rule: count for rule, count in funnel["dropped"].items() if count} == wanted
    assert funnel["rows_in"] == funnel["rejects"] + sum(funnel["dropped"].values()) + funnel["rows_out"]
    table = read_corpus(tmp_path / "out")
    assert len(table) == funnel["rows_out"] == sum(entry["rows_out"] for entry in funnel["sources"])
    assert Counter(table["source"].to_pylist()) == {"f0": 200, "f1": 200, "f2": 200, "more": 1}
    assert json.loads((tmp_path / "out" / "funnel.json").read_text()) == funnel
    assert json.loads((tmp_path / "out" / "labels.json").read_text()) == list(LABELS.names)
    (reject,) = (json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines())
    assert (reject["file"], reject["place"], reject["reason"]) == ("more.txt", "line 15", "is not UTF-8")
    assert "near_duplicate" in describe(funnel)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_copies_can_be_kept(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("same words here 😂\n" * 8 + "Same words: HERE 😂\n")
    kept = ingest(tmp_path / "in.txt", tmp_path / "out", labels=LABELS, max_copies=0, drop_near_duplicates=False)
    assert (kept["rows_out"], kept["dropped"]["duplicate"]) == (2, 7)
    dropped = ingest(tmp_path / "in.txt", tmp_path / "out", labels=LABELS, max_copies=8)
    assert (dropped["rows_out"], dropped["dropped"]["near_duplicate"]) == (1, 1)


def test_source_is_the_first_folder(tmp_path: Path) -> None:
    write_tweets(tmp_path / "in" / "crawl one" / "deep", 30)
    ingest(tmp_path / "in", tmp_path / "out", labels=LABELS)
    assert set(read_corpus(tmp_path / "out")["source"].to_pylist()) == {"crawl one"}


def test_a_source_can_be_left_out(tmp_path: Path) -> None:
    for name in ("one", "two/deep", "three"):
        write_tweets(tmp_path / "in" / name, 30)
    (tmp_path / "in" / "four.txt").write_text("what a day 😂\n")
    funnel = ingest(tmp_path / "in", tmp_path / "out", labels=LABELS, leave_out=["two", "four"], max_copies=0)
    assert set(read_corpus(tmp_path / "out")["source"].to_pylist()) <= {"one", "three"}
    assert funnel["rows_in"] == 60 and {entry["source"] for entry in funnel["sources"]} == {"one", "three"}
    with pytest.raises(UsageError, match=r"Leaving out deep makes no sense: .* four, one, three, two"):
        ingest(tmp_path / "in", tmp_path / "out", labels=LABELS, leave_out=["one", "deep"])
    with pytest.raises(UsageError, match="Leaving out all"):
        ingest(tmp_path / "in", tmp_path / "out", labels=LABELS, leave_out=["one", "two", "three", "four"])


@pytest.mark.parametrize("rows", [1, 100, 599, 600, 10_000])
def test_rows_are_taken_evenly(tmp_path: Path, rows: int) -> None:
    source = write_tweets(tmp_path / "in")
    funnel = ingest(source, tmp_path / "out", labels=LABELS, rows=rows, shard_rows=70)
    taken = min(rows, 600)
    assert funnel["rows_in"] == 600
    assert funnel["dropped"]["not_sampled"] == 600 - taken
    assert all(abs(entry["rows_out"] - taken / 3) <= 1 for entry in funnel["sources"])


def test_split_is_balanced_and_by_text(tmp_path: Path) -> None:
    source = write_tweets(tmp_path / "in", 3000)
    funnel = ingest(source, tmp_path / "out", labels=LABELS, eval_per_label=60)
    for entry in funnel["labels"]:
        total = entry["train"] + entry["val"] + entry["test"]
        assert entry["val"] == entry["test"] == min(60, total // 10)
    table = read_corpus(tmp_path / "out")
    assert len(set(table["id"].to_pylist())) == len(table)
    other = ingest(source, tmp_path / "other", labels=LABELS, eval_per_label=60, seed=2)
    assert other["labels"] == funnel["labels"]
    assert read_corpus(tmp_path / "other")["split"] != table["split"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sets(st.integers(0, 4), min_size=1), min_size=1, max_size=120), st.integers(1, 5), st.integers(1, 4))
def test_draw_never_gives_a_label_more_than_it_needs(texts: list[set[int]], per_label: int, partitions: int) -> None:
    counts = np.bincount([label for labels in texts for label in labels], minlength=5)
    needs = splits.held_out_per_label(counts, per_label)
    parts = [texts[number::partitions] for number in range(partitions)]
    rng = np.random.default_rng(1)
    found = [
        splits.find_candidates(
            number,
            rng.integers(0, 2**64, len(part), np.uint64),
            pa.array([sorted(labels) for labels in part], pa.list_(pa.int32())),
            counts,
            needs,
        )
        for number, part in enumerate(parts)
    ]
    drawn = splits.draw(found, needs)
    for split in ("val", "test"):
        taken = Counter(
            label for number, part in enumerate(parts) for row in drawn[number][split] for label in part[row]
        )
        assert all(taken[label] <= needs[label] for label in range(5))
    assert all(not set(rows["val"].tolist()) & set(rows["test"].tolist()) for rows in drawn.values())


def test_bytes_depend_neither_on_workers_nor_on_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "PARTITION_ROWS", 100)
    source = write_tweets(tmp_path / "in")
    results = []
    for name, workers, shard_rows in (("one", 1, 100_000), ("two", 2, 70), ("small", 1, 33)):
        ingest(source, tmp_path / name, labels=LABELS, workers=workers, shard_rows=shard_rows)
        results.append(bytes_below(tmp_path / name))
    assert len(results[0]) == 6 + 3
    assert results[1] == results[0]
    assert results[2] == results[0]


def test_own_mapping_is_used_for_every_step(tmp_path: Path) -> None:
    seen: list[int] = []

    def backwards(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterable[Any]:
        seen.append(len(items))
        return list(reversed([function(item) for item in reversed(items)]))

    source = write_tweets(tmp_path / "in")
    ingest(source, tmp_path / "one", labels=LABELS, shard_rows=100)
    ingest(source, tmp_path / "two", labels=LABELS, shard_rows=100, map_shards=backwards)
    assert seen == [3, 6, 1, 1, 1]
    assert bytes_below(tmp_path / "one") == bytes_below(tmp_path / "two")


@pytest.mark.parametrize("steps", [1, 2, 5, 9, 10, 11])
def test_stopped_anywhere_and_started_again(tmp_path: Path, steps: int) -> None:
    source = write_tweets(tmp_path / "in")
    ingest(source, tmp_path / "whole", labels=LABELS, shard_rows=100)
    done: list[str] = []

    def counting(function: Any, items: Sequence[Any]) -> Iterable[Any]:
        for item in items:
            if len(done) == steps:
                raise KeyboardInterrupt
            done.append(function.func.__name__)
            yield function(item)

    with pytest.raises(KeyboardInterrupt):
        ingest(source, tmp_path / "out", labels=LABELS, shard_rows=100, map_shards=counting)
    assert not (tmp_path / "out").exists()
    marks = {path: path.stat().st_mtime_ns for path in (tmp_path / ".out-work").glob("c*.json")}
    assert len(marks) == min(steps, 9)
    touched: dict[Path, int] = {}

    def watching(function: Any, items: Sequence[Any]) -> Iterable[Any]:
        results = [function(item) for item in items]
        touched.update({path: path.stat().st_mtime_ns for path in marks})
        return results

    ingest(source, tmp_path / "out", labels=LABELS, shard_rows=100, map_shards=watching)
    assert touched == marks, "finished shards were made again"
    assert bytes_below(tmp_path / "out") == bytes_below(tmp_path / "whole")
    assert not (tmp_path / ".out-work").exists()


def test_changed_input_or_option_starts_afresh(tmp_path: Path) -> None:
    source = write_tweets(tmp_path / "in")

    def stop(function: Any, items: Sequence[Any]) -> Iterable[Any]:
        if function.func.__name__ == "_merge":
            raise KeyboardInterrupt
        return [function(item) for item in items]

    with pytest.raises(KeyboardInterrupt):
        ingest(source, tmp_path / "out", labels=LABELS, map_shards=stop)
    (source / "f0.jsonl").write_text('"the cat and my dog 😂"\n')
    assert ingest(source, tmp_path / "out", labels=LABELS)["rows_in"] == 401


_KILLED = """
import os, signal, sys
from pathlib import Path
from deepmoji import corpus
from deepmoji.emojis import LabelSet
def dying(function, items):
    for item in items:
        if function.func.__name__ == sys.argv[3]:
            os.kill(os.getpid(), signal.SIGKILL)
        yield function(item)
corpus.ingest(Path(sys.argv[1]), Path(sys.argv[2]), labels=LabelSet(("😂", "❤", "😭", "🔥")), map_shards=dying)
"""


def test_killed_for_real(tmp_path: Path) -> None:
    source = write_tweets(tmp_path / "in")
    command = [sys.executable, "-c", _KILLED, str(source), str(tmp_path / "out"), "_finish"]
    assert subprocess.run(command, timeout=60).returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    ingest(source, tmp_path / "out", labels=LABELS)
    ingest(source, tmp_path / "whole", labels=LABELS)
    assert bytes_below(tmp_path / "out") == bytes_below(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "whole"]


def test_too_many_rejects_stop_and_survive(tmp_path: Path) -> None:
    source = write_tweets(tmp_path / "in")
    (source / "bad.jsonl").write_text("[1]\n" * 20 + "{\n" * 5)
    with pytest.raises(InputError) as caught:
        ingest(source, tmp_path / "out", labels=LABELS)
    message = str(caught.value)
    assert "25 of 625 rows" in message
    assert "wrong shape" in message
    assert str(tmp_path / "ingest-rejects.jsonl") in message
    assert len((tmp_path / "ingest-rejects.jsonl").read_text().splitlines()) == 25
    assert not (tmp_path / "out").exists()
    funnel = ingest(source, tmp_path / "out", labels=LABELS, max_reject_share=0.04)
    assert funnel["rejects"] == 25
    assert not (tmp_path / "ingest-rejects.jsonl").exists()


def test_untrusted_file_is_withdrawn_with_its_rows(tmp_path: Path) -> None:
    source = write_tweets(tmp_path / "in")
    rng = random.Random(1)
    lines = "".join("".join(rng.choices("abcdefgh ", k=60)) + " 😂\n" for _ in range(9000))
    packed = bytearray(pa.Codec("gzip").compress(lines.encode(), asbytes=True))
    packed[-6] ^= 1  # the checksum
    (source / "bad.txt.gz").write_bytes(packed)
    funnel = ingest(source, tmp_path / "out", labels=LABELS, max_reject_share=1)
    assert funnel["rows_out"] == 600
    assert funnel["rows_in"] == 600 + funnel["rejects"]
    assert funnel["rejects"] > 1000


@pytest.mark.parametrize(
    ("name", "content"), [("missing", None), ("empty.txt", ""), ("none.txt", "no emoji here\n"), ("a.doc", "x")]
)
def test_nothing_usable_is_one_sentence(tmp_path: Path, name: str, content: str | None) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as caught:
        ingest(tmp_path / name, tmp_path / "out", labels=LABELS)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_full_disk_is_one_sentence_and_can_be_resumed(tmp_path: Path) -> None:
    source = write_tweets(tmp_path / "in", 6000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        with pytest.raises(InputError, match="finished shards are kept") as caught:
            ingest(source, tmp_path / "out", labels=LABELS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert ingest(source, tmp_path / "out", labels=LABELS)["rows_out"] == 6000


def test_out_below_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="ingest stopped"):
        ingest(write_tweets(tmp_path / "in"), tmp_path / "file" / "out", labels=LABELS)


def test_old_output_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    source = write_tweets(tmp_path / "in")
    ingest(source, tmp_path / "out", labels=LABELS)
    before = bytes_below(tmp_path / "out")
    with pytest.raises(InputError):
        ingest(tmp_path / "nowhere", tmp_path / "out", labels=LABELS)
    with pytest.raises(InputError, match="left no row"):
        ingest(source, tmp_path / "out", labels=LabelSet(("🦄", "🥑")))
    assert bytes_below(tmp_path / "out") == before
    os.utime(source / "f0.jsonl")


@pytest.mark.realdata
def test_real_tweets(tmp_path: Path, real_data: Path) -> None:
    from deepmoji.emojis import load_labels

    funnel = ingest(real_data / "tweets", tmp_path / "out", labels=load_labels("emojis64"), rows=30_000, workers=2)
    dropped = funnel["dropped"]
    assert funnel["rows_out"] > 15_000
    assert dropped["url"] > 4_000
    assert dropped["not_english"] < 0.02 * 30_000
    table = read_corpus(tmp_path / "out")
    assert all(not split_emojis(text)[1] for text in table["text"].to_pylist())
