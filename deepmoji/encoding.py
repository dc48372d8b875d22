"""The steps of tokenizing one part of a corpus, or one partition of its words; `tokens` puts them in order."""

import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from deepmoji.shards import open_shard, read_batch, read_json, read_table, write_batches, write_beside, write_json
from deepmoji.splits import SPLITS
from deepmoji.text import tokenize_column
from deepmoji.vocabulary import MAX_WORD_LENGTH, UNKNOWN, Vocabulary

_WORDS = pa.schema([("word", pa.string()), ("count", pa.int64())])


def split_part(piece: tuple[int, Path], *, folder: Path, partitions: int) -> None:
    """Step 1, per part: its distinct words, with their counts in the training split, and where they stand."""
    number, path = piece
    marker = folder / f"places-{number:05d}.npz"
    if marker.is_file():
        return
    table = open_shard(path, ["text", "split"])
    tokens, offsets = tokenize_column(table["text"].combine_chunks())
    tokens = tokens if pa.types.is_dictionary(tokens.type) else tokens.dictionary_encode()
    words = tokens.dictionary.cast(pa.string())
    index = tokens.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    training = np.repeat(pc.equal(table["split"], "train").to_numpy(), np.diff(offsets))
    counts = np.bincount(index[training], minlength=len(words))
    # crc32, since Python's own hash differs from process to process
    place = np.array([zlib.crc32(word.encode()) % partitions for word in words.to_pylist()], np.int64)
    order = np.argsort(place, kind="stable")
    bounds = np.searchsorted(place[order], np.arange(partitions + 1))
    batch = pa.record_batch([words.take(pa.array(order)), pa.array(counts[order], pa.int64())], schema=_WORDS)
    batches = (batch.slice(start, end - start) for start, end in pairwise(bounds))
    write_batches(folder / f"words-{number:05d}.arrow", _WORDS, batches)
    moved = np.empty(len(order), np.int32)
    moved[order] = np.arange(len(order), dtype=np.int32)
    with write_beside(marker) as beside, beside.open("wb") as stream:
        np.savez(stream, index=moved[index], offsets=np.asarray(offsets, np.int64))


def gather_counts(partition: int, *, folder: Path, parts: int, keep: int, min_count: int) -> pa.Table:
    """Step 2, per partition of words: counts over all parts, without the rare ones."""
    batches = [read_batch(folder / f"words-{number:05d}.arrow", partition) for number in range(parts)]
    table = pa.Table.from_batches(batches, _WORDS).group_by("word").aggregate([("count", "sum")])
    table = table.select(["word", "count_sum"]).rename_columns(["word", "count"])
    short = pc.less_equal(pc.utf8_length(table["word"]), MAX_WORD_LENGTH)
    return most_frequent(table.filter(pc.and_(short, pc.greater_equal(table["count"], min_count))), keep)


def most_frequent(table: pa.Table, count: int) -> pa.Table:
    return table.sort_by([("count", "descending"), ("word", "ascending")]).slice(0, count)


def encode_part(piece: tuple[int, Path], *, folder: Path, max_length: int, classes: int) -> dict[str, Any]:
    """Step 3, per part: ids and examples of each split; returns what is to be counted of them."""
    number, path = piece
    marker = folder / f"ids-{number:05d}.json"
    if marker.is_file():
        return dict(read_json(marker))
    vocabulary = Vocabulary.load(folder / "vocabulary.json")
    words = read_table(folder / f"words-{number:05d}.arrow")["word"].to_pylist()
    ids_of = vocabulary.ids(words)
    with np.load(folder / f"places-{number:05d}.npz", allow_pickle=False) as places:
        ids, offsets = ids_of[places["index"]], places["offsets"]
    table = open_shard(path, ["labels", "split"]).combine_chunks()
    facts: dict[str, Any] = {}
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name in SPLITS:
        wanted = pc.equal(table["split"], name).to_numpy()
        full = np.diff(offsets)
        stored = wanted & (full > 0)
        lengths = np.minimum(full, max_length)[stored]
        position = np.arange(len(ids)) - np.repeat(offsets[:-1], full)
        part_ids = ids[np.repeat(stored, full) & (position < max_length)]
        labels = table["labels"].filter(pa.array(stored)).combine_chunks()
        label_counts = pc.list_value_length(labels).to_numpy(zero_copy_only=False).astype(np.int64)
        targets = pc.list_flatten(labels).to_numpy(zero_copy_only=False).astype(np.int64)
        arrays |= {
            f"{name}-ids": part_ids,
            f"{name}-offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            f"{name}-rows": np.repeat(np.arange(len(lengths), dtype=np.int64), label_counts),
            f"{name}-targets": targets,
        }
        facts[name] = {
            "corpus_rows": int(wanted.sum()),
            "empty_rows": int((wanted & (full == 0)).sum()),
            "truncated_rows": int((full[stored] > max_length).sum()),
            "unknown": int((part_ids == UNKNOWN).sum()),
            "lengths": np.bincount(lengths, minlength=max_length + 1).tolist(),
            "labels": np.bincount(targets, minlength=classes).tolist(),
        }
    with write_beside(folder / f"ids-{number:05d}.npz") as beside, beside.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)
    write_json(marker, facts)
    return facts
