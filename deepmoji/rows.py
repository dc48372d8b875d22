"""One row of a file: how each format spells it, and what makes it a reject."""

import csv
import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

MAX_LINE_BYTES = 1 << 20  # a longer line is no text, and would make memory grow with the input
MAX_RECORD_LINES = 200  # a quoted CSV field that runs on longer was never closed
EXCERPT = 200  # characters of a rejected row that are kept to recognise it by


@dataclass(frozen=True)
class Reject:
    """A row, or a file, that could not be read.

    `rows` is how many rows it stands for. `withdraws` says that rows of this file that came before are not to be
    trusted either (a broken checksum, a file that changed): whoever keeps rows has to drop those of this file.
    """

    file: str
    place: str
    reason: str
    text: str = ""
    rows: int = 1
    withdraws: bool = False

    def as_record(self) -> dict[str, Any]:
        """The line of a rejects file."""
        return {key: value for key, value in asdict(self).items() if key != "withdraws"}


class SetAsideError(Exception):
    def __init__(self, reason: str, place: str = "file", withdraws: bool = False) -> None:
        super().__init__(reason)
        self.place, self.withdraws = place, withdraws


class Pending:
    """Rows and rejects of a file since the last batch."""

    def __init__(self, file: str, batch_rows: int) -> None:
        self.file, self.batch_rows, self.rows = file, batch_rows, 0
        self.texts: list[str] = []
        self.rejects: list[Reject] = []

    def add(self, text: str, place: str) -> None:
        if "\0" in text:
            self.reject_row(place, "holds a NUL character", text)
        elif not text.isascii() and _has_surrogate(text):
            self.reject_row(place, "holds half of a surrogate pair", text)
        else:
            self.rows += 1
            self.texts.append(text)

    def reject_row(self, place: str, reason: str, text: str) -> None:
        self.rows += 1
        self.reject(place, reason, text)

    def reject(self, place: str, reason: str, text: str = "", withdraws: bool = False) -> None:
        excerpt = text[:EXCERPT].encode("utf-8", "backslashreplace").decode()
        self.rejects.append(Reject(self.file, place, reason, excerpt, withdraws=withdraws))

    @property
    def full(self) -> bool:
        return len(self.texts) + len(self.rejects) >= self.batch_rows

    def take(self) -> tuple[list[str], list[Reject]]:
        """Texts and rejects since the last time."""
        taken = self.texts, self.rejects
        self.texts, self.rejects = [], []
        return taken


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


class _TwiceError(ValueError):
    pass


def add_json(line: str, place: str, column: str, pending: Pending) -> None:
    if not line.strip():
        pending.add("", place)
        return
    try:
        value = _DECODER.decode(line)
    except _TwiceError as error:
        pending.reject_row(place, f"has the key {error} twice", line)
        return
    except (ValueError, RecursionError):
        pending.reject_row(place, "is not JSON", line)
        return
    if isinstance(value, dict):
        try:
            value = value[find_column(list(value), column)]
        except SetAsideError as error:
            pending.reject_row(place, str(error), line)
            return
    if isinstance(value, str):
        pending.add(value, place)
    else:
        pending.reject_row(place, f"has JSON of the wrong shape ({type(value).__name__} where a text should be)", line)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _TwiceError(repr(next(key for key in keys if keys.count(key) > 1)))
    return record


_DECODER = json.JSONDecoder(object_pairs_hook=_once)  # json.loads would build one per line


def columns_called(names: Sequence[str], column: str) -> list[str]:
    """Those that a user means by this name: neither case nor white space around it matters."""
    return [name for name in names if name.strip().lower() == column.strip().lower()]


def find_column(names: Sequence[str], column: str) -> str:
    found = columns_called(names, column)
    if len(found) == 1:
        return found[0]
    has = "no" if not found else str(len(found))
    raise SetAsideError(f"has {has} columns {column!r} among {', '.join(names) or 'none'}"[:300])


def add_records(lines: Iterator[tuple[int, str]], delimiter: str, column: str, pending: Pending) -> Iterator[None]:
    """CSV, read record by record so that a broken quote costs one row and not the rest of the file."""
    records = _records(lines, delimiter, pending)
    header = next(records, None)
    if header is None:
        return
    names = header[1]
    index = names.index(find_column(names, column))
    for place, fields in records:
        if not fields:
            pending.add("", place)
        elif len(fields) != len(names):
            pending.reject_row(
                place, f"has {len(fields)} fields where the header has {len(names)}", delimiter.join(fields)
            )
        else:
            pending.add(fields[index], place)
        yield


def _records(lines: Iterator[tuple[int, str]], delimiter: str, pending: Pending) -> Iterator[tuple[str, list[str]]]:
    ahead: deque[tuple[int, str]] = deque()  # lines already read, in search of the end of a quoted field
    while True:
        if not ahead:
            line = next(lines, None)
            if line is None:
                return
            ahead.append(line)
        first, text = ahead[0]
        taken, fields, problem = 1, *_parse_record(text, delimiter)
        if fields is None and text.count('"') % 2:
            taken = _close_quote(lines, ahead)
            fields, problem = _parse_record("\n".join(line for _, line in islice(ahead, taken)), delimiter)
        if fields is None:  # this line alone is given up; those read ahead are tried again as rows of their own
            pending.reject_row(f"line {first}", f"is no record ({problem})", text)
            ahead.popleft()
        else:
            for _ in range(taken):
                ahead.popleft()
            yield f"line {first}", fields


def _close_quote(lines: Iterator[tuple[int, str]], ahead: deque[tuple[int, str]]) -> int:
    """How many lines of `ahead`, which grows as needed, hold an even number of quotes."""
    quotes = size = taken = 0
    while taken < MAX_RECORD_LINES and size <= MAX_LINE_BYTES:
        if taken == len(ahead):
            line = next(lines, None)
            if line is None:
                break
            ahead.append(line)
        quotes += ahead[taken][1].count('"')
        size += len(ahead[taken][1])
        taken += 1
        if quotes % 2 == 0:
            break
    return taken


def _parse_record(text: str, delimiter: str) -> tuple[list[str] | None, str]:
    try:
        return next(csv.reader([text], delimiter=delimiter, strict=True)), ""
    except csv.Error as error:
        return None, str(error)


def read_parquet(path: Path, _kind: str, column: str, pending: Pending) -> Iterator[None]:
    with pq.ParquetFile(path) as file:
        name = find_column(file.schema_arrow.names, column)
        kind = file.schema_arrow.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise SetAsideError(f"has a column {name!r} of type {kind}, it should hold strings")
        for batch in file.iter_batches(pending.batch_rows, columns=[name]):
            for raw in batch.column(0).cast(pa.large_string()).cast(pa.large_binary()).to_pylist():
                _add_binary(raw, f"row {pending.rows + 1}", pending)
                if pending.full:
                    yield


def _add_binary(raw: bytes | None, place: str, pending: Pending) -> None:
    if raw is None:
        pending.reject_row(place, "is null", "")
    elif len(raw) > MAX_LINE_BYTES:
        pending.reject_row(place, f"is longer than {MAX_LINE_BYTES} bytes", raw[:EXCERPT].decode("latin-1"))
    else:
        try:
            pending.add(raw.decode(), place)
        except UnicodeDecodeError:
            pending.reject_row(place, "is not UTF-8", raw.decode("utf-8", "backslashreplace"))
