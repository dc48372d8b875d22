"""Drift: what differs is named, chance is not drift, and what cannot be compared is one sentence."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepmoji import drift
from deepmoji.errors import InputError
from deepmoji.vocabulary import SPECIALS, Vocabulary

LABELS = ["😂", "😍", "😭", "🔥"]
WORDS = tuple(f"{a}{b}" for a in "bcdfghklmn" for b in ("ale", "ore", "ini"))
LIMITS: dict[str, Any] = {
    "min_rows": 50,
    "rows": 2000,
    "max_label_divergence": 0.02,
    "max_vocabulary_divergence": 0.05,
    "max_unknown_growth": 0.03,
    "max_length_change": 0.25,
    "seed": 1,
}


def corpus(
    folder: Path, rows: int, seed: int, *, mix: tuple[float, ...] = (0.25,) * 4, words: tuple[str, ...] = WORDS,
    length: int = 8, shards: int = 1,
) -> Path:  # fmt: skip
    """Random texts of some words, in the form that ingest writes."""
    random = np.random.default_rng(seed)
    folder.mkdir()
    for shard in range(shards):
        texts = [" ".join(random.choice(words, length)) for _ in range(rows // shards)]
        labels = [[int(random.choice(4, p=mix))] for _ in texts]
        table = pa.table({"text": texts, "labels": pa.array(labels, pa.list_(pa.int32()))})
        pq.write_table(table, folder / f"part-{shard:05d}.parquet")
    (folder / "labels.json").write_text(json.dumps(LABELS))
    return folder


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("reference") / "corpus", 1600, seed=1, shards=2)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.json"
    Vocabulary((*SPECIALS, *WORDS)).save(path)
    return path


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({}, []),
        ({"mix": (0.55, 0.15, 0.15, 0.15)}, ["label mix"]),
        ({"words": WORDS[:6]}, ["vocabulary"]),
        ({"length": 4}, ["length"]),
        ({"words": (*WORDS, "qqale", "qqore", "qqini")}, ["vocabulary", "unknown words"]),
    ],
)
def test_what_differs_is_named(
    changes: dict[str, Any], broken: list[str], reference: Path, vocabulary: Path, tmp_path: Path
) -> None:
    new = corpus(tmp_path / "new", 400, seed=2, **changes)
    limits = LIMITS | ({"max_vocabulary_divergence": 0.01} if len(broken) == 2 else {})
    numbers = drift.compare(reference, new, vocabulary, tmp_path / "out", **limits)
    assert numbers["drifted"] == broken
    assert (numbers["rows"], numbers["reference_rows"]) == (400, 1600)
    report = json.loads((tmp_path / "out" / "validation.json").read_text())
    assert [rule["rule"] for rule in report["rules"] if not rule["passed"]] == broken
    page = (tmp_path / "out" / "validation.html").read_text()
    assert all(f"drift: {rule}" in page for rule in broken)


def test_few_rows_are_no_drift_by_themselves(reference: Path, vocabulary: Path, tmp_path: Path) -> None:
    """Sixty texts of the same kind diverge from many by more than the limit, and all of it is chance."""
    new = corpus(tmp_path / "new", 60, seed=3)
    words = Vocabulary.load(vocabulary)
    counts = [
        np.bincount(
            words.encode_flat(pq.read_table(folder / "part-00000.parquet")["text"])[0], minlength=len(words)
        ).astype(float)
        for folder in (reference, new)
    ]
    limits = LIMITS | {"max_vocabulary_divergence": 0.005}
    assert drift.divergence(*counts) > 0.005
    assert drift.compare(reference, new, vocabulary, tmp_path / "out", **limits)["drifted"] == []


def test_numbers_are_what_was_counted(reference: Path, vocabulary: Path, tmp_path: Path) -> None:
    new = corpus(tmp_path / "new", 100, seed=4, words=("bale", "zzz"), length=4)
    numbers = drift.compare(reference, new, vocabulary, tmp_path / "out", **LIMITS)
    tokens = " ".join(pq.read_table(new / "part-00000.parquet")["text"].to_pylist()).split()
    assert numbers["unknown_share"] == pytest.approx(tokens.count("zzz") / len(tokens))
    assert numbers["mean_length"] == 4
    assert numbers["length_change"] == pytest.approx(0.5)
    assert numbers["reference_unknown_share"] == 0


def test_the_same_comparison_gives_the_same_bytes(reference: Path, vocabulary: Path, tmp_path: Path) -> None:
    new = corpus(tmp_path / "new", 100, seed=5)
    pages = []
    for name in ("a", "b"):
        drift.compare(reference, new, vocabulary, tmp_path / name, **LIMITS)
        pages.append((tmp_path / name / "validation.json").read_bytes())
    assert pages[0] == pages[1]


def test_divergence_is_between_nothing_and_all() -> None:
    one, other = np.array([1.0, 0.0]), np.array([0.0, 5.0])
    assert drift.divergence(one, one * 7) == 0
    assert drift.divergence(one, other) == 1
    assert 0 < drift.divergence(one, np.array([1.0, 1.0])) < 1
    assert drift.divergence(one, np.zeros(2)) == 0


@pytest.mark.parametrize("how", ["few", "labels", "empty"])
def test_what_cannot_be_compared_is_one_sentence(how: str, reference: Path, vocabulary: Path, tmp_path: Path) -> None:
    new = corpus(tmp_path / "new", 10, seed=6)
    if how == "labels":
        (new / "labels.json").write_text(json.dumps(LABELS[:3]))
    if how == "empty":
        (new / "part-00000.parquet").unlink()
    says = {"few": "Only 10 of the new texts", "labels": "other labels", "empty": "holds no texts"}[how]
    with pytest.raises(InputError, match=says) as caught:
        drift.compare(reference, new, vocabulary, tmp_path / "out", **LIMITS)
    assert "\n" not in str(caught.value)
