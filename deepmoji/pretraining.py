"""The pretraining stage: predict which emoji stood in the text (paper, section 3.1), then say how well it does.

deepmoji pretrain                                                 one process, CPU or GPU
torchrun --standalone --nproc-per-node 2 -m deepmoji pretrain     the same stage on more
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from deepmoji.checkpoints import check_place, count_parameters, save_model, write_json
from deepmoji.emojis import load_labels
from deepmoji.errors import InputError, TrainingError
from deepmoji.insight import (
    draw_plots,
    markdown,
    nearest_labels,
    phrase_predictions,
    read_sentiments,
    sentiment_agreement,
    similarities,
)
from deepmoji.model import DeepMoji
from deepmoji.phases import Phase
from deepmoji.progress import Report
from deepmoji.tokens import Examples, load_store, read_meta
from deepmoji.training import fit, predict_logits
from deepmoji.vocabulary import Vocabulary

log = logging.getLogger(__name__)

# Arguments of `pretrain` that leave the weights as they are; metrics.json has the others.
NO_OPTIONS = ("tokens", "out", "checkpoints", "checkpoint_seconds", "sentiment_ranking", "report")
RANK_TIMEOUT = timedelta(seconds=45)  # a process that hangs is noticed within a minute


def pretrain(
    tokens: Path,
    out: Path,
    *,
    embedding_size: int,
    hidden_size: int,
    embedding_dropout: float,
    final_dropout: float,
    attention: bool,
    learning_rate: float,
    decay: bool,
    batch_size: int,
    epochs: int,
    epoch_size: int | None,
    patience: int | None,
    balance: float,
    precision: str,
    checkpoint_seconds: float,
    seed: int,
    checkpoints: Path | None = None,
    sentiment_ranking: Path | None = None,
    report: Report | None = None,
) -> dict[str, Any]:
    """Train on a token store; returns the metrics.

    `out` becomes a model folder with a report.md of what was learned, its plots, and insight.json, the same as data.

    The metrics are those of `evaluate` on the test split, and more. Under torchrun the first process writes; the
    others return {} when the training is done. `sentiment_ranking`: a CSV of emojis with sentiment counts, against
    which the similarities are checked. TrainingError, InputError: see errors.
    """
    given = {name: value for name, value in locals().items() if name not in NO_OPTIONS}
    check_place(out)
    vocabulary = Vocabulary.load(tokens / "vocabulary.json")
    labels = load_labels(tokens / "labels.json").names
    # Read before the hours of training, not after them.
    sentiments = read_sentiments(sentiment_ranking, labels) if sentiment_ranking is not None else None
    splits = {name: _load_split(tokens / name, vocabulary) for name in ("train", "val", "test")}
    max_length = int(read_meta(tokens / "train")["max_length"])
    with processes() as rank:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = DeepMoji(
                len(vocabulary),
                len(labels),
                embedding_size=embedding_size,
                hidden_size=hidden_size,
                embedding_dropout=embedding_dropout,
                final_dropout=final_dropout,
                attention=attention,
            )
        result = fit(
            model,
            splits["train"],
            splits["val"],
            [Phase("pretrain", ("all",), learning_rate, epochs, patience, epoch_size, decay)],
            batch_size=batch_size,
            seed=seed,
            balance=balance,
            precision=precision,
            checkpoints=checkpoints,
            checkpoint_seconds=checkpoint_seconds,
            report=report,
            context={"vocabulary": vocabulary.digest, "labels": " ".join(labels)},
        )
    if rank > 0:
        return {}
    test = splits["test"]
    logits = predict_logits(model, test, precision=precision)[test.rows]
    history = result.phases[0]["history"]
    mixes = label_mixes(np.bincount(splits["train"].targets, minlength=len(labels)), balance)
    metrics = evaluate(logits, test.targets, labels, mixes) | {
        "mixes": mixes,
        "epochs": result.phases[0]["epochs"],
        "validation_loss": result.phases[0]["best_validation_loss"],
        "parameters": count_parameters(model),
        "train_examples": len(splits["train"].rows),
        "test_examples": len(test.rows),
    }
    likeness = similarities(logits)
    if sentiments is not None:
        metrics["sentiment_rank_correlation"] = sentiment_agreement(likeness, labels, sentiments)
    insight = {
        "nearest": nearest_labels(likeness, labels),
        "phrases": phrase_predictions(model, vocabulary, labels, max_length),
    }

    def attach(folder: Path) -> None:
        write_json(folder / "insight.json", insight)
        (folder / "report.md").write_text(markdown(metrics, insight), encoding="utf-8")
        draw_plots(folder / "plots", np.array(metrics["confusion"]), likeness, labels, history)

    save_model(
        out,
        model,
        vocabulary,
        labels,
        metrics={**metrics, "history": history, "options": given},
        card=_card(metrics, model, len(vocabulary), labels),
        extra={"max_length": max_length},
        attach=attach,
    )
    log.info("top-1 %.3f, top-5 %.3f, loss %.3f on the test split", metrics["top1"], metrics["top5"], metrics["loss"])
    return metrics


def _load_split(folder: Path, vocabulary: Vocabulary) -> Examples:
    examples = load_store(folder)
    if len(examples.rows) == 0:
        raise InputError(f"The token store {folder} holds no examples: give more text, or smaller splits.")
    if read_meta(folder)["vocabulary"] != vocabulary.digest:
        raise InputError(
            f"The token store {folder} was made with another vocabulary than the one beside it: tokenize again."
        )
    return examples


def label_mixes(counts: NDArray[np.int64], balance: float) -> dict[str, list[float]]:
    """Shares (C,) of the labels with `counts` training examples: `natural`, and `learned`, as `balance` draws them."""
    shares = (counts + 1) / (counts + 1).sum()  # a label without an example has no logarithm
    drawn = shares ** (1 - balance)
    return {"natural": shares.tolist(), "learned": (drawn / drawn.sum()).tolist()}


def evaluate(
    logits: NDArray[np.float32],
    targets: NDArray[np.int64],
    labels: Sequence[str],
    mixes: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, Any]:
    """Metrics of logits (P, C) against targets (P,); labels without a test example have null per label.

    `top1`, `top5`, `loss`, precision, recall and the confusion matrix (true, predicted) weigh every label the same;
    `rows` holds the first three over the examples as they come. A model's logits hold the mix of labels that it was
    trained on; with `mixes` (see `label_mixes`) each figure is that under the mix it asks about, by Bayes' rule,
    and `as_trained` holds what comes without.
    """
    scores = torch.from_numpy(logits).double()
    truth = torch.tensor(np.array(targets))  # a copy: the store's memory map cannot be written
    counts = np.bincount(targets, minlength=len(labels))
    even = 1.0 / (counts[targets] * np.count_nonzero(counts))
    alike = np.full(len(targets), 1 / len(targets))
    balanced = natural = scores
    if mixes is not None:
        shares = {name: torch.tensor(mixes[name], dtype=torch.float64).log() for name in mixes}
        balanced = scores - shares["learned"]
        natural = balanced + shares["natural"]
    predicted = balanced.argmax(1).numpy()
    confusion = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(confusion, (targets, predicted), 1)
    recalled = confusion / np.maximum(counts, 1)[:, None]  # by true label, as if all had as many examples
    claimed = recalled.sum(0)
    plain = {} if mixes is None else {**_scores(scores, truth, even), "rows": _scores(scores, truth, alike)}
    return {
        **_scores(balanced, truth, even),
        "rows": _scores(natural, truth, alike),
        **({"as_trained": plain} if plain else {}),
        "per_label": {
            label: {
                "precision": float(recalled[i, i] / claimed[i]) if claimed[i] and counts[i] else None,
                "recall": float(recalled[i, i]) if counts[i] else None,
                "examples": int(counts[i]),
            }
            for i, label in enumerate(labels)
        },
        "confusion": confusion.tolist(),
    }


def _scores(scores: torch.Tensor, truth: torch.Tensor, weights: NDArray[np.float64]) -> dict[str, float]:
    order = torch.argsort(scores, dim=1, descending=True, stable=True)
    per_row = {
        "top1": (order[:, 0] == truth).double(),
        "top5": (order[:, :5] == truth[:, None]).any(1).double(),
        "loss": torch.nn.functional.cross_entropy(scores, truth, reduction="none"),
    }
    return {name: float(values.numpy() @ weights) for name, values in per_row.items()}


@contextmanager
def processes() -> Iterator[int]:
    """Join the processes that torchrun started, if it did; yields this one's rank. Inside of itself it does nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0
        return
    if not dist.is_initialized():
        _join()
    try:
        yield dist.get_rank()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _join() -> None:
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=RANK_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"The processes of this training did not find each other ({' '.join(str(error).split())[:200]}): "
            "start them with torchrun."
        ) from None


def _card(metrics: dict[str, Any], model: DeepMoji, words: int, labels: Sequence[str]) -> str:
    plain = metrics["as_trained"]
    return f"""# DeepMoji, pretrained

Reads a short English text and says which of {len(labels)} emojis its writer may have used. Architecture: DeepMoji
(Felbo et al., EMNLP 2017); {metrics["parameters"]:,} parameters, {words:,} words, embedding
{model.config["embedding_size"]}, hidden size {model.config["hidden_size"]} per direction.

| measured on {metrics["test_examples"]:,} held-out examples | every label the same weight | rows as they come |
|---|---|---|
| top-1 accuracy | {metrics["top1"]:.3f} | {metrics["rows"]["top1"]:.3f} |
| top-5 accuracy | {metrics["top5"]:.3f} | {metrics["rows"]["top5"]:.3f} |
| loss | {metrics["loss"]:.3f} | {metrics["rows"]["loss"]:.3f} |

A figure is the one under the mix of labels that it asks about, by Bayes' rule; under the mix that was drawn in
training top-1 is {plain["top1"]:.3f} and {plain["rows"]["top1"]:.3f},
top-5 {plain["top5"]:.3f} and {plain["rows"]["top5"]:.3f}.

Trained on {metrics["train_examples"]:,} examples. Guessing gives a top-1 accuracy of {1 / len(labels):.3f}.

Labels: {" ".join(labels)}

Limits: it knows what its corpus knew, prejudice included; words it never saw are one and the same to it; it says
what emoji a text resembles, not what a person feels. Not for decisions about people.
"""
