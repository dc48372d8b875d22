"""Baselines that learn word vectors from the set alone: an LSTM, and its vectors in gradient-boosted trees.

Badjatiya et al. 2017: embedding -> dropout .25 -> LSTM 50 -> dropout .5 -> softmax; then the mean of a text's
learned vectors goes into gradient-boosted trees. Their .93 F1 comes of networks that had learned from the folds
they were tested on. Here the folds are nested: `badjatiya` trains the network on the training rows alone, and no label
of a test row reaches network, trees or thresholds. `badjatiya-leaky` differs in one thing, that its network learns from
all rows, test labels included, and is there to show how much that is worth.

The trees learn from the rows that the network learned from. Vectors that know the labels of the trees' own rows make
these rows look easier than test rows are, which may cost the baseline some of its score but tells it nothing of test
rows. To learn vectors on one half and trees on the other would cost each of them half of sets of a few hundred texts,
and vectors of several networks have no space in common.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from deepmoji.datasets import Dataset
from deepmoji.finetuning import predict
from deepmoji.model import DeepMoji, Task
from deepmoji.phases import Phase
from deepmoji.predictions import Judged, judge, rows_of
from deepmoji.tokens import Examples, encode_examples
from deepmoji.training import fit
from deepmoji.vocabulary import build_vocabulary, count_words

EMBEDDING_SIZE = 200
HIDDEN_SIZE = 50
MAX_LENGTH = 200  # as the fine-tunes of real presets
VOCABULARY_SIZE = 20_000
PHASE = Phase("lstm", ("all",), learning_rate=0.001, epochs=30, patience=3)
BATCH_SIZE = 32
TREES = 200


class PlainLSTM(DeepMoji):
    """Embedding, one LSTM, its last state (B, H) as features; has what `fit` asks of a model."""

    def __init__(self, vocabulary_size: int, classes: int, task: Task) -> None:
        super().__init__(
            vocabulary_size, classes, embedding_size=EMBEDDING_SIZE, hidden_size=HIDDEN_SIZE, task=task,
            embedding_dropout=0.25, final_dropout=0.5, attention=False,
        )  # fmt: skip
        self.feature_size = HIDDEN_SIZE
        self.lstm0 = nn.LSTM(EMBEDDING_SIZE, HIDDEN_SIZE, batch_first=True)
        self.lstm1 = None  # type: ignore[assignment]
        self.output = nn.Linear(HIDDEN_SIZE, classes)

    def features(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Last states (B, H) of ids (B, T); no attention, so its weights (B, T) are 0. Empty texts give 0."""
        lengths = lengths.cpu()
        embedded = self.channel_dropout(self.embedding(ids).transpose(1, 2)).transpose(1, 2)
        packed = pack_padded_sequence(embedded, lengths.clamp(min=1), batch_first=True, enforce_sorted=False)
        _, (last, _) = self.lstm0(packed)
        return last[0].float() * (lengths > 0).to(last.device)[:, None], torch.zeros(ids.shape, device=ids.device)


def lstm(dataset: Dataset, seed: int) -> Judged:
    """The network alone."""
    model, examples, facts = _trained(dataset, seed, leaky=False)
    val, test = (predict(model, examples[split]) for split in ("val", "test"))
    return replace(judge(dataset, seed, val, test), facts=facts)


def badjatiya(dataset: Dataset, seed: int) -> Judged:
    """Trees on the mean word vectors of a network that saw training rows only."""
    return _trees_on_vectors(dataset, seed, leaky=False)


def badjatiya_leaky(dataset: Dataset, seed: int) -> Judged:
    """The same with a network that saw the test labels: not a result, a measure of the leak."""
    return _trees_on_vectors(dataset, seed, leaky=True)


def _trained(dataset: Dataset, seed: int, *, leaky: bool) -> tuple[PlainLSTM, dict[str, Examples], dict[str, Any]]:
    rows = {split: rows_of(dataset, split) for split in ("train", "val", "test")}
    rows["fit"] = np.concatenate(list(rows.values())) if leaky else rows["train"]
    texts = {split: [dataset.texts[row] for row in rows[split]] for split in rows}
    vocabulary = build_vocabulary(count_words(texts["fit"]), VOCABULARY_SIZE)
    kind = np.float32 if dataset.task == "multilabel" else np.int64
    examples = {
        split: encode_examples(texts[split], dataset.labels[rows[split]].astype(kind), vocabulary, MAX_LENGTH)
        for split in rows
    }
    truncated = {}
    for split in ("train", "val", "test"):
        counts = np.diff(vocabulary.encode_flat(texts[split], None)[1])
        truncated[split] = {"texts": int((counts > MAX_LENGTH).sum()), "of": len(counts)}
    columns = 1 if dataset.task == "binary" else len(dataset.classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = PlainLSTM(len(vocabulary), columns, dataset.task)  # type: ignore[arg-type]
    fit(model, examples["fit"], examples["val"], [PHASE], batch_size=BATCH_SIZE, seed=seed)
    return model, examples, {"max_length": MAX_LENGTH, "truncated": truncated}


def _trees_on_vectors(dataset: Dataset, seed: int, *, leaky: bool) -> Judged:
    model, examples, facts = _trained(dataset, seed, leaky=leaky)
    vectors = model.embedding.weight.detach().numpy()
    features = {split: _mean_vectors(vectors, examples[split]) for split in ("train", "val", "test")}
    train = dataset.labels[rows_of(dataset, "train")]
    classes = len(dataset.classes)
    if train.ndim == 1:
        val, test = _trees(features, train, classes, seed)
    else:
        columns = [_trees(features, train[:, k].astype(np.int64), 2, seed) for k in range(classes)]
        val, test = (np.stack([column[split][:, 1] for column in columns], axis=1) for split in (0, 1))
    return replace(judge(dataset, seed, val, test), facts=facts)


def _mean_vectors(vectors: NDArray[np.float32], examples: Examples) -> NDArray[np.float32]:
    """(n, E) mean of each text's word vectors; 0 for an empty text."""
    means = np.zeros((len(examples.offsets) - 1, vectors.shape[1]), dtype=np.float32)
    for row, (start, end) in enumerate(zip(examples.offsets[:-1], examples.offsets[1:], strict=True)):
        if end > start:
            means[row] = vectors[examples.ids[start:end]].mean(axis=0)
    return means


def _trees(
    features: dict[str, NDArray[np.float32]], labels: NDArray[np.int64], classes: int, seed: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Probabilities (rows, classes) on validation and test; classes without a training row get 0."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    known = np.unique(labels)
    full = {split: np.zeros((len(features[split]), classes)) for split in ("val", "test")}
    model = None
    if len(known) > 1:
        model = HistGradientBoostingClassifier(max_iter=TREES, early_stopping=False, random_state=seed)
        model.fit(features["train"], labels)
    for split, array in full.items():
        array[:, known] = 1.0 if model is None else model.predict_proba(features[split])
    return full["val"], full["test"]
