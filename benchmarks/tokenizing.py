"""How much faster `tokenize_column` is than a plain line-by-line tokenizer, from cold, on one core.

    python benchmarks/tokenizing.py tweets.txt --rows 1000000

Prints processor time of both, their ratio, and fails if a single token differs. Files are read as one text a line
(.txt, or .jsonl and .jsonl.gz with one JSON string a line). With more rows asked for than the files hold, texts come
again with two of their words exchanged for words of other texts, so that repeats are not exact.
"""

import argparse
import gzip
import json
import random
import sys
import time
from itertools import islice
from pathlib import Path

import plain_tokenizer
import pyarrow as pa

from deepmoji.text import tokenize_column


def read(path: Path) -> list[str]:
    """The texts of one file."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        return [json.loads(line) if ".jsonl" in path.name else line.rstrip("\n") for line in lines]


def vary(texts: list[str], rows: int, seed: int = 1) -> list[str]:
    """At least the texts themselves, then varied copies of them, `rows` in all."""
    random_ = random.Random(seed)
    varied = list(islice(texts, rows))
    while len(varied) < rows:
        words = random_.choice(texts).split() or [""]
        for _ in range(2):
            words[random_.randrange(len(words))] = random_.choice(random_.choice(texts).split() or [""])
        varied.append(" ".join(words))
    return varied


def main() -> None:
    """Time both tokenizers on the same texts and compare every token."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--rows", type=int, help="as many texts; default: what the files hold")
    arguments = parser.parse_args()
    texts = [text for path in arguments.files for text in read(path)]
    texts = vary(texts, arguments.rows or len(texts))
    column = pa.array(texts)

    start = time.process_time()  # first, so that nothing is warm
    tokens, offsets = tokenize_column(column)
    fast = time.process_time() - start

    start = time.process_time()
    expected = [plain_tokenizer.tokenize(text) for text in texts]
    plain = time.process_time() - start

    flat = tokens.to_pylist()
    different = sum(flat[a:b] != row for a, b, row in zip(offsets[:-1], offsets[1:], expected, strict=True))
    print(f"{len(texts):,} texts, {len(flat):,} tokens, {different} texts differ")
    print(f"plain {plain:.2f} s, column {fast:.2f} s of processor time: {plain / fast:.1f} times as fast")
    if different:
        sys.exit(1)


if __name__ == "__main__":
    main()
