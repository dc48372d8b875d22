"""A model folder in use: predictions, features, attention, for texts or for id matrices.

n texts, T token columns, C classes, F features (4 x hidden + embedding, 2,304 at the published sizes).
Answers come in the order of the texts and do not depend on what else is in the call (to 1e-5 in fp32).

Open cases: a text without tokens gets what the model says without evidence (its output bias) and zero features;
a text longer than `max_length` tokens is read up to there; both are counted in a warning of the log, and `explain`
shows the tokens that were not read.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepmoji.errors import UsageError
from deepmoji.text import tokenize

if TYPE_CHECKING:
    import torch

    from deepmoji.checkpoints import ModelFolder

log = logging.getLogger(__name__)

Floats = NDArray[np.float32]
BATCH_TOKENS = 16_384  # bounds memory: at the published sizes about 0.5 GB of activations
BATCH_ROWS = 1_024
DEFAULT_LENGTH = 30  # paper, section 3.1


class Prediction(NamedTuple):
    """A label (an emoji or a class name) and its probability."""

    label: str
    probability: float


class Attention(NamedTuple):
    """A token and its share of the attention; the shares of a text sum to 1."""

    token: str
    attention: float


class Explanation(list[Attention]):
    """The tokens of one text in input order. The last `truncated` of them were not read: their attention is 0."""

    def __init__(self, tokens: Sequence[Attention], truncated: int) -> None:
        super().__init__(tokens)
        self.truncated = truncated


class Model:
    """A loaded model; `name` says which (a folder or a registry version), `labels` its classes in order."""

    def __init__(self, folder: "ModelFolder", name: str, device: str, precision: str, max_length: int | None) -> None:
        from deepmoji.precision import choose_device, for_inference, uses_bf16

        self.name = name
        self.labels = folder.labels
        self.vocabulary = folder.vocabulary
        self.config = folder.config
        self.metrics = folder.metrics
        self.max_length = int(max_length or folder.config.get("max_length") or DEFAULT_LENGTH)
        self._device = choose_device(device)
        self._network = for_inference(folder.model.to(self._device), uses_bf16(precision, self._device))

    @property
    def task(self) -> str:
        return self._network.task

    def predict(self, texts: Sequence[str], top_k: int = 5) -> list[list[Prediction]]:
        """The `top_k` most probable labels of each text, best first; all of them where the model has fewer."""
        return self.rank(self.probabilities(texts), top_k)

    def rank(self, probabilities: Floats, top_k: int) -> list[list[Prediction]]:
        """The `top_k` best of each row of probabilities (n, C), best first; ties in label order."""
        if top_k < 1:
            raise UsageError(f"top_k is {top_k}: give 1 or more.")
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
        return [
            [Prediction(self.labels[c], float(row[c])) for c in best]
            for row, best in zip(probabilities, order, strict=True)
        ]

    @property
    def thresholds(self) -> list[float]:
        """From which probability on a label counts, found on validation texts; empty: the most probable label does."""
        return list(self.config.get("thresholds") or [])

    def decide(self, probabilities: Floats) -> list[list[str]]:
        """The labels that count, of each row of probabilities (n, C), in label order; with thresholds maybe none."""
        limits = self.thresholds
        if not limits:
            return [[self.labels[best]] for best in probabilities.argmax(axis=1)]
        if len(limits) < len(self.labels):  # two classes have one threshold, that of the second
            return [[self.labels[int(row[1] >= limits[0])]] for row in probabilities]
        return [
            [name for name, p, limit in zip(self.labels, row, limits, strict=True) if p >= limit]
            for row in probabilities
        ]

    def probabilities(self, texts: Sequence[str]) -> Floats:
        """(n, C) float32. Each row sums to 1, but for a multilabel model, where every label stands for itself."""
        return self._probabilities(self._run(*self._encode(texts))[0])

    def encode(self, texts: Sequence[str]) -> Floats:
        """Features (n, F) float32: the input of the output layer."""
        return self._run(*self._encode(texts))[1]

    def explain(self, texts: Sequence[str]) -> list[Explanation]:
        """The tokens of each text with their attention, in input order.

        Tokens appear as the model's vocabulary rules make them: lower case, CUSTOM_URL for a link, and so on.
        UsageError for a model without attention.
        """
        self._check_attention()
        ids, offsets = self._encode(texts)
        weights = self._run(ids, offsets)[2]
        return [
            _explanation(tokenize(text), weights[start:end])
            for text, start, end in zip(texts, offsets[:-1], offsets[1:], strict=True)
        ]

    def probabilities_from_ids(self, ids: NDArray[Any]) -> Floats:
        """As `probabilities`, of zero-padded ids (n, T)."""
        return self._probabilities(self._run(*self._flat(ids))[0])

    def encode_from_ids(self, ids: NDArray[Any]) -> Floats:
        """As `encode`, of zero-padded ids (n, T)."""
        return self._run(*self._flat(ids))[1]

    def attention_from_ids(self, ids: NDArray[Any]) -> Floats:
        """Attention (n, T) float32 of zero-padded ids (n, T): 0 on the padding."""
        self._check_attention()
        flat, offsets = self._flat(ids)
        present = _present(np.shape(ids)[1], np.diff(offsets))
        weights = np.zeros(present.shape, dtype=np.float32)
        weights[present] = self._run(flat, offsets)[2]
        return weights

    def _check_attention(self) -> None:
        if self._network.attention is None:
            raise UsageError(f"{self.name} was trained without attention: ask for predictions or features.")

    def _encode(self, texts: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        _check_texts(texts)
        ids, offsets, truncated = self.vocabulary.encode_flat(list(texts), self.max_length)
        if truncated:
            log.warning("%d of %d texts were read up to their first %d tokens", truncated, len(texts), self.max_length)
        empty = int((np.diff(offsets) == 0).sum())
        if empty:
            log.warning("%d of %d texts hold no token: they get the model's answer without evidence", empty, len(texts))
        return ids, offsets

    def _flat(self, ids: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
        ids = np.asarray(ids)
        if ids.ndim != 2 or ids.dtype.kind not in "iu":
            raise UsageError(
                f"The ids have shape {ids.shape} and type {ids.dtype}: give a matrix (texts, tokens) of whole numbers."
            )
        if ids.size and (ids.min() < 0 or ids.max() >= len(self.vocabulary)):
            raise UsageError(
                f"The ids reach from {ids.min()} to {ids.max()}, the vocabulary from 0 to {len(self.vocabulary) - 1}: "
                "encode the texts with this model's vocabulary."
            )
        # A zero inside a text is a token like any other (MASK); behind its last word it is padding.
        lengths = ((ids != 0) * np.arange(1, ids.shape[1] + 1)).max(axis=1, initial=0)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return ids[_present(ids.shape[1], lengths)], offsets

    def _run(self, ids: NDArray[Any], offsets: NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
        """Logits (n, C), features (n, F) and flat attention of flat ids, in batches of like length."""
        import torch

        lengths = np.diff(offsets)
        network = self._network
        logits = np.empty((len(lengths), network.output.out_features), dtype=np.float32)
        features = np.empty((len(lengths), network.feature_size), dtype=np.float32)
        attention = np.empty(len(ids), dtype=np.float32)
        for rows in _batches(lengths):
            width = max(int(lengths[rows].max()), 1)
            present = _present(width, lengths[rows])
            places = (offsets[rows][:, None] + np.arange(width))[present]
            padded = np.zeros(present.shape, dtype=np.int64)
            padded[present] = ids[places]
            with torch.inference_mode():
                found, weights = network.features(
                    torch.from_numpy(padded).to(self._device), torch.from_numpy(lengths[rows])
                )
                scores = network.output(found)
            logits[rows], features[rows] = _numpy(scores), _numpy(found)
            attention[places] = _numpy(weights)[present]
        return logits, features, attention

    def _probabilities(self, logits: Floats) -> Floats:
        import torch

        from deepmoji.model import probabilities

        values = _numpy(probabilities(torch.from_numpy(logits), self.task))
        return np.concatenate([1 - values, values], axis=1) if self.task == "binary" else values


def load_folder(
    folder: Path, *, name: str = "", device: str = "auto", precision: str = "fp32", max_length: int | None = None
) -> Model:
    """The model of a folder.

    name: what answers call the model, by default the folder. precision: fp32, bf16 or auto (bf16 where the hardware
    is faster with it). max_length: tokens read of a text, by default what the model was trained with.
    InputError: not a whole model folder. UsageError: an option out of range.
    """
    from deepmoji.checkpoints import load_model

    if max_length is not None and max_length < 1:
        raise UsageError(f"max_length is {max_length}: give 1 or more.")
    return Model(load_model(folder), name or str(folder), device, precision, max_length)


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise UsageError("One string came where a list of texts belongs: put it in brackets.")
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise UsageError(f"Text {place} is of type {type(text).__name__}: give strings.")


def _explanation(tokens: list[str], weights: Floats) -> Explanation:
    unread = len(tokens) - len(weights)
    shares = [*map(float, weights), *[0.0] * unread]
    return Explanation([Attention(token, share) for token, share in zip(tokens, shares, strict=True)], unread)


def _present(width: int, lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n, width): which columns of a padded matrix hold tokens."""
    return np.arange(width)[None, :] < lengths[:, None]


def _batches(lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Rows by falling length, cut so that a padded batch stays within BATCH_TOKENS (or is a single text)."""
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        rows = min(BATCH_ROWS, max(BATCH_TOKENS // max(int(lengths[order[start]]), 1), 1))
        batches.append(order[start : start + rows])
        start += rows
    return batches


def _numpy(values: "torch.Tensor") -> Floats:
    array: Floats = values.float().cpu().numpy()
    return array
