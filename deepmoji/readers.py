"""Text out of files: plain text, CSV, TSV, JSON lines and Parquet; gzip and zstd; one file or a folder.

Rows come in Arrow batches, so memory stays flat however big a file is. What cannot be read is never lost and
never stops the reading: it comes along as a `Reject` with its place and reason.
"""

import csv
import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deepmoji.errors import InputError

KINDS = (".txt", ".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
MAX_LINE_BYTES = 1 << 20  # a longer line is no text, and would make memory grow with the input
MAX_RECORD_LINES = 200  # a quoted CSV field that runs on longer was never closed
EXCERPT = 200  # characters of a rejected row that are kept to recognise it by
BLOCK_BYTES = 1 << 20


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


@dataclass(frozen=True)
class Batch:
    """Rows of one file in order: `texts` is a string array without nulls."""

    file: str
    texts: pa.Array
    rejects: list[Reject] = field(default_factory=list)


def list_files(source: Path) -> list[Path]:
    """The files that hold text at or below `source`, sorted; hidden ones are not data.

    InputError when there is nothing there, or nothing of a known kind.
    """
    if not source.exists():
        raise InputError(f"{source} is not there: name an existing file or folder with texts.")
    if source.is_file():
        if kind_of(source) is None:
            raise InputError(f"{source} is of no known kind: it should end in {_known()}.")
        return [source]
    files = [
        path
        for path in sorted(source.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(source).parts)
    ]
    if not any(kind_of(path) for path in files):
        raise InputError(f"{source} holds no file with texts: there should be some that end in {_known()}.")
    return files


def _known() -> str:
    return f"{' '.join(KINDS)}, the text kinds also with {' or '.join(COMPRESSIONS)}"


def kind_of(path: Path) -> str | None:
    """The format by the file's name, as one of KINDS; None if it is none of them."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = bool(suffixes) and suffixes[-1] in COMPRESSIONS
    if packed:
        suffixes.pop()
    kind = suffixes[-1] if suffixes else ""
    return kind if kind in KINDS and not (packed and kind == ".parquet") else None


def read_texts(path: Path, column: str = "text", batch_rows: int = 50_000) -> Iterator[Batch]:
    """Read a file, or every file below a folder, in batches of at most `batch_rows` rows.

    Tables and JSON objects are read by `column` (case does not matter); JSON lines may also be bare strings.
    Blank lines are empty texts. Raises InputError only when there is nothing to read at all.
    """
    for file in list_files(path):
        yield from read_file(file, file.name if file == path else file.relative_to(path).as_posix(), column, batch_rows)


def read_file(path: Path, name: str, column: str = "text", batch_rows: int = 50_000) -> Iterator[Batch]:
    """Read one file; `name` is what its rejects call it."""
    kind = kind_of(path)
    pending = _Pending(name, batch_rows)
    if kind is None:
        pending.reject("file", f"unknown kind of file, it should end in {_known()}")
        yield pending.flush()
        return
    try:
        before = path.stat()
        reader = _read_parquet if kind == ".parquet" else _read_lines
        for _ in reader(path, kind, column, pending):
            yield pending.flush()
        after = path.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            pending.reject("file", "changed while it was read", withdraws=True)
    except _SetAsideError as error:
        pending.reject(error.place, str(error), withdraws=error.withdraws)
    except (OSError, pa.ArrowException) as error:
        # Rows before the point where a stream just ends are sound; after a failed checksum none are.
        reason = " ".join(str(error).split()).replace(str(path), path.name)
        pending.reject(f"after row {pending.rows}", reason, withdraws="Truncated" not in reason)
    yield pending.flush()


class _SetAsideError(Exception):
    def __init__(self, reason: str, place: str = "file", withdraws: bool = False) -> None:
        super().__init__(reason)
        self.place, self.withdraws = place, withdraws


class _Pending:
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

    def flush(self) -> Batch:
        batch = Batch(self.file, pa.array(self.texts, pa.string()), self.rejects)
        self.texts, self.rejects = [], []
        return batch


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _read_lines(path: Path, kind: str, column: str, pending: _Pending) -> Iterator[None]:
    """Every kind but Parquet: lines of UTF-8, then the row in each; yields whenever a batch is full."""
    lines = _decoded(path, pending)
    if kind == ".txt":
        for number, line in lines:
            pending.add(line, f"line {number}")
            if pending.full:
                yield
    elif kind in (".jsonl", ".ndjson"):
        for number, line in lines:
            _add_json(line, f"line {number}", column, pending)
            if pending.full:
                yield
    else:
        for _ in _add_records(lines, "\t" if kind == ".tsv" else ",", column, pending):
            if pending.full:
                yield


def _decoded(path: Path, pending: _Pending) -> Iterator[tuple[int, str]]:
    """(line number, line without its end). Only \\n and \\r\\n end a line, not U+2028 and its kin."""
    for number, raw in _raw_lines(path):
        if number == 1:
            if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise _SetAsideError("is UTF-16, it should be UTF-8")
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if len(raw) > MAX_LINE_BYTES:
            pending.reject_row(
                f"line {number}", f"is longer than {MAX_LINE_BYTES} bytes", raw[:EXCERPT].decode("latin-1")
            )
            continue
        try:
            yield number, raw.decode("utf-8")
        except UnicodeDecodeError:
            pending.reject_row(f"line {number}", "is not UTF-8", raw.decode("utf-8", "backslashreplace"))


def _raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines in bytes; of one that is too long just the first MAX_LINE_BYTES + 1, the rest is skipped."""
    compression = COMPRESSIONS.get(path.suffix.lower())
    number, rest = 1, b""
    with pa.input_stream(str(path), compression=compression) as stream:
        while block := stream.read(BLOCK_BYTES):
            *lines, tail = block.split(b"\n")
            if lines:
                lines[0] = rest + lines[0]
                rest = tail
            else:
                rest = (rest + tail)[: MAX_LINE_BYTES + 1]
            for line in lines:
                yield number, line.removesuffix(b"\r")
                number += 1
            rest = rest[: MAX_LINE_BYTES + 1]
    if rest:
        yield number, rest.removesuffix(b"\r")


class _TwiceError(ValueError):
    pass


def _add_json(line: str, place: str, column: str, pending: _Pending) -> None:
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
            value = value[_find_column(list(value), column)]
        except _SetAsideError as error:
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


def _find_column(names: Sequence[str], column: str) -> str:
    found = [name for name in names if name.strip().lower() == column.lower()]
    if len(found) == 1:
        return found[0]
    has = "no" if not found else str(len(found))
    raise _SetAsideError(f"has {has} columns {column!r} among {', '.join(names) or 'none'}"[:300])


def _add_records(lines: Iterator[tuple[int, str]], delimiter: str, column: str, pending: _Pending) -> Iterator[None]:
    """CSV, read record by record so that a broken quote costs one row and not the rest of the file."""
    records = _records(lines, delimiter, pending)
    header = next(records, None)
    if header is None:
        return
    names = header[1]
    _find_column(names, column)
    index = next(i for i, name in enumerate(names) if name.strip().lower() == column.lower())
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


def _records(lines: Iterator[tuple[int, str]], delimiter: str, pending: _Pending) -> Iterator[tuple[str, list[str]]]:
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


def _read_parquet(path: Path, _kind: str, column: str, pending: _Pending) -> Iterator[None]:
    with pq.ParquetFile(path) as file:
        name = _find_column(file.schema_arrow.names, column)
        kind = file.schema_arrow.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise _SetAsideError(f"has a column {name!r} of type {kind}, it should hold strings")
        for batch in file.iter_batches(pending.batch_rows, columns=[name]):
            for raw in batch.column(0).cast(pa.large_string()).cast(pa.large_binary()).to_pylist():
                _add_binary(raw, f"row {pending.rows + 1}", pending)
                if pending.full:
                    yield


def _add_binary(raw: bytes | None, place: str, pending: _Pending) -> None:
    if raw is None:
        pending.reject_row(place, "is null", "")
    elif len(raw) > MAX_LINE_BYTES:
        pending.reject_row(place, f"is longer than {MAX_LINE_BYTES} bytes", raw[:EXCERPT].decode("latin-1"))
    else:
        try:
            pending.add(raw.decode(), place)
        except UnicodeDecodeError:
            pending.reject_row(place, "is not UTF-8", raw.decode("utf-8", "backslashreplace"))
