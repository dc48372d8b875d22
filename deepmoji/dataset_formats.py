"""Readers for the published formats of labelled sets, one function a format.

Each takes the folder of the set and returns `Table`. Rows are cut at "\\n" alone, because tweets hold other line
ends (a lone U+2028, say) that `splitlines` would cut at; a "\\r" before it belongs to the line end. HTML entities
are resolved, except in the `raw.pickle` sets, which stay as published.
"""

import csv
import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from deepmoji.errors import InputError
from deepmoji.rawpickle import read_raw_pickle

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Table:
    """Texts with the class ids of each (one, or any number for a multilabel set), and the split of each."""

    texts: list[str]
    labels: list[list[int]]
    splits: list[str]
    classes: tuple[str, ...]


Reader = Callable[[Path], Table]


def raw_pickle(*classes: str) -> Reader:
    """The published `raw.pickle`; labels are class ids, or a row of 0 and 1 a class."""
    return partial(_raw_pickle, classes)


def csv_splits(classes: Sequence[str], *, multilabel: bool = False) -> Reader:
    """{train,val,test}.csv with a header text,label; the labels of a multilabel row stand between bars."""
    return partial(_csv_splits, tuple(classes), multilabel)


def _raw_pickle(classes: tuple[str, ...], folder: Path) -> Table:
    path = folder / "raw.pickle"
    raw = read_raw_pickle(path)
    texts, info = raw["texts"], raw["info"]
    rows = np.concatenate([raw[f"{split}_ind"] for split in SPLITS])
    if len(info) != len(texts) or sorted(rows.tolist()) != list(range(len(texts))):
        raise InputError(
            f"{path} has {len(texts)} texts, {len(info)} labels and {len(rows)} rows in its splits: each text needs "
            "one label and one split, fetch the file again."
        )
    splits = np.empty(len(texts), object)
    for split in SPLITS:
        splits[raw[f"{split}_ind"]] = split
    labels = []
    for row in info:
        label = row.get("label")
        flags = np.atleast_1d(np.asarray(label))
        whole = flags.size == 1 and flags.dtype.kind in "iub"
        ids = [int(flags[0])] if whole else np.flatnonzero(flags).tolist()
        if not (whole or flags.shape == (len(classes),)) or any(not 0 <= id_ < len(classes) for id_ in ids):
            raise InputError(f"{path} has the label {label!r}, where one of {len(classes)} classes was expected.")
        labels.append(ids)
    return Table(texts, labels, splits.tolist(), classes)


def tweeteval(folder: Path) -> Table:
    """TweetEval: {train,val,test}_{text,labels}.txt and mapping.txt (id, tab, name)."""
    mapping = [line.split("\t") for line in _lines(folder / "mapping.txt") if line.strip()]
    if any(len(cells) < 2 or cells[0] != str(number) for number, cells in enumerate(mapping)):
        raise InputError(f"{folder / 'mapping.txt'} must hold an id from 0 on, a tab and a name on each line.")
    classes = tuple(cells[1].strip() for cells in mapping)
    texts: list[str] = []
    labels: list[list[int]] = []
    splits: list[str] = []
    for split in SPLITS:
        text_file, label_file = folder / f"{split}_text.txt", folder / f"{split}_labels.txt"
        part, ids = _lines(text_file), _lines(label_file)
        if len(part) != len(ids):
            raise InputError(
                f"{text_file} has {len(part)} lines but {label_file.name} has {len(ids)}: each text needs its label, "
                "fetch both files again."
            )
        texts += [_clean(text) for text in part]
        labels += [[_class_id(name.strip(), label_file, classes)] for name in ids]
        splits += [split] * len(part)
    return Table(texts, labels, splits, classes)


def semeval2017(folder: Path) -> Table:
    """SemEval-2017 4A: id, label, text; some files add a date or nothing, some quote, some write \\u2019.

    The test set is the one of 2017; the files of 2013 to 2016 whose names say dev are the validation set, the
    others train.
    """
    classes = ("negative", "neutral", "positive")
    test = "SemEval2017-task4-test.subtask-A.english.txt"
    names = sorted(path.name for path in folder.glob("twitter-*-A.tsv"))
    if not names:
        raise InputError(f"{folder} holds no twitter-*-A.tsv: name a data folder that holds SemEval-2017 4A.")
    texts: list[str] = []
    labels: list[list[int]] = []
    splits: list[str] = []
    for name in [*names, test]:
        for number, line in enumerate(_lines(folder / name), start=1):
            cells = line.split("\t")
            if len(cells) not in (3, 4) or cells[1] not in classes:
                raise InputError(
                    f"{folder / name} line {number} has {len(cells)} columns: an id, one of {', '.join(classes)} and "
                    "a text were expected."
                )
            texts.append(_clean(_unescape(_unquote(cells[2]))))
            labels.append([classes.index(cells[1])])
            splits.append("test" if name == test else "val" if "dev" in name else "train")
    return Table(texts, labels, splits, classes)


def semeval2018(folder: Path) -> Table:
    """SemEval-2018 E-c: a header, then id, tweet and one column of 0 or 1 an emotion, between tabs, unquoted."""
    files = {"train": "E-c-En-train.txt", "val": "E-c-En-dev.txt", "test": "E-c-En-test-gold.txt"}
    texts: list[str] = []
    labels: list[list[int]] = []
    splits: list[str] = []
    header: list[str] = []
    for split, name in files.items():
        first, *lines = _lines(folder / name) or [""]
        if header and header != first.split("\t"):
            raise InputError(f"{folder / name} has other columns than {files['train']}: fetch both files again.")
        header = first.split("\t")
        for number, line in enumerate(lines, start=2):
            cells = line.split("\t")
            if len(cells) != len(header) or not set(cells[2:]) <= {"0", "1"}:
                raise InputError(
                    f"{folder / name} line {number} has {len(cells)} columns: the {len(header)} of its header were "
                    "expected, with 0 or 1 for each emotion."
                )
            texts.append(_clean(cells[1]))
            labels.append([at for at, flag in enumerate(cells[2:]) if flag == "1"])
            splits.append(split)
    return Table(texts, labels, splits, tuple(header[2:]))


def goemotions(folder: Path) -> Table:
    """GoEmotions: text, comma-separated class ids and a comment id, between tabs, unquoted; names in labels.txt."""
    classes = tuple(line.strip() for line in _lines(folder / "labels.txt") if line.strip())
    texts: list[str] = []
    labels: list[list[int]] = []
    splits: list[str] = []
    for split, name in {"train": "train.tsv", "val": "dev.tsv", "test": "test.tsv"}.items():
        for number, line in enumerate(_lines(folder / name), start=1):
            cells = line.split("\t")
            if len(cells) != 3:
                raise InputError(f"{folder / name} line {number} has {len(cells)} columns: text, ids and id, please.")
            texts.append(_clean(cells[0]))
            labels.append(sorted({_class_id(label, folder / name, classes) for label in cells[1].split(",")}))
            splits.append(split)
    return Table(texts, labels, splits, classes)


def davidson(folder: Path) -> Table:
    """Davidson et al. 2017: a quoted CSV with columns `class` and `tweet`. The split is left to the caller."""
    classes = ("hate", "offensive", "neither")
    path = folder / "labeled_data.csv"
    rows = _csv_rows(path, {"class", "tweet"})
    labels = [[_class_id(row["class"], path, classes)] for row in rows]
    return Table([_clean(row["tweet"]) for row in rows], labels, ["train"] * len(rows), classes)


def _csv_splits(classes: tuple[str, ...], multilabel: bool, folder: Path) -> Table:
    texts: list[str] = []
    labels: list[list[int]] = []
    splits: list[str] = []
    for split in SPLITS:
        path = folder / f"{split}.csv"
        for row in _csv_rows(path, {"text", "label"}):
            names = [name for name in row["label"].split("|") if name] if multilabel else [row["label"]]
            if not set(names) <= set(classes):
                raise InputError(f"{path} has the label {row['label']!r}: expected are {', '.join(classes)}.")
            texts.append(row["text"])
            labels.append(sorted(classes.index(name) for name in names))
            splits.append(split)
    return Table(texts, labels, splits, classes)


def _csv_rows(path: Path, columns: set[str]) -> Sequence[Mapping[str, str]]:
    reader = csv.DictReader(io.StringIO(_content(path), newline=""), strict=True)
    try:
        rows = list(reader)
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num} cannot be read as CSV ({error}): fetch it again.") from None
    missing = columns - set(reader.fieldnames or ())
    if missing or any(None in row or None in row.values() for row in rows):
        raise InputError(f"{path} must hold the columns {', '.join(sorted(columns))}, filled in every row.")
    return rows


def _content(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path} is missing: name a data folder that holds this set.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 ({error}): fetch it again.") from None


def _lines(path: Path) -> list[str]:
    lines = _content(path).split("\n")
    if lines[-1] == "":  # what follows the last line end is no line
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _class_id(written: str, path: Path, classes: Sequence[str]) -> int:
    if not re.fullmatch("[0-9]{1,4}", written) or int(written) >= len(classes):
        raise InputError(f"{path} has the label {written!r}: an id from 0 to {len(classes) - 1} was expected.")
    return int(written)


def _clean(text: str) -> str:
    while (plain := html.unescape(text)) != text:  # some tweets are escaped twice or more
        text = plain
    return text.strip()


def _unquote(text: str) -> str:
    """A text without the quotes of CSV; one that merely begins and ends with a quotation stays as it is."""
    inner = text[1:-1].replace('\\""', '""')
    quoted = len(text) > 1 and text[0] == text[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if quoted else text


def _unescape(text: str) -> str:
    """`\\u2019` as the character it stands for; two of them may be the halves of one emoji."""
    plain = re.sub(r"\\u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), text)
    return plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
