"""Probabilities to decisions to figures, alike for every method and baseline of a labelled set.

Thresholds come from the validation rows alone. A predictions file holds what intervals and paired tests need: the
test rows, their truth, the decisions and the probabilities.

n rows, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deepmoji.datasets import Dataset
from deepmoji.errors import InputError
from deepmoji.metrics import decide, indicator, metrics_for, score, scorer, tune_thresholds

# Metrics to which a class of few rows counts as much as one of many; the most probable class is not the best answer.
CLASSES_ALIKE = ("macro_f1", "macro_recall", "class_average_f1")
POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the inverse share; 1 = as if all classes had been equally frequent


@dataclass(frozen=True)
class Predictions:
    """What one run says about the test rows of a set.

    seed: of the run. rows: (n,) positions in the whole set. truth, decisions: (n,) class ids, or (n, C) zeros and
    ones where a row may have several labels or each class is judged for itself. probabilities: (n, C) float32.
    """

    seed: int
    rows: NDArray[np.int64]
    truth: NDArray[np.int64]
    decisions: NDArray[np.int64]
    probabilities: NDArray[np.float32]


@dataclass(frozen=True)
class Judged:
    """A run's figures: by metric on validation and test, the thresholds used (none: the most probable class).

    offsets: (C,) what was added to the classes' logits, if anything was; `predictions` holds what came of it.
    facts: for the benchmark's table, such as how many texts were cut; empty where there is nothing to tell.
    """

    predictions: Predictions
    validation: dict[str, float]
    test: dict[str, float]
    thresholds: list[float] | None
    offsets: list[float] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def rows_of(dataset: Dataset, split: str) -> NDArray[np.int64]:
    """Positions of the rows of one split, in order; InputError if there are none."""
    rows = np.flatnonzero(dataset.splits == split).astype(np.int64)
    if len(rows) == 0:
        raise InputError(
            f"{dataset.name} has no {split} rows: give it at least one row in each of train, val and test."
        )
    return rows


def judge(
    dataset: Dataset,
    seed: int,
    validation: NDArray[Any],
    test: NDArray[Any],
    *,
    per_class: bool = False,
    raise_rare: bool = True,
) -> Judged:
    """Decide and score one run.

    validation, test: probabilities (rows of the split, C); (rows, 2) for two classes.
    per_class: each column is a model of its own against the rest (paper section 5: class-average F1), so each
        gets its threshold, and the truth takes the form (n, C).
    Several labels a row, and F1 of two classes, get thresholds too; otherwise the most probable class is taken.
    A threshold for F1 of two classes is for F1 alone: the decisions kept and `f1` come from it, every other figure
    from the most probable class, as published accuracies do.
    Where one class is taken and the metric weighs all classes alike, rare ones are first made more probable: by
    their share of the training rows to a power that is chosen on the validation rows; not without `raise_rare`.
    """
    rows = {split: rows_of(dataset, split) for split in ("val", "test")}
    truth = {split: dataset.labels[rows[split]].astype(np.int64) for split in rows}
    given = {"val": np.asarray(validation, dtype=np.float32), "test": np.asarray(test, dtype=np.float32)}
    classes = len(dataset.classes)
    several = per_class or dataset.task == "multilabel"
    if several:
        truth = {split: indicator(values, classes) for split, values in truth.items()}
    limits: NDArray[np.float64] | None = None
    offsets: NDArray[np.float64] | None = None
    if raise_rare and not several and dataset.metric in CLASSES_ALIKE:
        offsets = tune_offsets(dataset, truth["val"], given["val"])
        given = {split: shifted(values, offsets) for split, values in given.items()}
    if several:
        limits = tune_thresholds(truth["val"], given["val"])
    elif dataset.metric == "f1":
        limits = tune_thresholds(truth["val"], given["val"][:, 1])
    decisions = {split: decide(given[split], labels=several, thresholds=limits) for split in rows}
    task = "multilabel" if several else dataset.task
    names = sorted({*metrics_for(task), dataset.metric})
    # Thresholds of two classes lie below 0.5, which buys F1 with accuracy.
    probable = decisions if several else {split: decide(given[split], labels=False) for split in rows}
    figures = {
        split: {
            name: score(name, truth[split], decisions[split] if name == "f1" else probable[split]) for name in names
        }
        for split in rows
    }
    return Judged(
        predictions=Predictions(seed, rows["test"], truth["test"], decisions["test"], given["test"]),
        validation=figures["val"],
        test=figures["test"],
        thresholds=None if limits is None else [round(float(limit), 2) for limit in limits],
        offsets=None if offsets is None else offsets.tolist(),
    )


def tune_offsets(dataset: Dataset, truth: NDArray[np.int64], probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
    """What to add to the logits (C,), from the validation rows' truth (n,) and probabilities (n, C).

    -t log(share of the class among the training rows), for the t of POWERS with the best metric, the least of equals.
    0 for a class without a training row.
    """
    counts = np.bincount(dataset.labels[rows_of(dataset, "train")], minlength=len(dataset.classes))
    rarity = np.where(counts > 0, -np.log(np.maximum(counts, 1) / counts.sum()), 0.0)
    reached = [
        score(dataset.metric, truth, decide(shifted(probabilities, power * rarity), labels=False)) for power in POWERS
    ]
    offsets: NDArray[np.float64] = POWERS[int(np.argmax(reached))] * rarity
    return offsets


def shifted(probabilities: NDArray[np.float32], offsets: NDArray[np.float64]) -> NDArray[np.float32]:
    """Probabilities (n, C) after `offsets` (C,) were added to their logits."""
    raised = probabilities * np.exp(offsets)
    total = raised.sum(axis=1, keepdims=True)
    return (raised / np.where(total > 0, total, 1)).astype(np.float32)


def comparable(predictions: Predictions, metric: str, classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(truth, decisions) in the one form in which a metric compares methods: for class averages always (n, C)."""
    if metric == "class_average_f1":
        return indicator(predictions.truth, classes), indicator(predictions.decisions, classes)
    return predictions.truth, predictions.decisions


def rescore(predictions: Predictions, metric: str, classes: int) -> float:
    """The metric on the test rows, from the decisions."""
    truth, decisions = comparable(predictions, metric, classes)
    return scorer(metric, truth, decisions)(np.ones(len(truth)))


def write_predictions(path: Path, runs: Sequence[Predictions]) -> None:
    """Parquet, a row for each (seed, test row): seed, row, truth, decision, probabilities."""
    tables = [
        pa.table(
            {
                "seed": pa.array(np.full(len(run.rows), run.seed, dtype=np.int64)),
                "row": pa.array(run.rows),
                "truth": _column(run.truth),
                "decision": _column(run.decisions),
                "probabilities": _column(run.probabilities),
            }
        )
        for run in runs
    ]
    beside = path.with_suffix(".tmp")
    pq.write_table(pa.concat_tables(tables), beside, compression="zstd")
    beside.replace(path)


def read_predictions(path: Path) -> list[Predictions]:
    """What `write_predictions` wrote, a run for each seed in the order of the file."""
    try:
        table = pq.read_table(path)
        columns = {name: _values(table[name]) for name in ("seed", "row", "truth", "decision", "probabilities")}
    except (OSError, KeyError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not a predictions file ({reason}): run the fine-tune again.") from None
    seeds, first = np.unique(columns["seed"], return_index=True)
    runs = []
    for seed in seeds[np.argsort(first)]:
        here = columns["seed"] == seed
        runs.append(
            Predictions(
                seed=int(seed),
                rows=columns["row"][here],
                truth=columns["truth"][here].astype(np.int64),
                decisions=columns["decision"][here].astype(np.int64),
                probabilities=columns["probabilities"][here].astype(np.float32),
            )
        )
    return runs


def _column(values: NDArray[Any]) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _values(column: pa.ChunkedArray) -> NDArray[Any]:
    array = column.combine_chunks()
    if not isinstance(array, pa.FixedSizeListArray):
        return np.asarray(array.to_numpy(zero_copy_only=False))
    return np.asarray(array.flatten().to_numpy(zero_copy_only=False)).reshape(len(array), -1)
