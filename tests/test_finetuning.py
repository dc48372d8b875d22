"""Fine-tuning: which layers move and how fast, what is chosen on what, what is written."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from deepmoji.checkpoints import load_model, save_model
from deepmoji.datasets import Dataset
from deepmoji.errors import InputError, UsageError
from deepmoji.finetuning import (
    MAX_CLASS_WEIGHT,
    METHODS,
    balanced_weights,
    default_epoch,
    default_length,
    finetune,
    frequent_unknown,
    phases_for,
    predict,
    prepare,
)
from deepmoji.model import DeepMoji
from deepmoji.phases import LAYERS, Phase
from deepmoji.predictions import judge, read_predictions, tune_offsets
from deepmoji.text import tokenize
from deepmoji.training import fit
from deepmoji.vocabulary import Vocabulary, build_vocabulary

WORDS = ("glad", "angry", "scared")
NOISE = ("hm", "oh", "ah", "eh")
RATES: dict[str, Any] = {"learning_rate": 0.02, "finetune_rate": 0.005}
SETTINGS: dict[str, Any] = {
    **RATES, "batch_size": 16, "epochs": 2, "epoch_size": 36, "patience": 3, "max_length": None, "new_words": 100,
    "embedding_dropout": 0.0, "final_dropout": 0.0, "embedding_l2": 1e-6, "class_average": False, "balance": 0.0,
    "class_weights": "none", "schedules": {}, "seeds": [1],
}  # fmt: skip
PHASES: dict[str, Any] = {**RATES, "epochs": 5, "patience": 2, "epoch_size": 100, "schedules": {}}


def make_dataset(task: str = "binary", classes: int = 2, rows: int = 60, metric: str = "accuracy") -> Dataset:
    """Each class has its word; NOISE is not in the pretrained vocabulary."""
    rng = np.random.default_rng(3)
    labels = np.arange(rows) // 2 % classes
    texts = [f"{NOISE[rng.integers(4)]} {WORDS[label]} the day" for label in labels]
    texts[0] += " and so on" * 20
    truth = (labels[:, None] == np.arange(classes)).astype(np.uint8) if task == "multilabel" else labels
    splits = np.array((["train"] * 3 + ["val", "test"]) * (rows // 5))
    return Dataset("toy", texts, truth, splits, WORDS[:classes], task, metric, {})


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model folder with random weights over four emojis."""
    folder = tmp_path_factory.mktemp("models") / "pretrained"
    words = Counter(dict.fromkeys((*WORDS, "the", "day", "and", "so", "on"), 9))
    vocabulary = build_vocabulary(words, 100, 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DeepMoji(len(vocabulary), 4, embedding_size=8, hidden_size=6)
    save_model(folder, model, vocabulary, list("😂😭😍✨"), metrics={"train_examples": 1234}, card="# tiny")
    return folder


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """The layers of which any weight differs."""
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


THAWED = [
    (("output",), 0.02),
    *(((layer,), 0.005) for layer in ("embedding", "lstm0", "lstm1", "attention", "all")),
]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("new", [(("all",), 0.02)]),
        ("last", [(("output",), 0.02)]),
        ("full", [(("all",), 0.005)]),
        ("chain-thaw", THAWED),
        ("probe", [(("output",), 0.02)]),
        ("probe-thaw", THAWED),
    ],
)
def test_methods_are_these_phases(method: str, expected: list[tuple[tuple[str, ...], float]]) -> None:
    phases = phases_for(method, **PHASES)
    assert [(phase.train, phase.learning_rate) for phase in phases] == expected
    assert all((phase.epochs, phase.patience, phase.epoch_size) == (5, 2, 100) for phase in phases)
    assert [phase.solve for phase in phases] == [number == 0 and "probe" in method for number in range(len(phases))]


@pytest.mark.parametrize("method", [method for method in METHODS if method != "probe"])  # which takes no steps
def test_each_phase_moves_its_layers_and_no_others(method: str, pretrained: Path) -> None:
    start = load_model(pretrained)
    prepared = prepare(make_dataset("multiclass", 2), start.vocabulary, max_length=None, new_words=0)
    model = DeepMoji(**{**start.model.config, "classes": 2})
    for phase in phases_for(method, **{**PHASES, "epochs": 1}):
        if phase.solve:
            continue
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        # Chosen on what it trains on: a phase that makes the others' loss worse would leave its layers as they were.
        fit(model, prepared.examples["train"], prepared.examples["train"], [phase], batch_size=16, seed=1)
        expected = set(LAYERS) if phase.train == ("all",) else set(phase.train)
        assert moved(before, model.state_dict()) == expected, phase.name


def test_the_rate_of_a_phase_is_the_rate_of_its_steps(pretrained: Path) -> None:
    start = load_model(pretrained)
    prepared = prepare(make_dataset("multiclass", 2), start.vocabulary, max_length=None, new_words=0)
    steps = []
    for rate in (0.02, 0.005):
        model = DeepMoji(**{**start.model.config, "classes": 2, "final_dropout": 0.0, "embedding_dropout": 0.0})
        before = model.output.bias.detach().clone()
        phase = Phase("one step", ("output",), rate, epochs=1)
        fit(model, prepared.examples["train"], prepared.examples["val"], [phase], batch_size=1000, seed=1)
        steps.append(float((model.output.bias.detach() - before).abs().max()))
    assert steps == pytest.approx([0.02, 0.005], rel=1e-3)  # Adam's first step is the rate itself


def test_a_schedule_can_be_written_in_params() -> None:
    inner = {"train": ["lstm1", "attention"], "learning_rate": 0.5, "decay": True}
    schedules = {"mine": [{"train": ["output"], "epochs": 1}, inner]}
    first, second = phases_for("mine", **{**PHASES, "schedules": schedules})
    assert (first.train, first.learning_rate, first.epochs, first.patience) == (("output",), 0.02, 1, 2)
    assert (second.train, second.learning_rate, second.epochs) == (("lstm1", "attention"), 0.5, 5)
    assert (first.decay, second.decay) == (False, True)
    spelled_out = {"mine": [{"train": ["all"], "learning_rate": None, "epochs": None, "patience": None}]}
    (only,) = phases_for("mine", **{**PHASES, "schedules": spelled_out})
    assert (only.learning_rate, only.epochs, only.patience) == (0.02, 5, 2)


@pytest.mark.parametrize(
    ("method", "schedules", "message"),
    [
        ("chainthaw", {}, "choose one of new, last, full, chain-thaw, probe, probe-thaw"),
        ("other", {"mine": [{"train": ["all"]}]}, "probe-thaw, mine"),
        ("mine", {"mine": [{"train": ["softmax"]}]}, "choose among embedding, lstm0"),
        ("mine", {"mine": [{"train": ["all"], "rate": 1}]}, "'rate'"),
        ("mine", {"mine": []}, "no phases"),
        ("mine", {"mine": [{"learning_rate": 0.1}]}, "names no layers"),
        ("last", {"last": [{"train": ["all"]}]}, "built-in"),
        ("mine", {"mine": [{"train": ["output"], "solve": True, "decay": True}]}, "leave out decay"),
        ("mine", {"mine": [{"train": ["output"], "solve": True, "epochs": 3}]}, "leave out epochs"),
    ],
)
def test_unknown_methods_and_layers_are_refused(method: str, schedules: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        phases_for(method, **{**PHASES, "schedules": schedules})


def test_a_fine_tune_leaves_a_whole_folder(pretrained: Path, tmp_path: Path) -> None:
    out = tmp_path / "toy" / "full"
    seen: list[tuple[dict[str, float], int]] = []
    numbers: dict[int, Any] = {}
    results = finetune(
        make_dataset(), pretrained, out, method="full", **{**SETTINGS, "seeds": [4, 2], "epochs": 3},
        report=lambda metrics, step: seen.append((metrics, step)), report_seed=numbers.__setitem__,
    )  # fmt: skip
    folder = load_model(out)
    assert folder.labels == ("glad", "angry")
    assert folder.model.task == "binary"
    assert folder.config["max_length"] == 10
    assert json.loads((out / "results.json").read_text(encoding="utf-8")) == results
    runs = read_predictions(out / "predictions.parquet")
    assert [run.seed for run in runs] == [4, 2]
    assert all(run.rows.tolist() == list(range(4, 60, 5)) for run in runs)
    for run, stated in zip(runs, results["seeds"], strict=True):
        assert stated["test"]["accuracy"] == pytest.approx(np.mean(run.decisions == run.truth))
        assert run.probabilities.sum(axis=1) == pytest.approx(1, abs=1e-6)
    scores = [run["test"]["accuracy"] for run in results["seeds"]]
    assert results["mean"]["test"]["accuracy"] == pytest.approx(np.mean(scores))
    assert results["std"]["test"]["accuracy"] == pytest.approx(np.std(scores, ddof=1))
    assert results["pretrained"]["examples"] == 1234
    assert {4, 2} == set(numbers)
    assert any("seed_4/" in name for metrics, _ in seen for name in metrics)
    card = (out / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert all(part in card for part in ("toy by full", "glad, angry", "accuracy", "## Limits", "cut at 10 tokens: 1"))


def test_the_kept_model_is_the_best_on_validation(pretrained: Path, tmp_path: Path) -> None:
    dataset = make_dataset()
    results = finetune(dataset, pretrained, tmp_path / "out", method="last", **{**SETTINGS, "seeds": [1, 2, 3]})
    reached = {run["seed"]: run["validation"]["accuracy"] for run in results["seeds"]}
    assert results["best_seed"] == max(reached, key=lambda seed: reached[seed])
    kept = next(run for run in results["seeds"] if run["seed"] == results["best_seed"])
    assert load_model(tmp_path / "out").metrics == {"validation": kept["validation"], "test": kept["test"]}


@pytest.mark.parametrize(("texts", "drawn"), [(36, 1_000), (3_257, 3_257), (45_000, 5_000)])
def test_an_epoch_is_as_long_as_the_set_within_limits(
    texts: int, drawn: int, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert default_epoch(texts) == drawn
    monkeypatch.setattr("deepmoji.finetuning.EPOCH_TEXTS", (20, 30))
    schedules = {"mine": [{"train": ["output"]}, {"train": ["all"], "epoch_size": 7, "decay": True}]}
    settings = {**SETTINGS, "epoch_size": None, "schedules": schedules}
    results = finetune(make_dataset(), pretrained, tmp_path / "out", method="mine", **settings)
    assert [phase["epoch_size"] for phase in results["schedule"]] == [30, 7]
    assert "0.005, falling to 0 |" in (tmp_path / "out" / "MODEL_CARD.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("task", "classes"), [("binary", 2), ("multiclass", 3)])
def test_the_kept_model_answers_as_it_was_judged(
    task: str, classes: int, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deepmoji.predictions.POWERS", (1.0,))
    dataset = make_dataset(task, classes, rows=200, metric="macro_f1")
    splits = np.where((dataset.labels == 0) & (dataset.splits == "val"), "train", dataset.splits)
    dataset = replace(dataset, splits=splits)
    results = finetune(dataset, pretrained, tmp_path / "out", method="last", **SETTINGS)
    offsets = results["seeds"][0]["offsets"]
    assert min(offsets[1:]) > offsets[0] > 0  # the first class has more training rows
    found, (run,) = load_model(tmp_path / "out"), read_predictions(tmp_path / "out" / "predictions.parquet")
    given = predict(found.model, prepare(dataset, found.vocabulary, max_length=20, new_words=0).examples["test"])
    assert given == pytest.approx(run.probabilities, abs=1e-5)
    assert run.decisions.tolist() == given.argmax(axis=1).tolist()
    plain = finetune(replace(dataset, metric="accuracy"), pretrained, tmp_path / "plain", method="last", **SETTINGS)
    assert plain["seeds"][0]["offsets"] is None


def test_rare_classes_gain_what_serves_the_metric_on_validation_rows() -> None:
    """Eight training rows of one class, two of the other; the model follows these shares but for a hint."""
    labels = np.array([0] * 8 + [1] * 2 + [0, 0, 1, 1] + [0, 1])
    splits = np.array(["train"] * 10 + ["val"] * 4 + ["test"] * 2)
    dataset = Dataset("toy", ["x"] * 16, labels, splits, ("a", "b"), "binary", "macro_f1", {})
    hints = np.array([[0.9, 0.1], [0.85, 0.15], [0.7, 0.3], [0.6, 0.4]], dtype=np.float32)
    offsets = tune_offsets(dataset, labels[10:14], hints)
    # Log odds of the hints: 2.2, 1.7, 0.85, 0.41; those of the shares: 1.39, of which 0.75 is the least that does.
    assert offsets == pytest.approx(0.75 * -np.log([0.8, 0.2]))
    judged = judge(dataset, 1, hints, hints[[0, 3]])
    assert judged.validation["macro_f1"] == judged.test["macro_f1"] == 1.0 and judged.thresholds is None
    assert judge(replace(dataset, metric="accuracy"), 1, hints, hints[[0, 3]]).test["accuracy"] == 0.5
    certain = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=np.float32)
    assert tune_offsets(dataset, labels[10:14], certain) == pytest.approx(0)


def test_same_input_same_bytes(pretrained: Path, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    for name in ("a", "b"):
        finetune(make_dataset("multilabel", 3), pretrained, tmp_path / name, method="chain-thaw", **SETTINGS)
        torch.rand(5)  # what happens elsewhere in the process must not matter
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert {"model.safetensors", "results.json", "predictions.parquet"} <= set(files)
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    torch.set_rng_state(state)


@pytest.mark.parametrize(("task", "metric"), [("binary", "f1"), ("multilabel", "jaccard")])
def test_labels_of_test_rows_change_no_choice(task: str, metric: str, pretrained: Path, tmp_path: Path) -> None:
    dataset = make_dataset(task, 2, metric=metric)
    test = (dataset.splits == "test").reshape(-1, *[1] * (dataset.labels.ndim - 1))
    turned = replace(dataset, labels=np.where(test, 1 - dataset.labels, dataset.labels).astype(dataset.labels.dtype))
    outcomes = []
    for name, one in (("a", dataset), ("b", turned)):
        results = finetune(one, pretrained, tmp_path / name, method="last", **{**SETTINGS, "seeds": [1, 2]})
        (first, second) = read_predictions(tmp_path / name / "predictions.parquet")
        choices = [results["best_seed"], *(run["thresholds"] for run in results["seeds"])]
        outcomes.append((choices, first.decisions.tolist(), second.decisions.tolist()))
        assert all(run["thresholds"] for run in results["seeds"])
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(("task", "metric"), [("multiclass", "class_average_f1"), ("multilabel", "class_average_f1")])
def test_class_average_trains_a_model_per_class(task: str, metric: str, pretrained: Path, tmp_path: Path) -> None:
    dataset = make_dataset(task, 3, metric=metric)
    settings = {**SETTINGS, "epochs": 8, "class_average": True}
    results = finetune(dataset, pretrained, tmp_path / "out", method="full", **settings)
    (run,) = results["seeds"]
    (predictions,) = read_predictions(tmp_path / "out" / "predictions.parquet")
    assert results["class_average"] is True
    assert predictions.decisions.shape == predictions.truth.shape == (12, 3)
    assert len(run["thresholds"]) == 3
    assert set(run["one_model"]) == {"validation", "test", "thresholds", "offsets"}
    assert run["test"][metric] > 0.8
    assert load_model(tmp_path / "out").model.output.out_features == 3


def test_class_average_leaves_other_sets_as_they_are(pretrained: Path, tmp_path: Path) -> None:
    results = finetune(
        make_dataset(), pretrained, tmp_path / "out", method="last", **{**SETTINGS, "class_average": True}
    )
    assert results["class_average"] is False


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_every_task_can_be_learned(task: str, pretrained: Path, tmp_path: Path) -> None:
    dataset = make_dataset(task, 2 if task == "binary" else 3)
    results = finetune(dataset, pretrained, tmp_path / "out", method="full", **{**SETTINGS, "epochs": 30})
    assert results["mean"]["test"]["accuracy"] > 0.9


def test_words_of_the_training_texts_join_the_vocabulary(pretrained: Path, tmp_path: Path) -> None:
    start = load_model(pretrained)
    full = finetune(make_dataset(), pretrained, tmp_path / "full", method="full", **SETTINGS)
    extended = load_model(tmp_path / "full")
    assert full["new_words"] == 4
    assert set(extended.vocabulary.words) - set(start.vocabulary.words) == set(NOISE)
    assert extended.vocabulary.words[: len(start.vocabulary)] == start.vocabulary.words
    for method, settings in (("new", {}), ("last", {}), ("full", {"new_words": 0})):
        results = finetune(make_dataset(), pretrained, tmp_path / method, method=method, **{**SETTINGS, **settings})
        assert results["new_words"] == 0, method
    few = finetune(make_dataset(), pretrained, tmp_path / "few", method="chain-thaw", **{**SETTINGS, "new_words": 1})
    assert few["new_words"] == 1


def test_pretrained_weights_are_the_start_but_for_new(pretrained: Path, tmp_path: Path) -> None:
    start = load_model(pretrained).model.state_dict()
    finetune(make_dataset(), pretrained, tmp_path / "last", method="last", **SETTINGS)
    kept = load_model(tmp_path / "last").model.state_dict()
    assert all(torch.equal(start[name], kept[name]) for name in start if not name.startswith("output"))
    results = finetune(make_dataset(), pretrained, tmp_path / "new", method="new", **{**SETTINGS, "epochs": 1})
    fresh = load_model(tmp_path / "new").model.state_dict()
    assert float((fresh["lstm0.weight_hh_l0"] - start["lstm0.weight_hh_l0"]).abs().max()) > 0.1
    assert results["pretrained"] == {}


def test_frequent_unknown_words_come_by_count_then_spelling() -> None:
    vocabulary = build_vocabulary(Counter({"known": 2}), 100, 1)
    assert frequent_unknown(["b a known", "c b a", "c c once"], vocabulary) == ["c", "a", "b"]


def test_long_texts_are_cut_and_counted(pretrained: Path, caplog: pytest.LogCaptureFixture) -> None:
    vocabulary: Vocabulary = load_model(pretrained).vocabulary
    dataset = make_dataset()
    counts = np.array([len(tokenize(text)) for text in dataset.texts])
    for limit in (3, 4, 50):
        caplog.clear()
        prepared = prepare(dataset, vocabulary, max_length=limit, new_words=0)
        cut = (counts > limit).sum()
        said = [f"toy: {cut} of {len(counts)} texts are longer than {limit} tokens and are cut"] if cut else []
        assert caplog.messages == said
        for split, told in prepared.truncated.items():
            here = counts[dataset.splits == split]
            assert told == {"texts": int((here > limit).sum()), "of": len(here)}
            assert np.diff(prepared.examples[split].offsets).tolist() == np.minimum(here, limit).tolist()


@pytest.mark.parametrize(("counts", "expected"), [([1, 2, 3], 10), ([10] * 9 + [99], 10), ([11] * 10, 20), ([0], 10)])
def test_the_default_length_holds_eighty_of_a_hundred_texts(counts: list[int], expected: int) -> None:
    assert default_length(np.array(counts)) == expected


def test_a_model_without_attention_skips_its_phase(tmp_path: Path) -> None:
    vocabulary = build_vocabulary(Counter({"glad": 3, "angry": 3}), 50, 1)
    model = DeepMoji(len(vocabulary), 2, embedding_size=4, hidden_size=3, attention=False)
    save_model(tmp_path / "plain", model, vocabulary, ["a", "b"], metrics={}, card="# plain")
    results = finetune(make_dataset(), tmp_path / "plain", tmp_path / "out", method="chain-thaw", **SETTINGS)
    trained = [layer for phase in results["schedule"] for layer in phase["train"]]
    assert trained == ["output", "embedding", "lstm0", "lstm1", "all"]
    schedules = {"mine": [{"train": ["attention"]}]}
    with pytest.raises(UsageError, match="attention"):
        finetune(
            make_dataset(), tmp_path / "plain", tmp_path / "own", method="mine", **{**SETTINGS, "schedules": schedules}
        )


def test_a_set_without_test_rows_is_refused(pretrained: Path, tmp_path: Path) -> None:
    dataset = make_dataset()
    short = replace(dataset, splits=np.where(dataset.splits == "test", "train", dataset.splits))
    with pytest.raises(InputError, match="no test rows"):
        finetune(short, pretrained, tmp_path / "out", method="last", **SETTINGS)
    assert not (tmp_path / "out").exists()


def test_balanced_weights_are_the_inverse_of_frequency() -> None:
    """By hand: 6, 3 and 1 of ten rows; of several labels, rows without it to rows with it."""
    classes = np.repeat([0, 1, 2], [6, 3, 1])
    np.testing.assert_allclose(balanced_weights(classes, 3), [10 / 18, 10 / 9, 10 / 3])
    columns = np.array([[1, 0], [1, 1], [0, 1], [1, 1]], np.float32)
    np.testing.assert_allclose(balanced_weights(columns, 2), [1 / 3, 1 / 3])
    rare = np.repeat([0, 1], [999, 1])
    assert balanced_weights(rare, 2)[1] == MAX_CLASS_WEIGHT
    assert balanced_weights(np.ones((5, 1), np.float32), 1)[0] > 0  # a label that every row has is still learned
    assert np.isfinite(balanced_weights(classes, 4)).all()


@pytest.mark.parametrize(
    ("task", "classes", "class_average"), [("binary", 2, False), ("multiclass", 3, True), ("multilabel", 2, False)]
)
def test_class_weights_reach_the_loss(
    task: str, classes: int, class_average: bool, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepmoji import finetuning

    given: list[tuple[int, Any]] = []

    def watch(model: DeepMoji, train: Any, *rest: Any, **options: Any) -> Any:
        given.append((train.targets.ndim, options["class_weights"]))
        return fit(model, train, *rest, **options)

    monkeypatch.setattr(finetuning, "fit", watch)
    metric = "class_average_f1" if class_average else "accuracy" if task != "multilabel" else "macro_f1"
    dataset = make_dataset(task, classes, metric=metric)
    settings = {**SETTINGS, "epochs": 1, "class_average": class_average}
    finetune(dataset, pretrained, tmp_path / "plain", method="last", **settings)
    assert all(weights is None for _, weights in given)
    given.clear()
    finetune(dataset, pretrained, tmp_path / "out", method="last", **{**settings, "class_weights": "balanced"})
    assert len(given) == (1 + classes if class_average else 1)
    assert all(np.shape(weights) == (2 if task == "binary" else classes,) for _, weights in given[:1])
    assert all(weights[1] > weights[0] for _, weights in given[1:])  # one class against the rest: the rarer side


def test_unknown_class_weights_are_refused(pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none, balanced"):
        finetune(make_dataset(), pretrained, tmp_path, method="last", **{**SETTINGS, "class_weights": "heavy"})
