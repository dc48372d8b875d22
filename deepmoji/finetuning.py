"""Transfer: a pretrained model and a labelled set in, a model of that set out (paper sections 3.3 and 5).

Methods are lists of phases (schedules.py) that run through the same `fit` as pretraining. What is chosen (epochs,
thresholds, the best seed) is chosen on validation rows; test rows are only scored.
"""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deepmoji.batches import label_groups
from deepmoji.cards import finetuned_card
from deepmoji.checkpoints import ModelFolder, check_place, load_model, save_model
from deepmoji.datasets import Dataset, fingerprint
from deepmoji.errors import UsageError
from deepmoji.model import DeepMoji, Task, probabilities
from deepmoji.phases import LAYERS, Phase
from deepmoji.predictions import Judged, judge, rows_of, write_predictions
from deepmoji.probe import solve_output
from deepmoji.provenance import digest
from deepmoji.schedules import METHODS, PHASE_OPTIONS, phases_for, trains_embedding
from deepmoji.tokens import Examples, encode_examples
from deepmoji.training import fit, predict_logits
from deepmoji.vocabulary import Vocabulary, count_words, most_frequent

__all__ = ["METHODS", "finetune", "phases_for"]

logger = logging.getLogger(__name__)

Report = Callable[[dict[str, float], int], None]
SeedReport = Callable[[int, Mapping[str, Any]], None]
SPLITS = ("train", "val", "test")
CLASS_WEIGHTS = ("none", "balanced")
LENGTH_PERCENTILE = 80  # of the training texts fit whole (paper's code); what is cut is counted in results.json
MAX_CLASS_WEIGHT = 10.0  # a class of a few rows would otherwise steer every batch that holds one of them
NO_OPTIONS = ("dataset", "pretrained", "out", "method", "report", "report_seed")  # of `finetune`
EPOCH_TEXTS = (1_000, 5_000)  # a few steps say little about the loss; 5,000 is an epoch of the paper's code
MIN_COUNT = 2  # a word seen once gets a vector that fits that one text


@dataclass(frozen=True)
class Prepared:
    """A set in a model's terms: examples by split, and what the encoding did to the texts."""

    vocabulary: Vocabulary
    examples: dict[str, Examples]
    max_length: int
    truncated: dict[str, dict[str, int]]


@dataclass(frozen=True)
class Options:
    """What `fit` gets besides model and examples."""

    phases: list[Phase]
    batch_size: int
    balance: float
    class_weights: str
    embedding_l2: float
    embedding_dropout: float
    final_dropout: float


def finetune(
    dataset: Dataset,
    pretrained: Path,
    out: Path,
    *,
    method: str,
    learning_rate: float,
    finetune_rate: float,
    batch_size: int,
    epochs: int,
    epoch_size: int | None,
    patience: int | None,
    max_length: int | None,
    new_words: int,
    embedding_dropout: float,
    final_dropout: float,
    embedding_l2: float,
    class_average: bool,
    balance: float,
    class_weights: str,
    schedules: Mapping[str, Sequence[Mapping[str, Any]]],
    seeds: Sequence[int],
    report: Report | None = None,
    report_seed: SeedReport | None = None,
) -> dict[str, Any]:
    """Fine-tune on a set by one method, once a seed, and write the best seed's model folder to `out`.

    method: a name in METHODS or in `schedules`; see `phases_for` for the rates and for epochs,
        patience and epoch_size, which is `default_epoch` where it is None. new starts from random weights of the
        pretrained model's sizes.
    max_length: tokens; longer texts are cut, and counted. None: the 80th percentile of the training texts, rounded
        up to 10. new_words: so many words of the training texts at most join the vocabulary, if the method trains
        word vectors.
    class_average: for sets with several labels a row, and where the metric is the class-average F1, judge one
        binary model per class, all from the same start, as the paper does. The model folder then still holds a
        model of all classes, trained beside them.
    balance: 0 = classes as they come, 1 = equally often. class_weights: none, or balanced = the loss of a class
        counts by the inverse of its frequency among the training texts, at most MAX_CLASS_WEIGHT times.

    `out` gets, besides the model: predictions.parquet (test rows of every seed) and results.json, written last.
    report(metrics, step) hears of every epoch, report_seed(seed, numbers) of every finished seed.
    Returns the content of results.json. UsageError: an unknown method, layer or kind of class weights; InputError:
    an empty split.
    """
    given = {name: value for name, value in locals().items() if name not in NO_OPTIONS}
    if class_weights not in CLASS_WEIGHTS:
        raise UsageError(f"There are no class weights {class_weights!r}: choose one of {', '.join(CLASS_WEIGHTS)}.")
    phases = phases_for(
        method,
        learning_rate=learning_rate,
        finetune_rate=finetune_rate,
        epochs=epochs,
        patience=patience,
        epoch_size=epoch_size or default_epoch(len(rows_of(dataset, "train"))),
        schedules=schedules,
    )
    check_place(out)
    start = load_model(pretrained)
    phases = _existing(phases, start.model, own=method in schedules)
    extend = new_words if method != "new" and trains_embedding(phases) else 0
    prepared = prepare(dataset, start.vocabulary, max_length=max_length, new_words=extend)
    options = Options(phases, batch_size, balance, class_weights, embedding_l2, embedding_dropout, final_dropout)
    split_models = class_average and (dataset.task == "multilabel" or dataset.metric == "class_average_f1")
    best: tuple[float, int, DeepMoji, Judged] | None = None
    runs: list[dict[str, Any]] = []
    predictions = []
    for seed in seeds:
        model, judged, history = _run_all_classes(dataset, start, prepared, options, method, seed, report)
        run: dict[str, Any] = {"seed": seed, "phases": history, **_figures(judged)}
        if split_models:
            own = _run_per_class(dataset, start, prepared, options, method, seed, report)
            run = {"seed": seed, "phases": history, **_figures(own), "one_model": _figures(judged)}
            predictions.append(own.predictions)
        else:
            predictions.append(judged.predictions)
        runs.append(run)
        reached = judged.validation[dataset.metric]
        logger.info("%s by %s, seed %d: validation %s %.4f", dataset.name, method, seed, dataset.metric, reached)
        if best is None or reached > best[0]:
            best = (reached, seed, model, judged)
        if report_seed is not None:
            report_seed(seed, {"validation": run["validation"], "test": run["test"]})
    assert best is not None
    results: dict[str, Any] = {
        "dataset": dataset.name,
        "method": method,
        "metric": dataset.metric,
        "task": dataset.task,
        "classes": list(dataset.classes),
        "class_average": split_models,
        "best_seed": best[1],
        "max_length": prepared.max_length,
        "truncated": prepared.truncated,
        "new_words": len(prepared.vocabulary) - len(start.vocabulary),
        "pretrained": {} if method == "new" else _origin(start),
        "start": "" if method == "new" else digest(pretrained),
        "data": fingerprint(dataset),
        "options": given,
        "schedule": [{**asdict(phase), "train": list(phase.train)} for phase in phases],
        "seeds": runs,
        "mean": {split: _over_seeds(runs, split, np.mean) for split in ("validation", "test")},
        "std": {split: _over_seeds(runs, split, _spread) for split in ("validation", "test")},
    }
    if best[3].offsets is not None:
        add_offsets(best[2], best[3].offsets)
    _write(out, dataset, prepared, best[2], best[3], results)
    write_predictions(out / "predictions.parquet", predictions)
    beside = out / "results.json.tmp"
    beside.write_text(json.dumps(results, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    beside.replace(out / "results.json")
    return results


def check(pretrained: Path, method: str, options: Mapping[str, Any]) -> None:
    """What `finetune` would refuse of these options before it trains. UsageError, InputError."""
    phases_for(method, **{key: options[key] for key in PHASE_OPTIONS})
    load_model(pretrained)


def prepare(dataset: Dataset, vocabulary: Vocabulary, *, max_length: int | None, new_words: int) -> Prepared:
    """Encode a set; the vocabulary grows by at most `new_words` words of the training texts, most frequent first."""
    texts = {split: [dataset.texts[row] for row in rows_of(dataset, split)] for split in SPLITS}
    if new_words:
        vocabulary = vocabulary.extend(frequent_unknown(texts["train"], vocabulary)[:new_words])
    lengths = {split: np.diff(vocabulary.encode_flat(texts[split], None)[1]) for split in SPLITS}
    limit = max_length or default_length(lengths["train"])
    targets = {split: _targets(dataset, dataset.labels[rows_of(dataset, split)]) for split in SPLITS}
    counts = np.concatenate([*lengths.values()])
    cut, total = int((counts > limit).sum()), len(counts)
    if cut:
        logger.warning("%s: %d of %d texts are longer than %d tokens and are cut", dataset.name, cut, total, limit)
    return Prepared(
        vocabulary=vocabulary,
        examples={split: encode_examples(texts[split], targets[split], vocabulary, limit) for split in SPLITS},
        max_length=limit,
        truncated={
            split: {"texts": int((counts > limit).sum()), "of": len(counts)} for split, counts in lengths.items()
        },
    )


def default_length(counts: NDArray[np.int64]) -> int:
    """Tokens at which texts are cut: the 80th percentile of the training texts' counts, rounded up to 10."""
    return max(10, math.ceil(float(np.percentile(counts, LENGTH_PERCENTILE)) / 10) * 10)


def default_epoch(texts: int) -> int:
    """Texts drawn between two looks at the validation loss: as many as there are, within EPOCH_TEXTS."""
    return min(max(texts, EPOCH_TEXTS[0]), EPOCH_TEXTS[1])


def frequent_unknown(texts: Sequence[str], vocabulary: Vocabulary) -> list[str]:
    """Words that the vocabulary lacks and that occur at least twice; most frequent first, equals by spelling."""
    known = set(vocabulary.words)
    counts = {word: count for word, count in count_words(texts).items() if word not in known}
    return most_frequent(counts, MIN_COUNT)


def starting_model(
    start: ModelFolder, words: int, classes: int, task: Task, options: Options, *, seed: int, fresh: bool
) -> DeepMoji:
    """A model of the set: pretrained layers under a new output layer, or (fresh) random ones of the same sizes.

    Words beyond the pretrained vocabulary get random vectors. The caller's random state is left alone.
    """
    sizes = {**start.model.config, "vocabulary_size": words, "classes": classes, "task": task}
    sizes |= {"embedding_dropout": options.embedding_dropout, "final_dropout": options.final_dropout}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DeepMoji(**sizes)
    if fresh:
        return model
    weights = model.state_dict()
    for name, tensor in start.model.state_dict().items():
        if name == "embedding.weight":
            weights[name][: len(tensor)] = tensor
        elif not name.startswith("output."):
            weights[name] = tensor
    model.load_state_dict(weights)
    return model


def _run_all_classes(
    dataset: Dataset,
    start: ModelFolder,
    prepared: Prepared,
    options: Options,
    method: str,
    seed: int,
    report: Report | None,
) -> tuple[DeepMoji, Judged, list[dict[str, Any]]]:
    """One model with an output column a class (one column for two classes)."""
    columns = 1 if dataset.task == "binary" else len(dataset.classes)
    task: Task = dataset.task  # type: ignore[assignment]
    words = len(prepared.vocabulary)
    model = starting_model(start, words, columns, task, options, seed=seed, fresh=method == "new")
    history = _fit(model, prepared.examples, options, seed, prefixed(report, f"seed_{seed}"))
    val, test = (predict(model, prepared.examples[split]) for split in ("val", "test"))
    return model, judge(dataset, seed, val, test), history


def _run_per_class(
    dataset: Dataset,
    start: ModelFolder,
    prepared: Prepared,
    options: Options,
    method: str,
    seed: int,
    report: Report | None,
) -> Judged:
    """One binary model a class against the rest, all from the same start."""
    columns: dict[str, list[NDArray[np.float32]]] = {"val": [], "test": []}
    for k in range(len(dataset.classes)):
        examples = {split: _one_class(part, k) for split, part in prepared.examples.items()}
        model = starting_model(start, len(prepared.vocabulary), 1, "binary", options, seed=seed, fresh=method == "new")
        _fit(model, examples, options, seed, prefixed(report, f"seed_{seed}/class_{k}"))
        for split, parts in columns.items():
            parts.append(predict(model, examples[split])[:, 1])
    val, test = (np.stack(columns[split], axis=1) for split in ("val", "test"))
    return judge(dataset, seed, val, test, per_class=True)


def _fit(
    model: DeepMoji, examples: Mapping[str, Examples], options: Options, seed: int, report: Report | None
) -> list[dict[str, Any]]:
    columns = 2 if model.task == "binary" else model.output.out_features
    weights = balanced_weights(examples["train"].targets, columns) if options.class_weights == "balanced" else None
    solved, phases = [], options.phases
    if phases[0].solve:
        # Texts drawn more often and texts that count more are one thing to a problem without steps.
        drawn = sampling_weights(examples["train"].targets, options.balance)
        solved = [{"name": phases[0].name, **solve_output(model, examples, weights, drawn)}]
        phases = phases[1:]
    if not phases:
        return solved
    result = fit(
        model,
        examples["train"],
        examples["val"],
        phases,
        batch_size=options.batch_size,
        seed=seed,
        balance=options.balance,
        class_weights=weights,
        embedding_l2=options.embedding_l2,
        report=report,
    )
    return solved + result.phases


def balanced_weights(targets: NDArray[Any], classes: int) -> NDArray[np.float64]:
    """Factors (C,) of the loss by inverse frequency, between 1 / MAX_CLASS_WEIGHT and MAX_CLASS_WEIGHT.

    Of class ids (P,): rows / (classes * rows of the class), so that every class has the same total. Of several
    labels a row (P, C): rows without the label / rows with it, the factor of its positives.
    """
    if targets.ndim == 2:
        positive = (targets > 0.5).sum(axis=0)
        raw = (len(targets) - positive) / np.maximum(positive, 1)
    else:
        raw = len(targets) / (classes * np.maximum(np.bincount(targets, minlength=classes), 1))
    weights: NDArray[np.float64] = np.clip(raw, 1 / MAX_CLASS_WEIGHT, MAX_CLASS_WEIGHT)
    return weights


def sampling_weights(targets: NDArray[Any], balance: float) -> NDArray[np.float64]:
    """Factors (P,) of the examples, 1 on average, that weigh them as often as `balance` draws them."""
    weights: NDArray[np.float64] = np.zeros(len(targets))
    for group in label_groups(targets):
        if len(group):
            weights[group] += len(group) ** -balance
    weights *= len(targets) / weights.sum()
    return weights


def add_offsets(model: DeepMoji, offsets: Sequence[float]) -> None:
    """Make the model answer as it was judged: offsets (C,) of the logits become part of the output layer, in place."""
    added = torch.tensor(offsets, dtype=torch.float32)
    with torch.no_grad():
        model.output.bias.add_(added[1:] - added[:1] if model.task == "binary" else added)


def predict(model: DeepMoji, examples: Examples) -> NDArray[np.float32]:
    """Probabilities (n, C) of texts in input order; (n, 2) for a binary model."""
    logits = torch.from_numpy(predict_logits(model, examples)).float()
    given = probabilities(logits, model.task).numpy()
    return np.concatenate([1 - given, given], axis=1) if model.task == "binary" else given


def _existing(phases: Sequence[Phase], model: DeepMoji, *, own: bool) -> list[Phase]:
    """Leave out built-in phases of a layer that this model does without (attention); own schedules stay as given."""
    absent = {layer for layer in LAYERS if getattr(model, layer, None) is None}
    return [phase for phase in phases if own or not set(phase.train) <= absent]


def _targets(dataset: Dataset, labels: NDArray[Any]) -> NDArray[Any]:
    return labels.astype(np.float32 if dataset.task == "multilabel" else np.int64)


def _one_class(examples: Examples, k: int) -> Examples:
    targets = examples.targets[:, k] > 0.5 if examples.targets.ndim == 2 else examples.targets == k
    return Examples(examples.ids, examples.offsets, examples.rows, targets.astype(np.int64))


def prefixed(report: Report | None, prefix: str) -> Report | None:
    """The same report, with `prefix`/ before every name."""
    if report is None:
        return None

    def told(metrics: dict[str, float], step: int) -> None:
        report({f"{prefix}/{name}": value for name, value in metrics.items()}, step)

    return told


def _figures(judged: Judged) -> dict[str, Any]:
    return {
        "validation": judged.validation,
        "test": judged.test,
        "thresholds": judged.thresholds,
        "offsets": judged.offsets,
    }


def _over_seeds(
    runs: Sequence[Mapping[str, Any]], split: str, summary: Callable[[list[float]], Any]
) -> dict[str, float]:
    return {name: float(summary([run[split][name] for run in runs])) for name in runs[0][split]}


def _spread(values: list[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _origin(start: ModelFolder) -> dict[str, Any]:
    """What the pretrained model says of itself, for the report."""
    examples = start.metrics.get("train_examples")
    return {"words": len(start.vocabulary), "labels": len(start.labels), "examples": examples}


def _write(
    out: Path, dataset: Dataset, prepared: Prepared, model: DeepMoji, judged: Judged, results: Mapping[str, Any]
) -> None:
    save_model(
        out,
        model,
        prepared.vocabulary,
        dataset.classes,
        metrics={"validation": judged.validation, "test": judged.test},
        card=finetuned_card(results, judged),
        extra={"max_length": prepared.max_length, "thresholds": judged.thresholds},
    )
