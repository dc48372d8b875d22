"""A user's own table of labelled texts, and the split of rows that come without one."""

import csv
import io
import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deepmoji.dataset_formats import SPLITS, Table
from deepmoji.errors import InputError, UsageError
from deepmoji.rows import columns_called

log = logging.getLogger(__name__)

SEPARATOR = "|"
LEAST_ROWS = 3  # of each class: one a split
KINDS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}


@dataclass(frozen=True)
class OwnTable:
    """The usable rows of a table, whether its labels are lists, and the rows set aside by reason."""

    table: Table
    multilabel: bool
    set_aside: dict[str, int]


def read_table(path: Path, text_column: str, label_column: str, split: str, seed: int) -> OwnTable:
    """Read a CSV, TSV, JSON-lines or Parquet table (text ones also as .gz or .zst) of labelled texts.

    A label is a class name. If any cell holds a list, or names between bars such as "joy|love", the table is
    multilabel and an empty cell means no label. Rows whose text, or whose only label, is missing, and rows with half of
    a surrogate pair are set aside and counted. `split` is the name of a column (train, val or validation or dev, test)
    or three shares such as "70/10/20"; a column of that name comes first. Case does not matter in the
    names of columns. InputError and UsageError say what does not fit.
    """
    rows, set_aside = _rows(path)
    names = list(rows[0])
    text_column, label_column = (_column(path, names, text_column, "text"), _column(path, names, label_column, "label"))
    by_column = bool(columns_called(names, split))
    if by_column:
        split = _column(path, names, split, "split")
    shares = None if by_column else parse_shares(split)
    multilabel = any(_is_list(row[label_column]) for row in rows)
    texts: list[str] = []
    named: list[list[str]] = []
    splits: list[str] = []
    for row in rows:
        text, labels = row[text_column], _names(row[label_column])
        if not isinstance(text, str) or not text.strip():
            set_aside["empty text"] += 1
        elif not labels and not multilabel:
            set_aside["empty label"] += 1
        elif not all(_encodes(part) for part in (text, *labels)):
            set_aside["half of a surrogate pair"] += 1
        else:
            texts.append(text)
            named.append(labels)
            splits.append(_split_of(row[split], path, split) if by_column else "")
    if multilabel:
        several, empty = sum(len(labels) > 1 for labels in named), sum(not labels for labels in named)
        log.info(
            "%s: read as several labels a row: %d of %d rows have more than one, %d have none",
            path, several, len(named), empty,
        )  # fmt: skip
    if set_aside:
        reasons = ", ".join(f"{count} with {reason}" for reason, count in sorted(set_aside.items()))
        log.warning("%s: rows set aside: %s", path, reasons)
    if not texts:
        raise InputError(f"{path} has no row with both a text and a label: fill {text_column} and {label_column}.")
    classes = _classes(named, path, label_column)
    ids = {name: number for number, name in enumerate(classes)}
    numbers = [sorted(ids[name] for name in row) for row in named]
    if shares is not None:
        splits = stratified_split(texts, numbers, shares, seed, classes)
    where = f"the column {split!r}" if by_column else f"the split {split}"
    for part in SPLITS:
        if part not in splits:
            raise InputError(f"{path} has no row for {part} in {where}: each of {SPLITS} needs rows.")
    _check_classes(numbers, splits, classes, path, where, multilabel)
    return OwnTable(Table(texts, numbers, splits, classes), multilabel, dict(set_aside))


def _column(path: Path, names: Sequence[str], column: str, option: str) -> str:
    found = columns_called(names, column)
    if len(found) != 1:
        has = f"{len(found)} columns" if found else "no column"
        raise InputError(f"{path} has {has} {column!r} for the {option}: its columns are {', '.join(names)}.")
    return found[0]


def parse_shares(split: str) -> tuple[float, float, float]:
    """ "70/10/20" as three shares of 1."""
    parts = split.split("/")
    if len(parts) != 3 or not all(
        re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3})?", part) and float(part) > 0 for part in parts
    ):
        raise UsageError(f"The split {split!r} is neither a column of the table nor three shares such as 70/10/20.")
    train, val, test = (float(part) for part in parts)
    if abs(train + val + test - 100) > 1e-6:
        raise UsageError(f"The split {split!r} adds up to {train + val + test:g}, not to 100.")
    return train / 100, val / 100, test / 100


def stratified_split(
    texts: Sequence[str],
    labels: Sequence[Sequence[int]],
    shares: Sequence[float],
    seed: int,
    classes: Sequence[str],
) -> list[str]:
    """A split of each row, near the shares in every class; texts equal but for case and white space stay together.

    Classes are dealt out rarest first, each text where its class still lacks most (after Sechidis et al. 2011). Every
    class gets a training row, which others may have to give: a text of several classes lies where the rarest puts it.
    InputError for a class with fewer than three different texts, since each split needs one.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for row, text in enumerate(texts):
        groups[" ".join(text.casefold().split())].append(row)
    members = list(groups.values())
    group_labels = [sorted({label for row in rows for label in labels[row]}) for rows in members]
    counts = Counter(label for ids in group_labels for label in ids)
    for number, name in enumerate(classes):
        if counts[number] < LEAST_ROWS:
            raise InputError(
                f"The class {name!r} has {counts[number]} different texts: {LEAST_ROWS} are needed, one for each "
                "split, so add rows or drop the class."
            )
    lacking = {label: _quotas(counts[label], shares) for label in counts}
    unlabelled = sum(not ids for ids in group_labels)
    rest = [unlabelled * share for share in shares]
    order = np.random.default_rng(seed).permutation(len(members))
    chosen = [-1] * len(members)
    for label in sorted(counts, key=lambda label: (counts[label], label)):
        for group in order:
            if chosen[group] < 0 and label in group_labels[group]:
                part = int(np.argmax(lacking[label]))
                chosen[group] = part
                for other in group_labels[group]:
                    lacking[other][part] -= 1
    dealt = Counter((label, chosen[group]) for group in order for label in group_labels[group])
    for label in sorted(counts):
        if not dealt[label, 0]:
            # The text that val or test can best do without.
            spare = max(
                (group for group in order if label in group_labels[group]),
                key=lambda group: min(dealt[other, chosen[group]] for other in group_labels[group]),
            )
            dealt.subtract((other, chosen[spare]) for other in group_labels[spare])
            chosen[spare] = 0
            dealt.update((other, 0) for other in group_labels[spare])
    for group in order:
        if chosen[group] < 0:
            chosen[group] = int(np.argmax(rest))
            rest[chosen[group]] -= 1
    splits = [""] * len(texts)
    for group, rows in enumerate(members):
        for row in rows:
            splits[row] = SPLITS[chosen[group]]
    return splits


def _quotas(count: int, shares: Sequence[float]) -> list[int]:
    val, test = (max(1, round(count * share)) for share in shares[1:])
    while val + test >= count:
        val, test = (val - 1, test) if val >= test else (val, test - 1)
    return [count - val - test, val, test]


def _classes(named: list[list[str]], path: Path, column: str) -> tuple[str, ...]:
    counts = Counter(name for row in named for name in set(row))
    classes = tuple(sorted(counts, key=lambda name: (0, float(name), name) if _number(name) else (1, 0.0, name)))
    if len(classes) < 2:
        found = f"only {classes[0]!r}" if classes else "no label"
        raise InputError(f"{path} has {found} in the column {column!r}: at least two classes are needed.")
    if len(classes) > len(named):
        raise InputError(f"{path} has {len(named)} rows for {len(classes)} classes: is {column!r} the label column?")
    rare = [name for name in classes if counts[name] < LEAST_ROWS]
    if rare:
        raise InputError(
            f"{path} has {len(rare)} of {len(classes)} classes with fewer than {LEAST_ROWS} rows, such as "
            f"{rare[0]!r:.40}: add rows, drop these classes, or name another column than {column!r}."
        )
    return classes


def _check_classes(
    numbers: list[list[int]], splits: list[str], classes: tuple[str, ...], path: Path, where: str, multilabel: bool
) -> None:
    """InputError if a split leaves a class untrained, or validation without a choice between classes."""
    found: dict[str, set[int]] = {part: set() for part in SPLITS}
    for row, part in zip(numbers, splits, strict=True):
        found[part].update(row)
    lacking = {part: [name for k, name in enumerate(classes) if k not in found[part]] for part in SPLITS}
    if lacking["train"]:
        raise InputError(
            f"{path} has no train row in {where} for {len(lacking['train'])} of {len(classes)} classes, "
            f"such as {lacking['train'][0]!r:.40}: give each class train rows, or drop it."
        )
    if not multilabel and len(found["val"]) < 2:
        raise InputError(f"{path} has val rows of one class only in {where}: val needs rows of at least two classes.")
    for part in ("val", "test"):
        if lacking[part]:
            log.warning("%s: %s has no row of the classes %s", path, part, ", ".join(lacking[part]))


def _encodes(text: str) -> bool:
    """Whether UTF-8 has a form for it: JSON can spell half of a surrogate pair, which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _number(name: str) -> bool:
    return re.fullmatch(r"-?[0-9]{1,15}(\.[0-9]{1,15})?", name) is not None


def _split_of(value: object, path: Path, column: str) -> str:
    name = str(value).strip().lower()
    if name not in SPLIT_NAMES:
        raise InputError(
            f"{path} has {value!r:.40} in the column {column!r}: train, val (or validation, dev) or test was expected."
        )
    return SPLIT_NAMES[name]


def _is_list(value: object) -> bool:
    return isinstance(value, list) or (isinstance(value, str) and SEPARATOR in value)


def _names(value: object) -> list[str]:
    """Label names of a cell, without repeats; nothing for an empty cell."""
    if value is None or (isinstance(value, float) and value != value):
        return []
    parts = value if isinstance(value, list) else str(value).split(SEPARATOR)
    return list(dict.fromkeys(name for name in (str(part).strip() for part in parts if part is not None) if name))


def _rows(path: Path) -> tuple[list[Mapping[str, Any]], Counter[str]]:
    set_aside: Counter[str] = Counter()
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in {".gz", ".zst"}]
    kind = suffixes[-1] if suffixes else ""
    if kind not in KINDS:
        raise InputError(f"{path} is none of {', '.join(KINDS)}: save the table as one of these.")
    if not path.is_file():
        raise InputError(f"{path} is missing: name an existing table.")
    try:
        if kind == ".parquet":
            rows = pq.read_table(path).to_pylist()
        else:
            with pa.input_stream(str(path), compression="detect") as stream:
                content = stream.read().decode("utf-8-sig")
            reader = _json_rows(content) if kind in {".jsonl", ".ndjson"} else _csv_rows(content, kind, path)
            rows = []
            for row in reader:
                if isinstance(row, str):
                    set_aside[row] += 1
                else:
                    rows.append(row)
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} cannot be read as {kind[1:]} in UTF-8 ({reason:.120}): save it again.") from None
    if not rows:
        raise InputError(f"{path} holds no usable row: a table of texts and labels was expected.")
    return rows, set_aside


def _csv_rows(content: str, kind: str, path: Path) -> Iterator[Mapping[str, Any] | str]:
    """Rows by column name; in place of a row that does not fit the header, the reason."""
    reader = csv.reader(io.StringIO(content, newline=""), delimiter="\t" if kind == ".tsv" else ",", strict=True)
    try:
        header = next(reader, [])
        twice = [name for name, count in Counter(header).items() if count > 1]
        if twice:
            raise InputError(f"{path} has the column {twice[0]!r} twice: give each column its own name.")
        for cells in reader:
            if cells:
                fits = len(cells) == len(header)
                yield dict(zip(header, cells, strict=True)) if fits else "another number of columns than the header"
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num} has broken quotes ({error}): mend that line.") from None


def _json_rows(content: str) -> Iterator[Mapping[str, Any] | str]:
    """Objects, each with every column that any row has; in place of a line that is no object, the reason."""
    rows: list[Mapping[str, Any] | str] = []
    columns: dict[str, None] = {}
    for line in content.split("\n"):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if isinstance(row, dict):
                columns |= dict.fromkeys(row)
            rows.append(row if isinstance(row, dict) else "no JSON object")
    for row in rows:
        yield row if isinstance(row, str) else {**dict.fromkeys(columns), **row}
