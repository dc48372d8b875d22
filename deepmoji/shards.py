"""Shards: how a stage maps a function over pieces, keeps finished pieces, and puts its output in place whole.

A step's result is a file that appears under its final name only when complete. A killed stage that is started
again on the same input with the same options finds those files and goes on; anything else starts afresh.
"""

import json
import logging
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from deepmoji.errors import DeepMojiError, InputError

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
Report = Callable[[dict[str, float], int], None]


class MapShards(Protocol):
    """Applies a function to every item, anywhere, and gives the results in the order of the items."""

    def __call__(self, function: Callable[[Any], Result], items: Sequence[Any], /) -> Iterable[Result]: ...


@contextmanager
def shard_map(given: MapShards | None, workers: int) -> Iterator[MapShards]:
    """The mapping to use: the given one, else processes on this machine, else (one worker) this process."""
    if given is not None:
        yield given
        return
    if workers == 1:
        yield _map_here
        return
    context = multiprocessing.get_context("spawn")  # fork would copy locks held by other threads
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        yield lambda function, items: pool.map(partial(_run_and_release, function), items)
    except BrokenProcessPool:
        raise DeepMojiError(
            "A worker process was ended from outside (often for want of memory): start again with fewer workers; "
            "finished shards are kept."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _map_here(function: Callable[[Any], Result], items: Sequence[Any], /) -> Iterable[Result]:
    return map(function, items)


def _run_and_release(function: Callable[[Any], Result], item: Any) -> Result:
    """Arrow keeps what it freed; given back after each shard, so that a worker does not grow with their number."""
    result = function(item)
    pa.default_memory_pool().release_unused()
    return result


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait forever, or still write when the next run has begun."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def stage_edge(stage: str) -> Iterator[None]:
    """Turn what the operating system refuses (full disk, read-only folder) into one sentence."""
    try:
        yield
    except OSError as error:
        place = f" at {error.filename}" if error.filename else ""
        reason = error.strerror or " ".join(str(error).split())
        raise InputError(
            f"{stage} stopped{place}: {reason}; free the disk or mend the permissions and start again, "
            "finished shards are kept."
        ) from error


@contextmanager
def write_beside(target: Path) -> Iterator[Path]:
    """A path to write to, which becomes `target` when the block ends well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield beside
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def write_json(target: Path, content: Any) -> None:
    with write_beside(target) as path:
        path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, which replaces `target` when the block ends well; `target` is never seen half-full."""
    beside = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        if target.exists():
            shutil.rmtree(target)
        beside.replace(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def open_work(work: Path | None, out: Path, plan: Mapping[str, Any]) -> Path:
    """The folder of unfinished work for `out`: kept if it was begun with exactly this plan, else emptied."""
    folder = (out.parent if work is None else work) / f".{out.name}-work"
    wanted = json.loads(json.dumps(plan))
    marker = folder / "plan.json"
    if not (marker.is_file() and read_json(marker) == wanted):
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        write_json(marker, wanted)
    return folder


def log_progress(what: str, results: Iterable[Any], total: int) -> Iterator[Any]:
    """Pass results on and log how far it is, ten times at most."""
    for done, result in enumerate(results, 1):
        if done == total or done % max(1, total // 10) == 0:
            logger.info("%s: %d of %d", what, done, total)
        yield result


def write_batches(target: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write an Arrow file, whole or not at all; batch k is read back alone by `read_batch`."""
    with write_beside(target) as path, pa.OSFile(str(path), "wb") as sink:
        _write_ipc(sink, schema, batches)


def _write_ipc(sink: IO[bytes], schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    with pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        for batch in batches:
            writer.write_batch(batch)


def open_shard(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A Parquet file as a table, with all columns unless some are named. InputError when it cannot be read."""
    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} cannot be read as Parquet ({reason:.120}): write it again.") from None


def read_batch(path: Path, number: int) -> pa.RecordBatch:
    with pa.OSFile(str(path), "rb") as source:
        return pa.ipc.open_file(source).get_batch(number)


def read_table(path: Path) -> pa.Table:
    with pa.OSFile(str(path), "rb") as source:
        return pa.ipc.open_file(source).read_all()
