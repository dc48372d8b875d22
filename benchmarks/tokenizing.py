"""How much faster `tokenize_column` is than a plain line-by-line tokenizer, from cold, on one core.

    python benchmarks/tokenizing.py tweets.txt --rows 1000000

Prints the processor time of both, each in new processes, and their ratio; fails if a single token differs. Files hold
one text a line (.txt), or one JSON string a line (.jsonl, .jsonl.gz). With more rows asked for than the files hold,
texts come again with two of their words exchanged for words of other texts, so that repeats are not exact.
"""

import argparse
import gzip
import json
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import islice, pairwise
from multiprocessing import get_context
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


def measure(tokenizer: str, texts: list[str]) -> float:
    """Processor seconds for all texts in this process, without imports and the making of the column."""
    column = pa.array(texts)
    start = time.process_time()
    if tokenizer == "column":
        tokenize_column(column)
    else:
        for text in texts:
            plain_tokenizer.tokenize(text)
    return time.process_time() - start


def main() -> None:
    """Time both tokenizers on the same texts and compare every token."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--rows", type=int, help="as many texts; default: what the files hold")
    parser.add_argument("--repeats", type=int, default=3, help="new processes for each; the least time counts")
    arguments = parser.parse_args()
    texts = [text for path in arguments.files for text in read(path)]
    texts = vary(texts, arguments.rows or len(texts))

    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as new_processes:
        seconds = {
            tokenizer: [new_processes.submit(measure, tokenizer, texts).result() for _ in range(arguments.repeats)]
            for tokenizer in ("plain", "column")
        }
    for tokenizer, times in seconds.items():
        print(f"{tokenizer:6} {', '.join(f'{one:.2f}' for one in times)} s of processor time")
    print(f"{len(texts):,} texts: {min(seconds['plain']) / min(seconds['column']):.1f} times as fast")

    tokens, offsets = tokenize_column(texts)
    flat = tokens.to_pylist()
    rows = (flat[start:end] for start, end in pairwise(offsets.tolist()))
    different = sum(plain_tokenizer.tokenize(text) != row for text, row in zip(texts, rows, strict=True))
    print(f"{len(flat):,} tokens, {different} texts differ")
    if different:
        sys.exit(1)


if __name__ == "__main__":
    main()
