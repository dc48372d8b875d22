"""Text out of files: plain text, CSV, TSV, JSON lines and Parquet; gzip and zstd; one file or a folder.

Rows come in Arrow batches, so memory stays flat however big a file is. What cannot be read is never lost and
never stops the reading: it comes along as a `Reject` with its place and reason.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from deepmoji.errors import InputError
from deepmoji.rows import EXCERPT, MAX_LINE_BYTES, Pending, Reject, SetAsideError, add_json, add_records, read_parquet

KINDS = (".txt", ".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
BLOCK_BYTES = 1 << 16  # what is decompressed of a truncated block is lost, so blocks are small


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
        raise InputError(
            f"{source} is not there: name a file or folder with texts, or write the sample (`deepmoji sample`)."
        )
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
    pending = Pending(name, batch_rows)
    if kind is None:
        pending.reject("file", f"unknown kind of file, it should end in {_known()}")
        yield _batch(pending)
        return
    try:
        before = path.stat()
        reader = read_parquet if kind == ".parquet" else _read_lines
        for _ in reader(path, kind, column, pending):
            yield _batch(pending)
        after = path.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            pending.reject("file", "changed while it was read", withdraws=True)
    except SetAsideError as error:
        pending.reject(error.place, str(error), withdraws=error.withdraws)
    except (OSError, pa.ArrowException) as error:
        # Rows before the point where a stream just ends are sound; after a failed checksum none are.
        reason = " ".join(str(error).split()).replace(str(path), path.name)
        pending.reject(f"after row {pending.rows}", reason, withdraws="Truncated" not in reason)
    yield _batch(pending)


def _batch(pending: Pending) -> Batch:
    texts, rejects = pending.take()
    return Batch(pending.file, pa.array(texts, pa.string()), rejects)


def _read_lines(path: Path, kind: str, column: str, pending: Pending) -> Iterator[None]:
    """Every kind but Parquet: lines of UTF-8, then the row in each; yields whenever a batch is full."""
    lines = _decoded(path, pending)
    if kind == ".txt":
        for number, line in lines:
            pending.add(line, f"line {number}")
            if pending.full:
                yield
    elif kind in (".jsonl", ".ndjson"):
        for number, line in lines:
            add_json(line, f"line {number}", column, pending)
            if pending.full:
                yield
    else:
        for _ in add_records(lines, "\t" if kind == ".tsv" else ",", column, pending):
            if pending.full:
                yield


def _decoded(path: Path, pending: Pending) -> Iterator[tuple[int, str]]:
    """(line number, line without its end). Only \\n and \\r\\n end a line, not U+2028 and its kin."""
    for number, raw in _raw_lines(path):
        if number == 1:
            if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise SetAsideError("is UTF-16, it should be UTF-8")
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
