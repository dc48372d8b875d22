"""The figures of merit: one table of names, each of which works or is refused.

Every metric but top1 and top5 is made of counts, so it is written once as a function of row weights: weight one
for each row gives the score, the weights of a bootstrap resample give the resampled score (benchmark.py). The
values are those of scikit-learn, with 0 where a class gives nothing to divide by.

n rows, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepmoji.errors import InputError, UsageError

Scorer = Callable[[NDArray[np.float64]], float]

# The threshold that is best for F1 is half the F1 it reaches (Lipton et al. 2014), so never above 0.5.
# 0.01-0.49 is also the range that the paper's code searches.
THRESHOLDS = np.arange(1, 50) / 100


@dataclass(frozen=True)
class Counts:
    """What the metrics are made of: per class (C,) how often right, predicted and true; per row the overlap.

    `exact` is the share of rows that are wholly right, `overlap` the mean over rows of |true and predicted| /
    |true or predicted|.
    """

    right: NDArray[np.float64]
    predicted: NDArray[np.float64]
    true: NDArray[np.float64]
    exact: float
    overlap: float


def _accuracy(counts: Counts) -> float:
    return counts.exact


def _jaccard(counts: Counts) -> float:
    return counts.overlap


def _f1_by_class(counts: Counts) -> NDArray[np.float64]:
    return _divide(2 * counts.right, counts.predicted + counts.true)


def _macro_f1(counts: Counts) -> float:
    return float(_f1_by_class(counts).mean())


def _micro_f1(counts: Counts) -> float:
    total = counts.predicted.sum() + counts.true.sum()
    return float(_divide(2 * counts.right.sum(), total))


def _weighted_f1(counts: Counts) -> float:
    return float(_divide((_f1_by_class(counts) * counts.true).sum(), counts.true.sum()))


def _macro_recall(counts: Counts) -> float:
    return float(_divide(counts.right, counts.true).mean())


def _positive_f1(counts: Counts) -> float:
    return float(_f1_by_class(counts)[-1])


_FROM_COUNTS: dict[str, Callable[[Counts], float]] = {
    "accuracy": _accuracy,
    "macro_f1": _macro_f1,
    "micro_f1": _micro_f1,
    "weighted_f1": _weighted_f1,
    "class_average_f1": _macro_f1,
    "macro_recall": _macro_recall,
    "jaccard": _jaccard,
    "f1": _positive_f1,
}
_TOP = {"top1": 1, "top5": 5}

METRICS = (*_FROM_COUNTS, *_TOP)


def metrics_for(task: str) -> tuple[str, ...]:
    """The metrics that make sense for a task ("binary", "multiclass" or "multilabel"), the ranking ones aside."""
    shared = ("accuracy", "macro_f1", "micro_f1", "weighted_f1", "macro_recall")
    extra = {"binary": ("f1",), "multiclass": (), "multilabel": ("class_average_f1", "jaccard")}
    if task not in extra:
        raise UsageError(f"There is no task {task!r}: choose one of {', '.join(extra)}.")
    return shared + extra[task]


def check_metric(name: str) -> None:
    """Refuse a metric that does not exist, with the list of those that do."""
    if name not in METRICS:
        raise UsageError(f"There is no metric {name!r}: choose one of {', '.join(METRICS)}.")


def score(name: str, truth: ArrayLike, scores: ArrayLike, *, thresholds: ArrayLike | None = None) -> float:
    """One metric of predictions against the truth, between 0 and 1, higher is better.

    truth: (n,) class ids, or (n, C) zeros and ones for several labels a row.
    scores: predictions of the shape of `truth` (integers or booleans), or probabilities (floats): (n,) or (n, 1)
        for the second of two classes, (n, C) otherwise.
    thresholds: a number or (C,): from which probability on a label counts as predicted; 0.5 if not given. Class
        ids with (n, C) probabilities are decided by the highest one instead, unless thresholds are given.

    accuracy      share of rows right; with several labels a row, all of them
    f1            F1 of the second of two classes
    macro_f1      mean over the classes of their F1; classes that occur neither in truth nor predictions are left
                  out, but never a column of an (n, C) truth
    class_average_f1  the same mean, each class for itself against the rest (paper section 5)
    micro_f1, weighted_f1, macro_recall  as scikit-learn
    jaccard       mean over rows of shared labels / labels of either; 1 where there are none (SemEval-2018 1.5)
    top1, top5    share of rows whose class is among the most probable 1 or 5; equal ones rank by class id

    Raises UsageError for an unknown metric or one that does not fit the task, InputError for unusable arrays.
    """
    check_metric(name)
    true, given = _arrays(truth, scores)
    if name in _TOP:
        return _top(name, true, given)
    if thresholds is not None and true.ndim == 1 and given.ndim == 2 and given.shape[1] > 2:
        if name != "class_average_f1":
            raise UsageError(
                f"{name} of one class a row takes no thresholds: leave them out, or score class_average_f1."
            )
        true = indicator(true, given.shape[1])
    weights = np.ones(len(true))
    return scorer(name, true, decide(given, labels=true.ndim == 2, thresholds=thresholds))(weights)


def scorer(name: str, truth: NDArray[Any], predictions: NDArray[Any]) -> Scorer:
    """A metric of fixed predictions, as a function of row weights (n,); truth and predictions (n,) or (n, C)."""
    check_metric(name)
    if name in _TOP:
        raise UsageError(f"{name} needs probabilities, not predictions: choose one of {', '.join(_FROM_COUNTS)}.")
    if truth.shape != predictions.shape:
        raise InputError(
            f"Truth has the shape {truth.shape} and the predictions {predictions.shape}: give one row to each text."
        )
    compute = _FROM_COUNTS[name]
    if truth.ndim == 2:
        if name == "f1":
            raise UsageError("f1 is for two classes, and this has several labels a row: use macro_f1 instead.")
        return _label_scorer(compute, truth.astype(bool), predictions.astype(bool))
    if name == "f1":
        if not (np.isin(truth, (0, 1)).all() and np.isin(predictions, (0, 1)).all()):
            raise UsageError("f1 is for the classes 0 and 1, and this has more: use macro_f1 instead.")
        return _class_scorer(compute, truth, predictions, always=(0, 1))
    return _class_scorer(compute, truth, predictions)


def decide(scores: NDArray[Any], *, labels: bool, thresholds: ArrayLike | None = None) -> NDArray[np.int64]:
    """Predictions from probabilities: (n, C) zeros and ones if `labels`, else (n,) class ids.

    scores: floats as in `score`; integers are predictions already and come back as they are.
    """
    if not np.issubdtype(scores.dtype, np.floating):
        return np.asarray(scores, dtype=np.int64)
    limits = np.asarray(0.5 if thresholds is None else thresholds, dtype=np.float64)
    if labels:
        return np.asarray(scores >= limits).astype(np.int64)
    if scores.ndim == 2 and scores.shape[1] > 1 and thresholds is None:
        return np.asarray(np.argmax(scores, axis=1), dtype=np.int64)
    second = scores if scores.ndim == 1 else scores[:, -1]
    return np.asarray(second >= limits.reshape(-1)[-1]).astype(np.int64)


def tune_thresholds(truth: ArrayLike, probabilities: ArrayLike) -> NDArray[np.float64]:
    """Per class the threshold among 0.01-0.49 with the highest F1; for validation rows only, never for test rows.

    truth: (n,) class ids or (n, C) zeros and ones; probabilities: (n,) or (n, 1) for the second of two classes, or
    (n, C). Returns (1,) or (C,). Among equally good thresholds the middle one is taken: a small validation set
    leaves wide plateaus, and their edges are chance.
    """
    true, given = _arrays(truth, probabilities)
    columns = (given if given.ndim == 2 else given[:, None]).astype(np.float64)
    if true.ndim == 1:
        true = true[:, None] if columns.shape[1] == 1 else indicator(true, columns.shape[1])
    return np.array([_best_threshold(true[:, k] > 0, columns[:, k]) for k in range(columns.shape[1])])


def indicator(labels: NDArray[Any], classes: int) -> NDArray[np.int64]:
    """Class ids (n,) as zeros and ones (n, classes); what has that form already stays as it is."""
    if labels.ndim == 2:
        return labels.astype(np.int64)
    if len(labels) and labels.max() >= classes:
        raise InputError(f"A class id is {labels.max()}, but there are {classes} classes: ids go from 0 up.")
    return np.asarray(labels[:, None] == np.arange(classes)).astype(np.int64)


def _best_threshold(true: NDArray[np.bool_], probabilities: NDArray[np.float64]) -> float:
    above = probabilities[:, None] >= THRESHOLDS
    f1 = _divide(2.0 * (above & true[:, None]).sum(axis=0), above.sum(axis=0) + true.sum())
    best = np.flatnonzero(f1 == f1.max())
    return float(THRESHOLDS[best[len(best) // 2]])


def _arrays(truth: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Check shapes and values once, where they come in."""
    true, given = np.asarray(truth), np.asarray(scores)
    if true.ndim not in (1, 2) or given.ndim not in (1, 2) or len(true) != len(given):
        raise InputError(
            f"Truth has the shape {true.shape} and the scores {given.shape}: give (n,) or (n, C), a row to each text."
        )
    if len(true) == 0:
        raise InputError("There are no rows to score: give at least one.")
    if true.dtype.kind not in "biuf" or given.dtype.kind not in "biuf":
        raise InputError(f"Truth is {true.dtype} and the scores {given.dtype}: give numbers, class ids and not names.")
    if not (np.isfinite(true).all() and np.isfinite(given).all()):
        raise InputError("Truth or scores hold NaN or infinity: give finite numbers.")
    if (true != np.floor(true)).any() or true.min() < 0 or (true.ndim == 2 and true.max() > 1):
        raise InputError("Truth holds something else than class ids from 0 up, or zeros and ones (n, C).")
    if true.ndim == 2 and true.shape != given.shape:
        raise InputError(f"Truth has the shape {true.shape} and the scores {given.shape}: give one score to a label.")
    if true.ndim == 1:
        _check_classes(true, given)
    return true.astype(np.int64), given


def _check_classes(true: NDArray[Any], given: NDArray[Any]) -> None:
    floats = given.dtype.kind == "f"
    if given.ndim == 2 and not floats:
        raise InputError("Class ids are compared with (n,) integers or (n, C) floats: give probabilities as floats.")
    if floats:
        known = given.shape[1] if given.ndim == 2 and given.shape[1] > 1 else 2
        if true.max() >= known:
            raise InputError(f"Truth holds class {true.max():g}, but the scores are of {known} classes.")


def _top(name: str, truth: NDArray[np.int64], scores: NDArray[Any]) -> float:
    if truth.ndim != 1 or scores.ndim != 2 or scores.dtype.kind != "f":
        raise UsageError(f"{name} needs class ids (n,) and probabilities (n, C): this has another form.")
    ranked = np.argsort(-scores.astype(np.float64), axis=1, kind="stable")[:, : _TOP[name]]
    return float((ranked == truth[:, None]).any(axis=1).mean())


def _class_scorer(
    compute: Callable[[Counts], float], truth: NDArray[Any], predictions: NDArray[Any], always: tuple[int, ...] = ()
) -> Scorer:
    """One class a row: all from the confusion matrix; classes in `always` count even where they are absent."""
    classes = np.unique(np.concatenate([truth, predictions, np.array(always, dtype=truth.dtype)]))
    cells = np.searchsorted(classes, truth) * len(classes) + np.searchsorted(classes, predictions)
    forced = np.isin(classes, always)

    def weighted(weights: NDArray[np.float64]) -> float:
        confusion = np.bincount(cells, weights=weights, minlength=len(classes) ** 2).reshape(len(classes), -1)
        right, predicted, true = confusion.diagonal(), confusion.sum(axis=0), confusion.sum(axis=1)
        present = (predicted + true > 0) | forced
        share = float(right.sum() / confusion.sum())
        return compute(Counts(right[present], predicted[present], true[present], share, share))

    return weighted


def _label_scorer(
    compute: Callable[[Counts], float], truth: NDArray[np.bool_], predictions: NDArray[np.bool_]
) -> Scorer:
    """Several labels a row: counts per column, overlaps per row."""
    right = (truth & predictions).astype(np.float64)
    either = (truth | predictions).sum(axis=1)
    overlap = np.where(either == 0, 1.0, right.sum(axis=1) / np.maximum(either, 1))
    exact = (truth == predictions).all(axis=1).astype(np.float64)
    predicted, true = predictions.astype(np.float64), truth.astype(np.float64)

    def weighted(weights: NDArray[np.float64]) -> float:
        means = [float(weights @ rows / weights.sum()) for rows in (exact, overlap)]
        return compute(Counts(weights @ right, weights @ predicted, weights @ true, *means))

    return weighted


def _divide(above: ArrayLike, below: ArrayLike) -> NDArray[np.float64]:
    """Division with 0 for x / 0."""
    top, bottom = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    return np.asarray(np.divide(top, bottom, out=np.zeros(np.broadcast(top, bottom).shape), where=bottom > 0))
