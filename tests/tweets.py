"""A small source of tweets for tests, and how to compare what came of it."""

import json
from hashlib import sha256
from pathlib import Path

from deepmoji.emojis import LabelSet

LABELS = LabelSet(("😂", "❤", "😭", "🔥"))
_SENTENCE = "the cat and dog saw my house with you today but what about this game of yours tonight"
WORDS = _SENTENCE.split()


def sentence(number: int) -> str:
    """A different English sentence for every number."""
    return " ".join(WORDS[(number // len(WORDS) ** place) % len(WORDS)] for place in range(4)) + " indeed"


def write_tweets(folder: Path, count: int = 600, files: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file in range(files):
        rows = [
            f"{sentence(number)} {LABELS.names[number % 4]}" + " ❤" * (number % 5 == 0)
            for number in range(file, count, files)
        ]
        (folder / f"f{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def bytes_below(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
