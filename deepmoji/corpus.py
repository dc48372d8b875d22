"""Raw text to a labelled corpus: cut, clean, merge, split; every row is accounted for.

    files --cut--> raw shards --clean--> rows by hash partition --merge--> no copies --draw--> out/part-*.parquet

Each arrow is a map over shards that runs here, in processes, or on a cluster. A shard is bounded in rows, and so
is a partition, so memory does not grow with the corpus. The result depends on the input and the options alone.
"""

import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from deepmoji import splits
from deepmoji.emojis import LabelSet
from deepmoji.errors import InputError, UsageError
from deepmoji.filters import Options, clean_shard, label_table
from deepmoji.funnel import account, describe, most
from deepmoji.provenance import code_digest
from deepmoji.readers import list_files, read_file
from deepmoji.rows import Reject
from deepmoji.shards import (
    MapShards,
    Report,
    log_progress,
    open_work,
    read_batch,
    read_json,
    read_table,
    shard_map,
    stage_edge,
    whole_folder,
    write_batches,
    write_beside,
    write_json,
)

logger = logging.getLogger(__name__)

SHARD_ROWS = 100_000
PARTITION_ROWS = 250_000  # raw rows that a hash partition stands for, on average
REJECTS_NAME = "ingest-rejects.jsonl"

_RAW = pa.schema([("text", pa.string())])
_ROWS = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("labels", pa.list_(pa.int32())),
        ("source", pa.string()),
        ("key", pa.uint64()),
    ]
)
SCHEMA = pa.schema([*(_ROWS.field(name) for name in ("id", "text", "labels", "source")), ("split", pa.string())])


def ingest(
    source: Path,
    out: Path,
    *,
    labels: LabelSet,
    leave_out: Sequence[str] = (),
    rows: int | None = None,
    drop_retweets: bool = True,
    drop_urls: bool = True,
    drop_mentions_only: bool = True,
    english_share: float = 0.2,
    min_words: int = 1,
    max_characters: int = 1000,
    max_copies: int = 5,
    drop_near_duplicates: bool = True,
    eval_per_label: int = 10_000,
    max_reject_share: float = 0.01,
    workers: int = 1,
    seed: int = 1,
    report: Report | None = None,
    map_shards: MapShards | None = None,
    work: Path | None = None,
    shard_rows: int = SHARD_ROWS,
) -> dict[str, Any]:
    """Make the labelled corpus `out` from the texts at `source`; returns the funnel.

    Writes out/part-*.parquet (id: hash of the emoji-free text; text; labels: ascending ids; source: first folder, or
    file, below `source`; split), out/labels.json, out/rejects.jsonl and, last, out/funnel.json. Sources named in
    `leave_out` are not read. `rows` takes every k-th row, evenly over all files. `work` is where finished shards wait
    for a restart (default: beside `out`).
    InputError when there is nothing to read, nothing left, or more rejects than `max_reject_share`; the rejects then
    stand in `ingest-rejects.jsonl` beside `out`. UsageError: options out of range, or no such source to leave out.
    """
    options = Options(drop_retweets, drop_urls, drop_mentions_only, english_share, min_words, max_characters)
    label_table(labels)  # refuse an unusable label set before the work begins
    _check_numbers(rows=rows, eval_per_label=eval_per_label, workers=workers, shard_rows=shard_rows)
    started = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(stage_edge("ingest"))
        files = _without(list_files(source), source, leave_out)
        plan = {
            "files": [_fingerprint(path, source) for path in files],
            "labels": [list(labels.names), [list(forms) for forms in labels.forms]],
            "options": asdict(options),
            "merge": [rows, max_copies, drop_near_duplicates, eval_per_label, seed, shard_rows],
            "code": code_digest("corpus"),
        }
        folder = open_work(work, out, plan)
        map_over = stack.enter_context(shard_map(map_shards, workers))

        pieces = list(enumerate(_name(path, source) for path in files))
        cut = partial(_cut_file, source=source, folder=folder, shard_rows=shard_rows)
        counted = list(log_progress("files cut", map_over(cut, pieces), len(pieces)))
        _check_rejects(counted, folder, out, max_reject_share)
        total = sum(sum(part["rows"]) for part in counted)

        partitions = max(1, -(-total // PARTITION_ROWS))
        clean = partial(
            _clean, folder=folder, labels=labels, options=options, sample=(rows, total), partitions=partitions
        )
        shards = list(_shards(counted))
        cleaned = list(log_progress("shards cleaned", map_over(clean, shards), len(shards)))

        merge = partial(
            _merge, folder=folder, shards=len(shards), classes=len(labels.names), max_copies=max_copies,
            near=drop_near_duplicates,
        )  # fmt: skip
        merged = list(log_progress("partitions merged", map_over(merge, range(partitions)), partitions))

        counts = np.array([part["labels"] for part in merged], np.int64).sum(axis=0)
        needs = splits.held_out_per_label(counts, eval_per_label)
        find = partial(_find, folder=folder, counts=counts, needs=needs, seed=seed)
        held_out = splits.draw(map_over(find, range(partitions)), needs)
        with whole_folder(out) as target:
            finish = partial(_finish, folder=folder, target=target, classes=len(labels.names))
            written = list(map_over(finish, sorted(held_out.items())))
            funnel = account(counted, cleaned, merged, written, labels.names)
            if not funnel["rows_out"]:
                raise InputError(
                    f"{source} left no row for the corpus of {funnel['rows_in']} (dropped: {most(funnel['dropped'])}): "
                    "check the labels and the filters."
                )
            write_json(target / "labels.json", list(labels.names))
            shutil.copyfile(folder / "rejects.jsonl", target / "rejects.jsonl")
            write_json(target / "funnel.json", funnel)
        shutil.rmtree(folder)
        (out.parent / REJECTS_NAME).unlink(missing_ok=True)
    seconds = time.monotonic() - started
    logger.info("\n%s", describe(funnel))
    logger.info("ingested %d rows in %.1f s", funnel["rows_in"], seconds)
    if report is not None:
        report({"seconds": seconds, "rows_per_second": funnel["rows_in"] / seconds}, 0)
    return funnel


def _check_numbers(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise UsageError(f"{name} is {number}, it should be 1 or more.")


def _without(files: list[Path], source: Path, leave_out: Sequence[str]) -> list[Path]:
    """The files of the other sources; UsageError for a name that none has, or where nothing is left."""
    names = [_source(_name(path, source)) for path in files]
    unknown = sorted(set(leave_out) - set(names))
    if unknown or set(names) <= set(leave_out):
        raise UsageError(
            f"Leaving out {unknown[0] if unknown else 'all'} makes no sense: the sources below {source} are "
            f"{', '.join(sorted(set(names)))}, name some of them in leave_out."
        )
    return [path for path, name in zip(files, names, strict=True) if name not in leave_out]


def _source(name: str) -> str:
    """Where a file's texts come from: its first folder, or else its own name."""
    return name.partition("/")[0] if "/" in name else name.partition(".")[0] or name


def _name(path: Path, source: Path) -> str:
    return path.name if path == source else path.relative_to(source).as_posix()


def _fingerprint(path: Path, source: Path) -> list[str | int]:
    facts = path.stat()
    return [_name(path, source), facts.st_size, facts.st_mtime_ns]


def _raw_path(folder: Path, file: int, shard: int) -> Path:
    return folder / f"raw-{file:05d}-{shard:05d}.arrow"


def _cut_file(piece: tuple[int, str], *, source: Path, folder: Path, shard_rows: int) -> dict[str, Any]:
    """Step 1, per file: rows to raw shards of bounded size, and rejects; returns rows per shard."""
    file, name = piece
    marker = folder / f"cut-{file:05d}.json"
    if marker.is_file():
        return dict(read_json(marker))
    for leftover in folder.glob(f"raw-{file:05d}-*.arrow"):
        leftover.unlink()
    path = source if source.is_file() else source / name
    sizes: list[int] = []
    rejects: list[Reject] = []
    waiting: list[pa.Array] = []
    withdrawn: Reject | None = None

    def flush() -> None:
        batch = pa.record_batch([pa.concat_arrays(waiting)], schema=_RAW)
        write_batches(_raw_path(folder, file, len(sizes)), _RAW, [batch])
        sizes.append(len(batch))
        waiting.clear()

    for batch in read_file(path, name, batch_rows=min(shard_rows, 50_000)):
        rejects += [reject for reject in batch.rejects if not reject.withdraws]
        withdrawn = next((reject for reject in batch.rejects if reject.withdraws), withdrawn)
        if len(batch.texts):
            waiting.append(batch.texts)
        if sum(map(len, waiting)) + min(shard_rows, 50_000) > shard_rows:
            flush()
    if waiting:
        flush()
    records = [reject.as_record() for reject in rejects]
    if withdrawn is not None:
        records.append({**withdrawn.as_record(), "rows": max(1, sum(sizes))})
        sizes = []
    with write_beside(folder / f"rejects-{file:05d}.jsonl") as beside:
        beside.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
    facts = {
        "source": _source(name),
        "rows": sizes,
        "rejects": sum(record["rows"] for record in records),
        "reasons": dict(Counter(record["reason"] for record in records)),
    }
    write_json(marker, facts)
    return facts


def _check_rejects(counted: Sequence[dict[str, Any]], folder: Path, out: Path, max_share: float) -> None:
    """Gather the rejects files into one, and stop when they hold too many rows."""
    with write_beside(folder / "rejects.jsonl") as path, path.open("wb") as stream:
        for number in range(len(counted)):
            stream.write((folder / f"rejects-{number:05d}.jsonl").read_bytes())
    rejects = sum(part["rejects"] for part in counted)
    read = rejects + sum(sum(part["rows"]) for part in counted)
    if not read:
        raise InputError("The input is empty: there should be at least one row of text.")
    reasons = sum((Counter(part["reasons"]) for part in counted), Counter[str]())
    if rejects:
        logger.warning("%d of %d rows set aside: %s", rejects, read, most(reasons))
    if rejects / read > max_share:
        kept = out.parent / REJECTS_NAME
        out.parent.mkdir(parents=True, exist_ok=True)
        with write_beside(kept) as path:
            shutil.copyfile(folder / "rejects.jsonl", path)
        shutil.rmtree(folder)
        raise InputError(
            f"{rejects} of {read} rows could not be read, more than the allowed share of {max_share:g}, most often "
            f"because a row {reasons.most_common(1)[0][0]}: look at {kept}, mend the input or raise max_reject_share."
        )


def _shards(counted: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What step 2 needs to know of each raw shard; `first` counts rows over all files."""
    number = first = 0
    for file, part in enumerate(counted):
        for shard, size in enumerate(part["rows"]):
            yield {"number": number, "file": file, "shard": shard, "first": first, "source": part["source"]}
            number, first = number + 1, first + size


def _clean(
    shard: dict[str, Any],
    *,
    folder: Path,
    labels: LabelSet,
    options: Options,
    sample: tuple[int | None, int],
    partitions: int,
) -> dict[str, Any]:
    """Step 2, per raw shard: clean, label, filter; the rows go to one Arrow file with a batch per partition."""
    marker = folder / f"clean-{shard['number']:05d}.json"
    raw = _raw_path(folder, shard["file"], shard["shard"])
    if not marker.is_file():
        texts = read_batch(raw, 0).column(0)
        done = clean_shard(texts, labels, options, _sampled(shard["first"], len(texts), *sample))
        source = pa.repeat(pa.scalar(shard["source"], pa.string()), len(done.rows))
        columns = [done.ids, done.texts, done.labels.cast(pa.list_(pa.int32())), source, pa.array(done.keys)]
        table = pa.record_batch(columns, schema=_ROWS)
        place = splits.partition_of(done.keys, partitions)
        order = np.argsort(place, kind="stable")
        bounds = np.searchsorted(place[order], np.arange(partitions + 1))
        table = table.take(pa.array(order))
        batches = (table.slice(start, end - start) for start, end in pairwise(bounds))
        write_batches(folder / f"clean-{shard['number']:05d}.arrow", _ROWS, batches)
        write_json(marker, {"source": shard["source"], "rows": len(texts), "dropped": done.dropped})
    raw.unlink(missing_ok=True)
    return dict(read_json(marker))


def _sampled(first: int, count: int, rows: int | None, total: int) -> npt.NDArray[np.bool_] | None:
    """Every k-th row, where k need not be whole: exactly `rows` of `total`, as even as can be."""
    if rows is None or rows >= total:
        return None
    place = np.arange(first, first + count + 1, dtype=np.int64) * rows // total
    return np.diff(place) > 0


def _merge(partition: int, *, folder: Path, shards: int, classes: int, max_copies: int, near: bool) -> dict[str, Any]:
    """Step 3, per partition: gather it from every shard in input order, drop copies; returns rows per label."""
    marker = folder / f"merged-{partition:05d}.json"
    if not marker.is_file():
        parts = [read_batch(folder / f"clean-{shard:05d}.arrow", partition) for shard in range(shards)]
        table = pa.Table.from_batches(parts, _ROWS).combine_chunks()
        keys = table["key"].to_numpy()
        kept, dropped = splits.unique_rows(table["id"].combine_chunks(), keys, max_copies=max_copies, near=near)
        table = table.filter(pa.array(kept)).combine_chunks()
        counts = np.bincount(pc.list_flatten(table["labels"]).to_numpy(), minlength=classes)
        write_batches(folder / f"merged-{partition:05d}.arrow", _ROWS, table.to_batches())
        write_json(marker, {"dropped": dropped, "labels": counts.tolist()})
    return dict(read_json(marker))


def _find(partition: int, *, folder: Path, counts: splits.Ints, needs: splits.Ints, seed: int) -> splits.Candidates:
    """Step 4, per partition: the texts that may be held out; the draw itself is made in one place."""
    table = read_table(folder / f"merged-{partition:05d}.arrow").combine_chunks()
    order = splits.draw_order(table["id"], seed)
    return splits.find_candidates(partition, order, table["labels"].combine_chunks(), counts, needs)


def _finish(item: tuple[int, dict[str, splits.Ints]], *, folder: Path, target: Path, classes: int) -> dict[str, Any]:
    """Step 5, per partition: the part file with its split column; returns counts for the funnel."""
    partition, held_out = item
    table = read_table(folder / f"merged-{partition:05d}.arrow").combine_chunks()
    place = np.zeros(len(table), np.int64)
    for number, split in enumerate(splits.SPLITS[1:], 1):
        place[held_out[split]] = number
    names = pa.array(splits.SPLITS, pa.string()).take(pa.array(place))
    part = pa.Table.from_arrays([*(table[name] for name in SCHEMA.names[:-1]), names], schema=SCHEMA)
    pq.write_table(
        part, target / f"part-{partition:05d}.parquet", compression="zstd", use_dictionary=["source", "split"]
    )
    lengths = pc.list_value_length(table["labels"]).to_numpy()
    flat = pc.list_flatten(table["labels"]).to_numpy()
    pairs = np.bincount(np.repeat(place, lengths) * classes + flat, minlength=3 * classes)
    sources = pc.value_counts(table["source"]).to_pylist()
    return {
        "rows": np.bincount(place, minlength=3).tolist(),
        "labels": pairs.reshape(3, classes).tolist(),
        "sources": {entry["values"]: entry["counts"] for entry in sources},
    }
