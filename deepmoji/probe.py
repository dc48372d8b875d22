"""A linear probe: the output layer as the logistic regression of frozen features, solved for instead of trained.

On a few hundred texts a few hundred noisy steps do not reach what the convex problem has as its answer. A fine-tune
may stop there (`probe`) or thaw from there (`probe-thaw`).
"""

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deepmoji.model import DeepMoji
from deepmoji.tokens import Examples
from deepmoji.training import predict_features

logger = logging.getLogger(__name__)

STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)  # inverse regularisation; the one with the least validation loss is taken
ABSENT = -20.0  # the logit of a class without a training text


def solve_output(
    model: DeepMoji,
    examples: Mapping[str, Examples],
    class_weights: NDArray[np.float64] | None = None,
    example_weights: NDArray[np.float64] | None = None,
) -> dict[str, Any]:
    """Set the output layer in place; returns what `fit` says of a phase: epochs (none), best_validation_loss, history.

    class_weights: as `fit` takes them; example_weights: (P,) factors of the training examples' loss. The
    mean loss over validation texts decides the strength of the L2 term.
    """
    features = {split: predict_features(model, examples[split])[examples[split].rows] for split in ("train", "val")}
    targets = {split: np.array(examples[split].targets) for split in ("train", "val")}
    best: tuple[float, float, NDArray[np.float64], NDArray[np.float64]] | None = None
    for strength in STRENGTHS:
        weight, bias = _regression(features["train"], targets["train"], model, strength, class_weights, example_weights)
        loss = _loss(features["val"] @ weight.T + bias, targets["val"], model.task)
        logger.info("output layer solved with C=%g: validation loss %.4f", strength, loss)
        if best is None or loss < best[0]:
            best = loss, strength, weight, bias
    assert best is not None
    with torch.no_grad():
        model.output.weight.copy_(torch.from_numpy(best[2]))
        model.output.bias.copy_(torch.from_numpy(best[3]))
    return {"epochs": 0, "best_validation_loss": best[0], "inverse_strength": best[1], "history": []}


def _regression(
    features: NDArray[np.float32],
    targets: NDArray[Any],
    model: DeepMoji,
    strength: float,
    class_weights: NDArray[np.float64] | None,
    example_weights: NDArray[np.float64] | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weight (columns, F) and bias (columns,) of the output layer."""
    if targets.ndim == 2:
        columns = [
            _one(
                features,
                targets[:, k] > 0.5,
                strength,
                None if class_weights is None else {1: class_weights[k]},
                example_weights,
            )
            for k in range(targets.shape[1])
        ]
        return np.concatenate([weight for weight, _ in columns]), np.concatenate([bias for _, bias in columns])
    weights = None if class_weights is None else dict(enumerate(class_weights))
    if model.task == "binary":
        return _one(features, targets > 0, strength, weights, example_weights)
    weight = np.zeros((model.output.out_features, features.shape[1]))
    bias = np.full(model.output.out_features, ABSENT)
    known = np.unique(targets)
    if len(known) == 2:  # scikit-learn then has one column, the difference of the two
        weight[known[1]], bias[known[1]] = (
            part[0] for part in _one(features, targets == known[1], strength, _of_two(weights, known), example_weights)
        )
        bias[known[0]] = 0.0
    elif len(known) > 2:
        weight[known], bias[known] = _fitted(features, targets, strength, weights, example_weights)
    else:
        bias[known] = 0.0
    return weight, bias


def _of_two(weights: dict[int, float] | None, known: NDArray[Any]) -> dict[int, float] | None:
    return None if weights is None else {place: weights[int(label)] for place, label in enumerate(known)}


def _one(
    features: NDArray[np.float32],
    truth: NDArray[np.bool_],
    strength: float,
    weights: dict[int, float] | None,
    example_weights: NDArray[np.float64] | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weight (1, F) and bias (1,) of one yes-or-no column."""
    if truth.all() or not truth.any():
        return np.zeros((1, features.shape[1])), np.array([-ABSENT if truth.all() else ABSENT])
    return _fitted(features, truth.astype(np.int64), strength, weights, example_weights)


def _fitted(
    features: NDArray[np.float32],
    targets: NDArray[Any],
    strength: float,
    weights: dict[int, float] | None,
    example_weights: NDArray[np.float64] | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        # Where the L2 term is weak, what 200 steps have not settled moves the training loss alone.
        warnings.simplefilter("ignore", ConvergenceWarning)
        solver = LogisticRegression(C=strength, class_weight=weights, max_iter=200, tol=1e-3)
        found = solver.fit(features, targets, sample_weight=example_weights)
    return found.coef_.astype(np.float64), found.intercept_.astype(np.float64)


def _loss(logits: NDArray[np.float64], targets: NDArray[Any], task: str) -> float:
    given, truth = torch.from_numpy(logits), torch.from_numpy(targets)
    if task == "multiclass":
        return float(torch.nn.functional.cross_entropy(given, truth))
    wanted = truth.to(given.dtype).reshape(given.shape)
    return float(torch.nn.functional.binary_cross_entropy_with_logits(given, wanted))
