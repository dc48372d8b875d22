"""Labelled sets by name, in one form: read as published, kept as Parquet, or taken from a user's own table."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deepmoji import dataset_formats as formats
from deepmoji.dataset_formats import SPLITS, Table
from deepmoji.errors import InputError, UsageError
from deepmoji.owntable import read_table, stratified_split

log = logging.getLogger(__name__)

TASKS = ("binary", "multiclass", "multilabel")
SCHEMA = {"text": pa.string(), "labels": pa.list_(pa.int64()), "split": pa.string()}


@dataclass(frozen=True)
class Dataset:
    """A labelled set: N texts with their labels and splits."""

    name: str
    texts: list[str]
    labels: np.ndarray  # (N,) int64 class ids, or (N, C) uint8 when task == "multilabel"
    splits: np.ndarray  # (N,) of "train", "val", "test"
    classes: tuple[str, ...]
    task: str  # "binary", "multiclass" or "multilabel"
    metric: str
    paper: dict[str, float] = field(default_factory=dict)  # published figures by method


@dataclass(frozen=True)
class Entry:
    """Where a set lies below the data folder, how it is read and judged, and what others reached on it."""

    folder: str
    read: Callable[[Path], Table]
    task: str
    metric: str
    licence: str
    source: str
    rows: tuple[int, int, int]  # published size of train, val, test
    paper: Mapping[str, float] = field(default_factory=dict)  # Felbo et al. 2017, table 4 and its ablations
    peers: Mapping[str, float] = field(default_factory=dict)  # what others reached, by system


_MIT_SAMPLE = "synthetic, written by `deepmoji sample`; MIT"
_RESEARCH = "research use; texts belong to their authors, see the publishers of each set"
_TWEETS = "research use under the terms of Twitter/X; texts belong to their authors"
_DEEPMOJI = "github.com/bfelbo/DeepMoji"
_METHODS = ("2017 best", "new", "full", "last", "chain-thaw", "positive/negative emojis", "plain LSTM")


def _sample(name: str, classes: Sequence[str], task: str, metric: str) -> Entry:
    reader = formats.csv_splits(classes, multilabel=task == "multilabel")
    return Entry(f"benchmark/{name}", reader, task, metric, _MIT_SAMPLE, "deepmoji sample", (200, 100, 800))


def _published(
    name: str,
    classes: Sequence[str],
    task: str,
    metric: str,
    rows: tuple[int, int, int],
    paper: Sequence[float] = (),
    **peers: float,
) -> Entry:
    figures = dict(zip(_METHODS, paper, strict=True)) if paper else {}
    others = {name.replace("_", " "): figure for name, figure in peers.items()}
    reader = formats.raw_pickle(*classes)
    return Entry(f"deepmoji/{name}", reader, task, metric, _RESEARCH, _DEEPMOJI, rows, figures, others)


_TWEETEVAL_MODELS = ("BERTweet", "TimeLMs-2021", "RoBERTa-base", "FastText", "BiLSTM", "SVM")


def _tweeteval(name: str, task: str, rows: tuple[int, int, int], peers: Sequence[float]) -> Entry:
    figures = {model: figure / 100 for model, figure in zip(_TWEETEVAL_MODELS, peers, strict=True)}
    source = "github.com/cardiffnlp/tweeteval"
    return Entry(f"tweeteval/{name}", formats.tweeteval, task, "macro_f1", _TWEETS, source, rows, {}, figures)


def _davidson(folder: Path) -> Table:
    """The set has no split of its own: 70/10/20 in every class, always the same."""
    table = formats.davidson(folder)
    splits = stratified_split(table.texts, table.labels, (0.7, 0.1, 0.2), 2017, table.classes)
    return Table(table.texts, table.labels, splits, table.classes)


_SENTIMENT = ("negative", "positive")
_SARCASM = ("not sarcastic", "sarcastic")

CATALOG: Mapping[str, Entry] = MappingProxyType(
    {
        "sample-sentiment": _sample("sample-sentiment", _SENTIMENT, "binary", "accuracy"),
        "sample-emotion": _sample(
            "sample-emotion", ("joy", "love", "sadness", "anger", "fear"), "multilabel", "class_average_f1"
        ),
        "sample-sarcasm": _sample("sample-sarcasm", ("sincere", "sarcastic"), "binary", "f1"),
        "SE0714": _published(
            "SE0714", ("fear", "joy", "sadness"), "multilabel", "class_average_f1", (200, 50, 1000),
            (0.34, 0.21, 0.31, 0.36, 0.37, 0.32, 0.35), MiniLM_features=0.45, TF_IDF=0.33,
        ),
        "Olympic": _published(
            # The file names no classes. Which column is which follows from the words of its tweets: "congrats" and
            # "amazing" stand in 1, "love" and "inspire" also in 3, "shame" and "hate" in 0, "sad" and "worry" in 2.
            "Olympic", ("negative, in control", "positive, in control", "negative, not in control",
                        "positive, not in control"), "multilabel", "class_average_f1", (200, 50, 762),
            (0.50, 0.43, 0.50, 0.61, 0.61, 0.55, 0.57), MiniLM_features=0.54, TF_IDF=0.48,
        ),
        "PsychExp": _published(
            "PsychExp", ("joy", "fear", "anger", "sadness", "disgust", "shame", "guilt"), "multiclass",
            "class_average_f1", (900, 100, 6480),
            (0.45, 0.32, 0.42, 0.56, 0.57, 0.40, 0.49), MiniLM_features=0.53, TF_IDF=0.49,
        ),
        "SS-Twitter": _published(
            "SS-Twitter", _SENTIMENT, "binary", "accuracy", (800, 100, 1213),
            (0.82, 0.62, 0.85, 0.87, 0.88, 0.86, 0.86), MiniLM_features=0.813, TF_IDF=0.725,
        ),
        "SS-Youtube": _published(
            "SS-Youtube", _SENTIMENT, "binary", "accuracy", (800, 100, 1242),
            (0.86, 0.75, 0.88, 0.92, 0.93, 0.90, 0.91), MiniLM_features=0.879, TF_IDF=0.816,
        ),
        "SCv1": _published(
            "SCv1", _SARCASM, "binary", "f1", (800, 100, 1095), (0.63, 0.67, 0.65, 0.68, 0.69, 0.66, 0.66)
        ),
        "SCv2-GEN": _published(
            "SCv2-GEN", _SARCASM, "binary", "f1", (800, 100, 2360), (0.72, 0.71, 0.71, 0.74, 0.75, 0.72, 0.73)
        ),
        "kaggle-insults": _published(
            "kaggle-insults", ("neutral", "insult"), "binary", "accuracy", (4450, 495, 1237), TF_IDF=0.807
        ),
        "tweeteval-emoji": _tweeteval(
            "emoji", "multiclass", (45000, 5000, 50000), (33.4, 34.0, 30.9, 25.8, 24.7, 29.3)
        ),
        "tweeteval-emotion": _tweeteval(
            "emotion", "multiclass", (3257, 374, 1421), (79.3, 80.2, 76.1, 65.2, 66.0, 64.7)
        ),
        "tweeteval-hate": _tweeteval("hate", "binary", (9000, 1000, 2970), (56.4, 55.1, 46.6, 50.6, 52.6, 36.7)),
        "tweeteval-offensive": _tweeteval(
            "offensive", "binary", (11916, 1324, 860), (79.5, 82.2, 79.5, 73.4, 71.7, 52.3)
        ),
        "semeval2017-4a": Entry(
            "semeval2017_4a", formats.semeval2017, "multiclass", "macro_recall", _TWEETS,
            "github.com/cbaziotis/datastories-semeval2017-task4", (44681, 5653, 12284),
        ),
        "semeval2018-ec": Entry(
            "semeval2018/E-c", formats.semeval2018, "multilabel", "jaccard", _TWEETS,
            "github.com/cbaziotis/ntua-slp-semeval2018", (6838, 886, 3259),
        ),
        "goemotions": Entry(
            "goemotions/original", formats.goemotions, "multilabel", "macro_f1", "Apache 2.0, as GoEmotions",
            "github.com/monologg/GoEmotions-pytorch", (43410, 5426, 5427), {}, {"BERT-base": 0.46},
        ),
        "goemotions-ekman": Entry(
            "goemotions/ekman", formats.goemotions, "multilabel", "macro_f1", "Apache 2.0, as GoEmotions",
            "github.com/monologg/GoEmotions-pytorch", (43410, 5426, 5427), {},
            {"BERT-base, lower report": 0.62, "BERT-base, higher report": 0.64},
        ),
        "davidson": Entry(
            "davidson", _davidson, "multiclass", "weighted_f1", "MIT, as published; texts belong to their authors",
            "github.com/t-davidson/hate-speech-and-offensive-language", (17348, 2477, 4958),
        ),
    }
)  # fmt: skip


def read_dataset(name: str, data: Path) -> Dataset:
    """Read one set of the catalogue as published, from below the folder `data`.

    UsageError for an unknown name, InputError for files that are missing or do not fit together.
    """
    if name not in CATALOG:
        raise UsageError(f"There is no set {name!r}: choose among {', '.join(CATALOG)}.")
    entry = CATALOG[name]
    folder = data / entry.folder
    if not folder.is_dir():
        hint = "run `deepmoji sample`" if name.startswith("sample-") else "put the published files there"
        raise InputError(f"{folder} is missing, which should hold {name}: {hint}, or name another data folder.")
    table = entry.read(folder)
    found = tuple(table.splits.count(split) for split in SPLITS)
    if found != entry.rows:
        log.warning("%s: %s rows in train, val, test, where %s were published", name, found, entry.rows)
    return _dataset(name, table, entry.task, entry.metric, dict(entry.paper))


def write_datasets(names: Sequence[str], data: Path, out: Path) -> dict[str, dict[str, object]]:
    """Write sets as `out`/<name>.parquet, the same bytes each time; other sets leave the folder.

    Returns, and writes last as datasets.json, per set: rows, splits, texts that stand in two splits, classes, task,
    metric, licence.
    """
    sets = [read_dataset(name, data) for name in names]  # all of them, before anything is written
    out.mkdir(parents=True, exist_ok=True)
    manifest = out / "datasets.json"
    manifest.unlink(missing_ok=True)
    facts: dict[str, dict[str, object]] = {}
    for name, dataset in zip(names, sets, strict=True):
        facts[name] = _facts(dataset)
        save_dataset(dataset, out / f"{name}.parquet")
    for path in out.glob("*.parquet"):
        if path.stem not in facts:
            path.unlink()
    beside = manifest.with_suffix(".tmp")
    beside.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    beside.replace(manifest)
    return facts


def save_dataset(dataset: Dataset, path: Path) -> None:
    """One Parquet table: text, labels (list of class ids), split; everything else in the schema's metadata."""
    multilabel = dataset.task == "multilabel"
    labels = (
        [np.flatnonzero(row).tolist() for row in dataset.labels] if multilabel else dataset.labels[:, None].tolist()
    )
    about = {
        "name": dataset.name,
        "task": dataset.task,
        "metric": dataset.metric,
        "classes": list(dataset.classes),
        "paper": dataset.paper,
    }
    if dataset.name in CATALOG:
        entry = CATALOG[dataset.name]
        about |= {"licence": entry.licence, "source": entry.source, "peers": dict(entry.peers)}
    schema = pa.schema(list(SCHEMA.items()), {"deepmoji": json.dumps(about, ensure_ascii=False)})
    columns = {"text": dataset.texts, "labels": labels, "split": dataset.splits.tolist()}
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    pq.write_table(pa.table(columns, schema), beside, compression="zstd")
    beside.replace(path)


def load_dataset(path: Path) -> Dataset:
    """Read a set that `write_datasets` or `save_dataset` wrote."""
    try:
        table = pq.read_table(path)
        about = json.loads((table.schema.metadata or {})[b"deepmoji"])
        columns = [table[name].to_pylist() for name in SCHEMA]
        rows = Table(columns[0], columns[1], columns[2], tuple(about["classes"]))
        return _dataset(about["name"], rows, about["task"], about["metric"], about["paper"])
    except FileNotFoundError:
        raise InputError(f"{path} is missing: run `deepmoji datasets --write` first.") from None
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is no labelled set of this project ({reason:.120}): write it again.") from None


def fingerprint(dataset: Dataset) -> str:
    """Of texts, labels and splits, 16 hex digits: what was made from one is not compared with what another made."""
    total = hashlib.sha256(json.dumps([dataset.texts, list(dataset.classes)]).encode())
    total.update(np.ascontiguousarray(dataset.labels, dtype=np.int64).tobytes())
    total.update(json.dumps(dataset.splits.tolist()).encode())
    return total.hexdigest()[:16]


def dataset_from_table(path: Path, text_column: str, label_column: str, split: str, seed: int) -> Dataset:
    """A user's own table as a set, judged by macro F1; see `owntable.read_table` for what it may look like."""
    own = read_table(path, text_column, label_column, split, seed)
    task = "multilabel" if own.multilabel else "binary" if len(own.table.classes) == 2 else "multiclass"
    return _dataset(path.name.split(".")[0], own.table, task, "macro_f1", {})


def shared_texts(dataset: Dataset) -> dict[str, int]:
    """How many rows of val and test hold a text of train, and of test a text of val: {"train-val": n, ...}."""
    texts = np.array(dataset.texts, dtype=object)
    by_split = {split: texts[dataset.splits == split].tolist() for split in SPLITS}
    pairs = (("train", "val"), ("train", "test"), ("val", "test"))
    return {f"{one}-{other}": _count(by_split[other], set(by_split[one])) for one, other in pairs}


def _count(texts: Sequence[str], among: set[str]) -> int:
    return sum(text in among for text in texts)


def _facts(dataset: Dataset) -> dict[str, object]:
    return {
        "rows": len(dataset.texts),
        **{split: int((dataset.splits == split).sum()) for split in SPLITS},
        "shared": shared_texts(dataset),
        "classes": list(dataset.classes),
        "task": dataset.task,
        "metric": dataset.metric,
        "licence": CATALOG[dataset.name].licence,
    }


def _dataset(name: str, table: Table, task: str, metric: str, paper: dict[str, float]) -> Dataset:
    if task == "multilabel":
        labels = np.zeros((len(table.texts), len(table.classes)), np.uint8)
        for row, ids in enumerate(table.labels):
            labels[row, ids] = 1
    else:
        labels = np.array([ids for (ids,) in table.labels], np.int64)
    return Dataset(name, table.texts, labels, np.array(table.splits, dtype="<U5"), table.classes, task, metric, paper)
