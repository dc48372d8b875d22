"""Ingest and tokenize at growing size: rows per second and peak memory, which should both stay level.

    python benchmarks/corpus_scale.py SOURCE [--rows 1000000 10000000] [--workers 2] [--prefect]

SOURCE is a folder of tweets that `deepmoji ingest` reads. Its rows are repeated up to the wanted number; from the
second round on each gets words of its own, drawn with the frequencies of the source, so that copies are no
duplicates and the vocabulary goes on growing as it does in real text. Making the input is not timed. With `--prefect`
shards are tasks of Prefect's process runner, as `python -m flows shards` runs them, its temporary server included.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import psutil

FILE_ROWS = 400_000


def varied(source: Path) -> Iterator[str]:
    """Rows of the source in endless rounds, from the second on with five words exchanged or added."""
    from deepmoji.readers import read_texts

    rng = random.Random(1)
    words: Counter[str] = Counter()
    for batch in read_texts(source):
        for text in batch.texts.to_pylist():
            words.update(text.split(" "))
            yield text
    plain = [word for word in words if word.isalpha() and word.isascii()]
    weights = list(accumulate(words[word] for word in plain))
    while True:
        for batch in read_texts(source):
            texts = batch.texts.to_pylist()
            drawn = iter(rng.choices(plain, cum_weights=weights, k=5 * len(texts)))
            for text in texts:
                parts = text.split(" ")
                places = [place for place, part in enumerate(parts) if part.isalpha() and part.isascii()]
                for place, word in zip(rng.sample(places, min(4, len(places))), islice(drawn, 4), strict=False):
                    parts[place] = word
                # a word that was never seen in 1 text of 20, about the rate of real text
                new = format(rng.getrandbits(40), "x") if rng.random() < 0.05 else ""
                yield " ".join([next(drawn) + new, *parts])


def write_input(source: Path, target: Path, rows: int) -> None:
    """JSON lines files of at most FILE_ROWS rows."""
    texts = islice(varied(source), rows)
    target.mkdir()
    for number in range(-(-rows // FILE_ROWS)):
        with (target / f"part-{number:03d}.jsonl").open("w", encoding="utf-8") as stream:
            stream.writelines(json.dumps(text, ensure_ascii=False) + "\n" for text in islice(texts, FILE_ROWS))


class PeakMemory(threading.Thread):
    """Highest memory of a process tree (proportional set size, so that shared pages count once), in MiB."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.process, self.total, self.single = psutil.Process(pid), 0.0, 0.0
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.2):
            sizes = []
            try:
                for process in (self.process, *self.process.children(recursive=True)):
                    sizes.append(process.memory_full_info().pss / 2**20)
            except psutil.Error:
                continue
            self.total, self.single = max(self.total, sum(sizes)), max(self.single, *sizes)


def measure(command: list[str]) -> tuple[float, float, float, float]:
    """Seconds, seconds of processor time, peak MiB of all processes, peak MiB of the largest one."""
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        memory = PeakMemory(process.pid)
        memory.start()
        code = process.wait()
        memory.ended.set()
        memory.join()
    if code:
        raise SystemExit(f"{command[2:4]} ended with {code}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - start, cpu, memory.total, memory.single


def stage(name: str, folder: Path, workers: int, prefect: bool) -> None:
    """What a measured process runs."""
    from deepmoji.corpus import ingest
    from deepmoji.emojis import load_labels
    from deepmoji.tokens import tokenize_corpus

    def work(**how: Any) -> None:
        if name == "ingest":
            ingest(folder / "in", folder / "corpus", labels=load_labels("emojis64"), **how)
        else:
            tokenize_corpus(
                folder / "corpus", folder / "tokens", vocabulary_size=50_000, min_count=2, max_length=30, **how
            )

    if prefect:
        from prefect import flow

        from flows.shards import map_shards, task_runner

        flow(task_runner=task_runner("processes", workers), validate_parameters=False)(work)(map_shards=map_shards)
    else:
        work(workers=workers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[2])
    parser.add_argument("--prefect", action="store_true")
    parser.add_argument("--stage", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        stage(options.stage[0], Path(options.stage[1]), options.workers[0], options.prefect)
        return
    columns = ("rows", "workers", "stage", "seconds", "rows/s", "CPU s", "rows/CPU s", "peak MiB", "largest process")
    print(" ".join(f"{column:>12}" for column in columns))
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_input(options.source, folder / "in", rows)
            for workers in options.workers:
                every = []
                for step in ("ingest", "tokenize"):
                    command = [sys.executable, __file__, name, "--workers", str(workers), "--stage", step, name]
                    command += ["--prefect"] if options.prefect else []
                    found = measure(command)
                    every.append(found)
                    show(rows, workers, step, *found)
                seconds, cpu, total, single = zip(*every, strict=True)
                show(rows, workers, "both", sum(seconds), sum(cpu), max(total), max(single))


def show(rows: int, workers: int, step: str, seconds: float, cpu: float, total: float, single: float) -> None:
    cells = (f"{rows:,}", workers, step, f"{seconds:.1f}", f"{rows / seconds:,.0f}", f"{cpu:.1f}", f"{rows / cpu:,.0f}")
    print(" ".join(f"{cell:>12}" for cell in (*cells, f"{total:,.0f}", f"{single:,.0f}")), flush=True)


if __name__ == "__main__":
    main()
