"""Token stores: flat ids and offsets that training maps into memory, and how a corpus becomes one.

folder/ids.npy      (tokens,) uint16 or uint32, texts one after the other, nothing padded
       offsets.npy  (N + 1,) int64: text i is ids[offsets[i]:offsets[i + 1]]
       labels.npy   (P, 2) int64: [text, label], a text with three emojis stands here three times
       meta.json    written last: counts, digest of the vocabulary, unknown share, lengths
"""

import json
import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from deepmoji.encoding import encode_part, gather_counts, most_frequent, split_part
from deepmoji.errors import InputError, UsageError
from deepmoji.provenance import code_digest
from deepmoji.shards import (
    MapShards,
    Report,
    log_progress,
    open_work,
    read_json,
    shard_map,
    stage_edge,
    whole_folder,
    write_json,
)
from deepmoji.splits import SPLITS
from deepmoji.vocabulary import Vocabulary, build_vocabulary

logger = logging.getLogger(__name__)

FORMAT = "deepmoji tokens 1"
MAX_WORD_PARTITIONS = 64
Ids = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Examples:
    """N texts as token ids, and P examples that each show one text."""

    ids: Ids  # (tokens,), in RAM or memory-mapped
    offsets: Ints  # (N + 1,)
    rows: Ints  # (P,) which text an example shows
    targets: npt.NDArray[Any]  # (P,) int64 class ids; or (P, C) float32 for multilabel


def encode_examples(
    texts: Sequence[str], targets: npt.NDArray[Any], vocabulary: Vocabulary, max_length: int | None
) -> Examples:
    """One example per text, in order; a text without tokens stays, as a row of length 0.

    `targets` is (n,) class ids, or (n, C) zeros and ones for multilabel; at most `max_length` tokens are kept.
    """
    ids, offsets, _ = vocabulary.encode_flat(texts, max_length)
    wanted = np.asarray(targets, np.int64 if np.ndim(targets) == 1 else np.float32)
    return Examples(ids, offsets, np.arange(len(texts), dtype=np.int64), wanted)


def write_store(folder: Path, parts: Iterable[Examples], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write parts one after the other as one store; memory holds one part at a time. Returns what meta.json holds.

    `facts` are added to meta.json. All parts have ids of one type and class ids as targets.
    """
    tokens = texts = examples = 0
    dtype: str | None = None
    with whole_folder(folder) as beside, ExitStack() as stack:
        streams: list[IO[bytes]] = [
            stack.enter_context((beside / f"{name}.npy").open("wb+")) for name in ("ids", "offsets", "labels")
        ]
        for part in parts:
            if dtype is None:
                dtype = part.ids.dtype.name
                for stream, array in zip(streams, (part.ids, part.offsets, np.zeros((0, 2), np.int64)), strict=True):
                    _write_header(stream, array.dtype, (0, *array.shape[1:]))
                np.zeros(1, np.int64).tofile(streams[1])
            part.ids.tofile(streams[0])
            (part.offsets[1:] + tokens).tofile(streams[1])
            np.stack([part.rows + texts, part.targets], axis=1).astype(np.int64).tofile(streams[2])
            tokens, texts, examples = tokens + len(part.ids), texts + len(part.offsets) - 1, examples + len(part.rows)
        if dtype is None:
            raise InputError(f"There is nothing to write to {folder}: a token store needs at least one part.")
        for stream, kind, shape in zip(
            streams, (dtype, "int64", "int64"), ((tokens,), (texts + 1,), (examples, 2)), strict=True
        ):
            _write_header(stream, np.dtype(kind), shape)
        meta = {"format": FORMAT, "dtype": dtype, "rows": texts, "tokens": tokens, "examples": examples, **facts}
        stack.close()
        write_json(beside / "meta.json", meta)
    return meta


def _write_header(stream: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """The header of an .npy file. NumPy leaves room in it for the first number to grow, so it can be rewritten."""
    stream.seek(0)
    np.lib.format.write_array_header_1_0(
        stream, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    )


def load_store(folder: Path) -> Examples:
    """Map a store into memory. InputError when it is missing, half-written, or not one of ours."""
    meta = read_meta(folder)
    try:
        ids, offsets, labels = (
            np.load(
                folder / f"{name}.npy", mmap_mode="r" if count else None, allow_pickle=False
            )  # nothing cannot be mapped
            for name, count in (("ids", meta["tokens"]), ("offsets", 1), ("labels", meta["examples"]))
        )
        found = (ids.dtype.name, ids.shape, offsets.dtype.name, offsets.shape, labels.dtype.name, labels.shape)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"The token store {folder} cannot be read ({' '.join(str(error).split())}): run tokenize again."
        ) from None
    wanted = (meta["dtype"], (meta["tokens"],), "int64", (meta["rows"] + 1,), "int64", (meta["examples"], 2))
    if found != wanted or (offsets[0], offsets[-1]) != (0, meta["tokens"]):
        raise InputError(f"The token store {folder} does not hold what its meta.json says: run tokenize again.")
    return Examples(ids, offsets, labels[:, 0], labels[:, 1])


def read_meta(folder: Path) -> dict[str, Any]:
    """What meta.json of a store says: rows, tokens, examples, vocabulary, unknown_share, truncated, lengths..."""
    try:
        meta = read_json(folder / "meta.json")
    except FileNotFoundError:
        raise InputError(f"{folder} is no finished token store (it has no meta.json): run tokenize.") from None
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        raise InputError(f"{folder / 'meta.json'} cannot be read: run tokenize again.") from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise InputError(f"{folder} is no token store of this version (format {FORMAT!r}): run tokenize again.")
    return meta


def tokenize_corpus(
    corpus: Path,
    out: Path,
    *,
    vocabulary_size: int,
    min_count: int,
    max_length: int,
    workers: int = 1,
    report: Report | None = None,
    map_shards: MapShards | None = None,
    work: Path | None = None,
) -> dict[str, Any]:
    """Make the vocabulary and the token stores of a labelled corpus; returns the numbers of each split.

    Writes out/vocabulary.json (from the words of the training split alone), out/labels.json and the stores out/train,
    out/val, out/test. A text longer than `max_length` is cut, one without any token has no place in a store; both are
    counted. InputError when `corpus` is not one.
    """
    for name, number in {"min_count": min_count, "max_length": max_length, "workers": workers}.items():
        if number < 1:
            raise UsageError(f"{name} is {number}, it should be 1 or more.")
    started = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(stage_edge("tokenize"))
        parts = sorted(corpus.glob("part-*.parquet"))
        if not parts or not (corpus / "labels.json").is_file():
            raise InputError(f"{corpus} is no labelled corpus (part-*.parquet and labels.json): run ingest first.")
        labels = read_json(corpus / "labels.json")
        plan = {
            "parts": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in parts],
            "options": [vocabulary_size, min_count, max_length],
            "code": code_digest("tokens"),
        }
        folder = open_work(work, out, plan)
        map_over = stack.enter_context(shard_map(map_shards, workers))
        partitions = min(len(parts), MAX_WORD_PARTITIONS)
        pieces = list(enumerate(parts))
        split = partial(split_part, folder=folder, partitions=partitions)
        for _ in log_progress("parts tokenized", map_over(split, pieces), len(pieces)):
            pass
        gather = partial(gather_counts, folder=folder, parts=len(parts), keep=vocabulary_size, min_count=min_count)
        counts = most_frequent(pa.concat_tables(map_over(gather, range(partitions))), vocabulary_size)
        words = dict(zip(counts["word"].to_pylist(), counts["count"].to_pylist(), strict=True))
        vocabulary = build_vocabulary(words, vocabulary_size, min_count)
        vocabulary.save(folder / "vocabulary.json")
        encode = partial(encode_part, folder=folder, max_length=max_length, classes=len(labels))
        encoded = list(log_progress("parts encoded", map_over(encode, pieces), len(pieces)))
        with whole_folder(out) as target:
            shutil.copyfile(folder / "vocabulary.json", target / "vocabulary.json")
            write_json(target / "labels.json", labels)
            numbers: dict[str, Any] = {"vocabulary_size": len(vocabulary)}
            for name in SPLITS:
                facts = _facts([part[name] for part in encoded], vocabulary, max_length)
                meta = write_store(target / name, _read_parts(folder, name, len(parts)), facts)
                assert meta["rows"] + meta["empty_rows"] == meta["corpus_rows"], f"rows were lost on the way: {meta}"
                numbers[name] = meta
        shutil.rmtree(folder)
    seconds = time.monotonic() - started
    rows = sum(numbers[name]["rows"] for name in SPLITS)
    logger.info("tokenized %d rows in %.1f s, vocabulary of %d", rows, seconds, len(vocabulary))
    if report is not None:
        report({"seconds": seconds, "rows_per_second": rows / seconds}, 0)
    return numbers


def _read_parts(folder: Path, split: str, parts: int) -> Iterator[Examples]:
    for number in range(parts):
        with np.load(folder / f"ids-{number:05d}.npz", allow_pickle=False) as arrays:
            yield Examples(*(arrays[f"{split}-{name}"] for name in ("ids", "offsets", "rows", "targets")))


def _facts(parts: Sequence[Mapping[str, Any]], vocabulary: Vocabulary, max_length: int) -> dict[str, Any]:
    """What meta.json says of a split beside its sizes; `lengths[n]` is how many stored texts have n tokens."""
    lengths = np.sum([part["lengths"] for part in parts], axis=0)
    tokens = int(lengths @ np.arange(len(lengths)))
    facts: dict[str, Any] = {
        name: sum(part[name] for part in parts) for name in ("corpus_rows", "empty_rows", "truncated_rows", "unknown")
    }
    return facts | {
        "unknown_share": round(facts["unknown"] / tokens, 6) if tokens else 0.0,
        "max_length": max_length,
        "mean_length": round(tokens / int(lengths.sum()), 4) if tokens else 0.0,
        "lengths": lengths.tolist(),
        "labels": np.sum([part["labels"] for part in parts], axis=0).tolist(),
        "vocabulary": vocabulary.digest,
        "vocabulary_size": len(vocabulary),
    }
