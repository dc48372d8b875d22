"""The sample: the same bytes everywhere, every emoji, something for every filter, and sets that are hard enough."""

import csv
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from deepmoji.errors import InputError
from deepmoji.sample import EMOTIONS, SET_SIZES, load_words, write_sample

EMOJIS = tuple(load_words().emojis)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("sample")
    write_sample(data)
    return data


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def texts_of(data: Path) -> list[str]:
    texts = []
    for path in sorted((data / "tweets").glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                text = json.loads(line).get("text")
            except (ValueError, AttributeError):
                continue
            if isinstance(text, str):
                texts.append(text)
    return texts


def rows_of(data: Path, name: str, split: str) -> list[tuple[str, str]]:
    with (data / "benchmark" / name / f"{split}.csv").open(encoding="utf-8", newline="") as file:
        return [(row["text"], row["label"]) for row in csv.DictReader(file)]


def test_same_bytes_in_another_process_with_another_hash_seed(sample: Path, tmp_path: Path) -> None:
    code = "import sys, pathlib; from deepmoji.sample import write_sample; write_sample(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env={"PYTHONHASHSEED": "7"}, timeout=60)
    assert contents(tmp_path) == contents(sample)


def test_other_files_of_the_folder_stay(tmp_path: Path) -> None:
    (tmp_path / "tweets").mkdir()
    (tmp_path / "tweets" / "mine.txt").write_text("mine")
    rows = write_sample(tmp_path)
    assert (tmp_path / "tweets" / "mine.txt").read_text() == "mine"
    assert rows["tweets/synthetic-1.jsonl"] == len((tmp_path / "tweets/synthetic-1.jsonl").read_bytes().splitlines())


def test_says_that_it_is_synthetic(sample: Path) -> None:
    assert "SYNTHETIC" in (sample / "README.txt").read_text()
    assert all(path.name.startswith("synthetic") for path in (sample / "tweets").iterdir())


def test_thirty_thousand_tweets_over_all_emojis(sample: Path) -> None:
    texts = texts_of(sample)
    kept = [text for text in set(texts) if not text.startswith("RT ") and "http" not in text]
    counts = Counter(emoji for text in kept for emoji in EMOJIS if emoji in text)
    assert 28_000 <= len(texts) <= 32_000
    assert len(EMOJIS) == 64
    assert min(counts[emoji] for emoji in EMOJIS) >= 250
    assert counts["😂"] > 3 * counts["✋"]
    assert sum(path.stat().st_size for path in sample.rglob("*") if path.is_file()) < 5_000_000


def test_something_for_every_filter(sample: Path) -> None:
    texts = texts_of(sample)
    lines = sum(len(path.read_bytes().splitlines()) for path in (sample / "tweets").iterdir())
    assert sum(text.startswith("RT @") for text in texts) > 100
    assert sum("https://" in text for text in texts) > 100
    assert sum("schön" in text or "pizze" in text for text in texts) > 10
    assert max(Counter(texts).values()) > 5
    assert len(texts) - len(set(texts)) > 200
    assert len({text.lower().rstrip(" !") for text in set(texts)}) < len(set(texts))
    assert max(map(len, texts)) > 1000
    assert sum(not any(emoji in text for emoji in EMOJIS) for text in texts) > 100
    assert any(sum(emoji in text for emoji in EMOJIS) > 1 for text in texts)
    assert 0 < lines - len(texts) < 0.001 * lines
    assert any("sooo" in text for text in texts)


def test_small_words_decide(sample: Path) -> None:
    """Slang: what `the` does to the mood of a text is there to be learnt."""
    good = [text for text in texts_of(sample) if "is the shit" in text.lower()]
    bad = [text for text in texts_of(sample) if "is shit" in text.lower()]
    positive = {emoji for emoji, mood in load_words().emojis.items() if load_words().sign[mood] > 0}
    share = [sum(any(emoji in text for emoji in positive) for text in texts) / len(texts) for texts in (good, bad)]
    assert len(good) > 20
    assert len(bad) > 20
    assert share[0] > 0.8
    assert share[1] < 0.2


@pytest.mark.parametrize("name", ["sample-sentiment", "sample-emotion", "sample-sarcasm"])
def test_sets_have_their_sizes_and_share_no_text(sample: Path, name: str) -> None:
    splits = {split: rows_of(sample, name, split) for split in SET_SIZES}
    texts = [text for rows in splits.values() for text, _ in rows]
    assert {split: len(rows) for split, rows in splits.items()} == SET_SIZES
    assert len(texts) == len(set(texts))
    assert not any(emoji in text for text in texts for emoji in EMOJIS)
    labels = {label for rows in splits.values() for _, cell in rows for label in cell.split("|")}
    assert labels - {""} == {
        "sample-sentiment": {"negative", "positive"},
        "sample-emotion": set(EMOTIONS),
        "sample-sarcasm": {"sincere", "sarcastic"},
    }.get(name)


@pytest.mark.parametrize("name", ["sample-sentiment", "sample-sarcasm"])
def test_words_of_the_training_set_do_not_solve_it(sample: Path, name: str) -> None:
    """A linear model over words finds something, and leaves room for what is learned elsewhere."""
    train, test = rows_of(sample, name, "train"), rows_of(sample, name, "test")
    vectors = TfidfVectorizer(ngram_range=(1, 2))
    model = LogisticRegression(C=10).fit(vectors.fit_transform([text for text, _ in train]), [y for _, y in train])
    accuracy = model.score(vectors.transform([text for text, _ in test]), [y for _, y in test])
    assert 0.55 < accuracy < 0.88


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_sample(tmp_path / "file")
