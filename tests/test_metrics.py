"""Metrics: every name against scikit-learn, every misuse refused."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as reference

from deepmoji.errors import InputError, UsageError
from deepmoji.metrics import METRICS, THRESHOLDS, decide, indicator, metrics_for, score, scorer, tune_thresholds

SINGLE: dict[str, Callable[[Any, Any], float]] = {
    "accuracy": lambda t, p: reference.accuracy_score(t, p),
    "macro_f1": lambda t, p: reference.f1_score(t, p, average="macro", zero_division=0),
    "class_average_f1": lambda t, p: reference.f1_score(t, p, average="macro", zero_division=0),
    "micro_f1": lambda t, p: reference.f1_score(t, p, average="micro", zero_division=0),
    "weighted_f1": lambda t, p: reference.f1_score(t, p, average="weighted", zero_division=0),
    "macro_recall": lambda t, p: reference.recall_score(t, p, average="macro", zero_division=0),
}
SEVERAL: dict[str, Callable[[Any, Any], float]] = {
    **SINGLE,
    "jaccard": lambda t, p: reference.jaccard_score(t, p, average="samples", zero_division=1),
}


@given(seed=st.integers(0, 10_000), classes=st.integers(2, 6), rows=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_one_class_a_row_agrees_with_scikit_learn(seed: int, classes: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    truth, predictions = rng.integers(classes, size=rows), rng.integers(classes, size=rows)
    for name, expected in SINGLE.items():
        assert score(name, truth, predictions) == pytest.approx(expected(truth, predictions)), name
    assert score("jaccard", truth, predictions) == pytest.approx(score("accuracy", truth, predictions))
    pairs = truth % 2, predictions % 2
    expected_f1 = reference.f1_score(*pairs, zero_division=0)
    assert score("f1", *pairs) == pytest.approx(expected_f1)


@given(seed=st.integers(0, 10_000), classes=st.integers(2, 5), rows=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_several_labels_a_row_agree_with_scikit_learn(seed: int, classes: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    truth, predictions = rng.integers(2, size=(rows, classes)), rng.integers(2, size=(rows, classes))
    for name, expected in SEVERAL.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = expected(truth, predictions)
        assert score(name, truth, predictions) == pytest.approx(value), name


@given(seed=st.integers(0, 10_000), several=st.booleans())
@settings(max_examples=30, deadline=None)
def test_row_weights_are_repeated_rows(seed: int, several: bool) -> None:
    rng = np.random.default_rng(seed)
    shape: tuple[int, ...] = (20, 3) if several else (20,)
    truth, predictions = rng.integers(2, size=shape), rng.integers(2, size=shape)
    drawn = rng.integers(20, size=20)
    weights = np.bincount(drawn, minlength=20).astype(float)
    for name in SEVERAL:
        repeated = score(name, truth[drawn], predictions[drawn])
        assert scorer(name, truth, predictions)(weights) == pytest.approx(repeated), name


def test_top_k_counts_the_class_among_the_highest() -> None:
    scores = np.array([[0.1, 0.2, 0.7, 0, 0, 0], [0.5, 0.1, 0.1, 0.1, 0.1, 0.1], [0.3, 0.3, 0.1, 0.1, 0.1, 0.1]])
    assert score("top1", [2, 1, 1], scores) == pytest.approx(1 / 3)
    assert score("top5", [2, 1, 5], scores) == pytest.approx(2 / 3)


def test_ranking_is_accuracy_of_the_best_class() -> None:
    rng = np.random.default_rng(3)
    scores, truth = rng.random((200, 7)), rng.integers(7, size=200)
    assert score("top1", truth, scores) == score("accuracy", truth, scores) == np.mean(scores.argmax(1) == truth)
    assert score("top5", truth, scores) == pytest.approx(reference.top_k_accuracy_score(truth, scores, k=5))


def test_probabilities_become_predictions() -> None:
    two = np.array([0.2, 0.5, 0.9])
    truth = [0, 1, 1]
    both = np.stack([1 - two, two], axis=1)
    assert score("accuracy", truth, two) == score("accuracy", truth, two[:, None]) == 1
    assert score("f1", truth, two, thresholds=0.6) == score("f1", truth, both, thresholds=[0.6]) < 1
    assert decide(both, labels=True, thresholds=[0.1, 0.9]).tolist() == [[1, 0], [1, 0], [0, 1]]
    several = np.array([[0.3, 0.6], [0.4, 0.1]])
    assert score("jaccard", [[1, 1], [1, 0]], several) == pytest.approx(0.25)
    assert score("jaccard", [[1, 1], [1, 0]], several, thresholds=0.3) == 1


def test_class_average_takes_thresholds_of_each_class_against_the_rest() -> None:
    scores = np.array([[0.4, 0.3, 0.2], [0.2, 0.3, 0.1], [0.1, 0.05, 0.2]])
    truth = np.array([0, 1, 2])
    limits = [0.3, 0.3, 0.2]
    expected = reference.f1_score(indicator(truth, 3), scores >= limits, average="macro")
    assert score("class_average_f1", truth, scores, thresholds=limits) == pytest.approx(expected)
    with pytest.raises(UsageError, match="takes no thresholds"):
        score("accuracy", truth, scores, thresholds=limits)


@pytest.mark.parametrize("name", ["weighted", "", "F1", "acc", "top3"])
def test_an_unknown_metric_is_refused_with_the_list(name: str) -> None:
    with pytest.raises(UsageError) as error:
        score(name, [0, 1], [0, 1])
    assert all(known in str(error.value) for known in METRICS)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_gives_one_for_the_truth_itself(name: str) -> None:
    truth = np.array([0, 1, 1, 0])
    assert score(name, truth, indicator(truth, 2).astype(float)) == 1


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_metrics_of_a_task_work_on_it(task: str) -> None:
    rng = np.random.default_rng(1)
    truth: NDArray[np.int64] = rng.integers(2, size=(9, 4)) if task == "multilabel" else rng.integers(2, size=9)
    values = [score(name, truth, truth) for name in metrics_for(task)]
    assert len(values) >= 5
    assert all(0 <= value <= 1 for value in values)
    with pytest.raises(UsageError, match="no task"):
        metrics_for(task + "s")


@pytest.mark.parametrize(
    ("name", "truth", "scores", "error"),
    [
        ("f1", [0, 1, 2], [0, 1, 2], UsageError),
        ("f1", [[0, 1]], [[0, 1]], UsageError),
        ("top5", [0, 1], [0, 1], UsageError),
        ("top1", [[0, 1]], [[0.5, 0.1]], UsageError),
        ("accuracy", [0, 1], [0], InputError),
        ("accuracy", [], [], InputError),
        ("accuracy", [0, 1], [np.nan, 1.0], InputError),
        ("accuracy", [0, -1], [0, 1], InputError),
        ("accuracy", [0, 2], [0.1, 0.9], InputError),
        ("accuracy", [0, 3], [[0.1, 0.2, 0.7]] * 2, InputError),
        ("accuracy", [[0, 1]], [[0, 1, 1]], InputError),
        ("accuracy", [[0, 2]], [[0, 1]], InputError),
        ("accuracy", ["joy", "fear"], ["joy", "fear"], InputError),
        ("accuracy", [0, 1], [[0, 1], [1, 0]], InputError),
        ("accuracy", [0.5, 1], [0, 1], InputError),
    ],
)
def test_unusable_input_is_refused(name: str, truth: object, scores: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        score(name, truth, scores)  # type: ignore[arg-type]


def test_tuned_thresholds_are_the_best_of_the_range() -> None:
    rng = np.random.default_rng(5)
    truth = rng.random((300, 3)) < 0.2
    probabilities = np.clip(0.15 * truth + rng.random((300, 3)) * 0.3, 0, 1)
    limits = tune_thresholds(truth, probabilities)
    assert limits.shape == (3,)
    assert set(limits) <= set(THRESHOLDS)
    for column in range(3):
        reached = [reference.f1_score(truth[:, column], probabilities[:, column] >= limit) for limit in THRESHOLDS]
        found = reference.f1_score(truth[:, column], probabilities[:, column] >= limits[column])
        assert found == pytest.approx(max(reached))


def test_thresholds_of_equal_worth_give_the_middle_one() -> None:
    assert tune_thresholds([0, 1], [0.10, 0.30]) == pytest.approx([0.21])
    assert tune_thresholds([0, 1, 2], np.eye(3)).shape == (3,)
