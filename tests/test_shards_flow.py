"""Shards as Prefect tasks: the bytes of a plain run, by processes and on a Dask cluster of two workers."""

import hashlib
from pathlib import Path
from typing import Any, cast

import distributed
import pytest
from prefect import flow
from prefect.task_runners import TaskRunner

from deepmoji.corpus import ingest
from deepmoji.emojis import LabelSet
from deepmoji.errors import UsageError
from deepmoji.shards import MapShards
from deepmoji.tokens import tokenize_corpus
from flows import shards

LABELS = LabelSet(("😂", "😍", "😭"))
WORDS = ("you", "are", "the", "one", "that", "love", "and", "this", "is", "my", "day", "with", "good", "friends", "at")

# Raised on the way down by event loops and sockets of Dask and Prefect that the garbage collector closes; nothing of
# ours, and the test asserts what is written.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def tweets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 rows in two files, some of them copies, without an emoji, or not to be read."""
    folder = tmp_path_factory.mktemp("tweets")
    for name in ("a", "b"):
        lines = []
        for n in range(1000):
            text = " ".join(WORDS[(n * k + len(name)) % len(WORDS)] for k in range(2, 8)) + f" {n % 700}"
            lines.append(text + ("" if n % 11 == 0 else " " + LABELS.names[n % 3]) + ("\0" if n % 333 == 7 else ""))
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


def road(tweets: Path, out: Path, map_shards: MapShards | None) -> None:
    ingest(tweets, out / "corpus", labels=LABELS, shard_rows=150, eval_per_label=20, map_shards=map_shards)
    tokenize_corpus(
        out / "corpus", out / "tokens", vocabulary_size=100, min_count=1, max_length=6, map_shards=map_shards
    )


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def plain(tweets: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("plain")
    road(tweets, out, None)
    return digests(out)


def by_tasks(tweets: Path, out: Path, runner: TaskRunner[Any]) -> int:
    """Run the road over shards inside a flow; returns how many shards were tasks."""
    mapped: list[int] = []

    def counting(function, items, /):  # type: ignore[no-untyped-def]
        mapped.append(len(items))
        return shards.map_shards(function, items)

    @flow(task_runner=cast(Any, runner))
    def shard_flow() -> None:
        road(tweets, out, counting)

    shard_flow()
    return sum(mapped)


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("where", ["processes", "dask"])
def test_bytes_do_not_depend_on_where_shards_run(
    where: str, tweets: Path, plain: dict[str, str], tmp_path: Path
) -> None:
    if where == "processes":
        done = by_tasks(tweets, tmp_path, shards.task_runner("processes", 2))
    else:
        with distributed.LocalCluster(  # type: ignore[no-untyped-call]
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster:
            done = by_tasks(tweets, tmp_path, shards.task_runner(cluster.scheduler_address, 2))
    assert done >= 20
    assert digests(tmp_path) == plain
    assert {"corpus/funnel.json", "tokens/vocabulary.json", "tokens/train/ids.npy"} <= set(plain)


@pytest.mark.usefixtures("server")
def test_an_error_of_a_shard_comes_back_as_it_is() -> None:
    @flow(task_runner=shards.task_runner("processes", 1))
    def fails() -> None:
        list(shards.map_shards(int, ["1", "no number"]))

    with pytest.raises(ValueError, match="no number"):
        fails()


@pytest.mark.parametrize("runner", ["threads", "tcp://127.0.0.1:9"])
def test_a_runner_that_is_not_there_is_one_sentence(runner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "CONNECT_SECONDS", 1)
    with pytest.raises(UsageError, match=r"choose processes, dask|No Dask scheduler answers") as caught:
        shards.task_runner(runner, 2)
    assert "\n" not in str(caught.value)
