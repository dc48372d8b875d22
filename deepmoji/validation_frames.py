"""What the validation rules look at: tables of one row a text, a label or a measurement, from shards and sets.

Nothing here judges; `validation.py` does. Corpora are read one shard at a time, and copies and leaks are counted in
passes over the ids, each pass holding the ids of one range in memory.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from deepmoji.dataset_formats import SPLITS
from deepmoji.emojis import split_emojis
from deepmoji.errors import InputError
from deepmoji.shards import open_shard
from deepmoji.validation_rules import LEAST_SOURCE_ROWS

IDS_PER_PASS = 20_000_000  # about 1 GB of ids and splits
EXAMPLES = 5
REJECT_COLUMNS = ["file", "place", "reason", "text", "rows"]
SHOWN = 300  # characters of a text in the report

_MAYBE_EMOJI = re.compile("[^\\x00-\\x7f]|[0-9#*]\ufe0f?\u20e3")
_REPLACEMENT = "\ufffd"


def read_facts(path: Path) -> Any:
    """A JSON file that a stage wrote. InputError when it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path} is missing, so the stage that writes it did not finish: run it first (`dvc repro` does)."
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): run the stage that writes it again.") from None


def reject_frames(path: Path, chunk: int = 250_000) -> Iterator[pd.DataFrame]:
    """Records of rows that ingest set aside, `chunk` a frame. InputError when the file is missing or broken."""
    try:
        with path.open(encoding="utf-8") as lines:
            for number, part in enumerate(iter(lambda: list(islice(lines, chunk)), [])):
                frame = pd.DataFrame([json.loads(line) for line in part], columns=REJECT_COLUMNS, dtype=object)
                frame["rows"] = pd.to_numeric(frame["rows"]).fillna(0)  # no number is no row
                frame.insert(0, "row", number * chunk + np.arange(len(frame)))
                yield frame
    except FileNotFoundError:
        raise InputError(f"{path} is missing, so ingest did not finish: run it again.") from None
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error}): run ingest again.") from None


def source_frame(sources: Sequence[Mapping[str, Any]], set_aside: Mapping[str, int]) -> pd.DataFrame:
    """One row a source of the funnel that gave rows: how many were set aside of it, read, and kept.

    A source whose every file was set aside as a whole gave none; the limit on rejects is what judges it.
    """
    frame = pd.DataFrame(
        {
            "source": [entry["source"] for entry in sources],
            "set_aside": [set_aside.get(entry["source"], 0) for entry in sources],
            "rows_in": [entry["rows_in"] for entry in sources],
            "rows_out": [entry["rows_out"] for entry in sources],
        }
    )
    rows = frame["set_aside"] + frame["rows_in"]
    frame["judged_share"] = (frame["set_aside"] / rows.clip(lower=1)).where(rows >= LEAST_SOURCE_ROWS, 0.0)
    frame["gained"] = frame["rows_out"] - frame["rows_in"]
    return frame


def source_of(file: str) -> str:
    """The source that ingest counts a file under: the first folder, or the file's own name."""
    return file.partition("/")[0] if "/" in file else file.partition(".")[0] or file


def schema_frame(schema: pa.Schema) -> pd.DataFrame:
    """No row, and a column for each column of the schema, named "name: type"."""
    return pd.DataFrame(columns=column_names(schema))


def column_names(schema: pa.Schema) -> list[str]:
    """Columns as "name: type"; a list's type says what it holds, not how Parquet names its items."""
    kinds = [f"list of {kind.value_type}" if pa.types.is_list(kind) else str(kind) for kind in schema.types]
    return [f"{name}: {kind}" for name, kind in zip(schema.names, kinds, strict=True)]


def text_frame(table: pa.Table, classes: int) -> pd.DataFrame:
    """One row a text with what the rules of texts and labels need; shards and sets have text, labels and split."""
    texts, readable = _texts(table["text"].combine_chunks())
    labels = table["labels"].combine_chunks()
    counts = np.array([0 if row is None else len(set(row)) for row in labels.to_pylist()])
    foreign = [sum(not 0 <= label < classes for label in row if label is not None) for row in _lists(labels)]
    frame = pd.DataFrame(
        {
            "text": pd.Series(texts, dtype=object),
            "readable": readable,
            "blank": [text is None or not text.strip() for text in texts],
            "nul": [text is not None and "\0" in text for text in texts],
            "replaced_share": [(text or "").count(_REPLACEMENT) / max(1, len(text or "")) for text in texts],
            "labels": [", ".join(map(str, row)) for row in _lists(labels)],
            "label_count": counts,
            "repeated_labels": pc.fill_null(pc.list_value_length(labels), 0).to_numpy(zero_copy_only=False) - counts,
            "foreign_labels": foreign,
            "split": pd.Series(table["split"].to_pylist(), dtype=object),
        }
    )
    frame.insert(0, "row", np.arange(len(frame)))
    return frame


def corpus_frame(table: pa.Table, classes: int) -> pd.DataFrame:
    """`text_frame` with what only a corpus has: ids, sources, and texts without emojis."""
    frame = text_frame(table, classes)
    frame["id"] = pd.Series(table["id"].to_pylist(), dtype=object)
    frame["source"] = pd.Series(table["source"].to_pylist(), dtype=object)
    texts: list[str | None] = frame["text"].tolist()
    hashes = [
        None if text is None else blake2b(text.encode("utf-8", "replace"), digest_size=16).hexdigest() for text in texts
    ]
    frame["id_fits"] = [id_ == hash_ for id_, hash_ in zip(frame["id"], hashes, strict=True)]
    frame["emojis"] = ["".join(split_emojis(text)[1]) if text and _MAYBE_EMOJI.search(text) else "" for text in texts]
    return frame


def label_counts(table: pa.Table, classes: int) -> npt.NDArray[np.int64]:
    """(3, C): how many texts of each split hold each label; labels outside the classes are left out."""
    counts = np.zeros((len(SPLITS), classes), np.int64)
    for number, split in enumerate(SPLITS):
        held = table.filter(pc.equal(table["split"], split))["labels"].combine_chunks()
        flat = pc.list_flatten(held).drop_null().to_numpy(zero_copy_only=False)
        counts[number] += np.bincount(flat[(flat >= 0) & (flat < classes)].astype(np.int64), minlength=classes)
    return counts


def copies_and_leaks(shards: Sequence[Path], rows: int) -> tuple[int, int, list[dict[str, Any]], list[dict[str, Any]]]:
    """Over all shards: rows whose id came before, and rows of val and test whose id stands in an earlier split.

    Returns both counts, then up to five ids of each with the rows that hold them.
    """
    copies = leaks = 0
    copied: list[str] = []
    leaked: list[str] = []
    passes = max(1, -(-rows // IDS_PER_PASS))
    for number in range(passes):
        ids, split = _ids_of_pass(shards, number, passes)
        first = ~ids.duplicated()
        copies += int((~first).sum())
        copied += ids[~first].unique()[: EXAMPLES - len(copied)].tolist()
        earlier = split.groupby(ids).transform("min") < split if len(ids) else split.astype(bool)
        leaks += int(earlier.sum())
        leaked += ids[earlier].unique()[: EXAMPLES - len(leaked)].tolist()
    return copies, leaks, _rows_with(shards, copied), _rows_with(shards, leaked)


def _ids_of_pass(shards: Sequence[Path], number: int, passes: int) -> tuple["pd.Series[Any]", "pd.Series[Any]"]:
    """The ids (as strings) that belong to a pass, and the place of their split, over all shards."""
    ids: list[pd.Series[Any]] = []
    splits: list[pd.Series[Any]] = []
    for path in shards:
        table = open_shard(path, ["id", "split"])
        names = pd.Series(table["id"].to_pylist(), dtype=object)
        place = pd.Series(
            pc.index_in(table["split"], pa.array(SPLITS)).fill_null(len(SPLITS)).to_pylist(), dtype="int8"
        )
        mine = names.notna()
        if passes > 1:
            mine &= pd.util.hash_array(names.fillna("").to_numpy(dtype=object), categorize=False) % passes == number
        ids.append(names[mine])
        splits.append(place[mine])
    return pd.concat(ids, ignore_index=True), pd.concat(splits, ignore_index=True)


def _rows_with(shards: Sequence[Path], ids: Sequence[str]) -> list[dict[str, Any]]:
    """Where given ids stand, a row of the report for each place."""
    found: list[dict[str, Any]] = []
    for path in shards if ids else ():
        table = open_shard(path, ["id", "text", "split"])
        hits = np.flatnonzero(pc.is_in(table["id"], pa.array(ids, pa.string())).to_numpy(zero_copy_only=False))
        for row, record in zip(hits.tolist(), table.take(pa.array(hits)).to_pylist(), strict=True):
            found.append({"place": path.name, "row": row, **record})
    return sorted(found, key=lambda record: (record["id"], record["place"], record["row"]))[: 2 * EXAMPLES]


def shared_rows(texts: Sequence[str | None], splits: Sequence[str | None]) -> tuple[list[int], list[int]]:
    """Rows of a set that repeat a text of their own split, and rows of val and test whose text an earlier split has."""
    seen: dict[str, set[str]] = {split: set() for split in SPLITS}
    repeated: list[int] = []
    leaked: list[int] = []
    for split in SPLITS:
        before = [seen[earlier] for earlier in SPLITS[: SPLITS.index(split)]]
        for row, (text, its) in enumerate(zip(texts, splits, strict=True)):
            if its == split and text is not None:
                if text in seen[split]:
                    repeated.append(row)
                if any(text in texts for texts in before):
                    leaked.append(row)
                seen[split].add(text)
    return repeated, leaked


def token_frames(store: Mapping[str, npt.NDArray[Any]], chunk: int = 250_000) -> Iterator[pd.DataFrame]:
    """Texts of a token store, `chunk` rows a frame: length, highest id, and unknown tokens of each."""
    offsets, ids = store["offsets"], store["ids"]
    for start in range(0, len(offsets) - 1, chunk):
        bounds = np.asarray(offsets[start : start + chunk + 1])
        lengths = np.diff(bounds)
        held = np.asarray(ids[bounds[0] : max(bounds[0], bounds[-1])])
        text = np.repeat(np.arange(len(lengths)), np.maximum(lengths, 0))[: len(held)]
        highest = np.zeros(len(lengths), np.int64)
        np.maximum.at(highest, text, held[: len(text)].astype(np.int64))
        unknown = np.bincount(text, held[: len(text)] == 1, minlength=len(lengths)).astype(np.int64)
        yield pd.DataFrame(
            {"row": start + np.arange(len(lengths)), "length": lengths, "highest_id": highest, "unknown": unknown}
        )


def _texts(column: pa.Array) -> tuple[list[str | None], list[bool]]:
    """Texts, and whether each is valid UTF-8; invalid bytes (a lone surrogate, say) are shown as U+FFFD."""
    try:
        column.validate(full=True)
        return column.to_pylist(), [True] * len(column)
    except pa.ArrowInvalid:
        raw = column.view(pa.binary() if column.type == pa.string() else pa.large_binary()).to_pylist()
        texts = [None if value is None else value.decode("utf-8", "replace") for value in raw]
        good = [value is None or (text or "").encode() == value for value, text in zip(raw, texts, strict=True)]
        return texts, good


def _lists(labels: pa.Array) -> list[list[int | None]]:
    return [row or [] for row in labels.to_pylist()]
