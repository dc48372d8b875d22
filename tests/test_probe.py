"""The output layer as a logistic regression of frozen features."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepmoji.batches import epoch_order, label_groups
from deepmoji.checkpoints import load_model
from deepmoji.errors import UsageError
from deepmoji.finetuning import finetune, prepare, sampling_weights
from deepmoji.model import DeepMoji
from deepmoji.phases import Phase
from deepmoji.probe import ABSENT, solve_output
from deepmoji.training import fit, predict_features, predict_logits
from tests.test_finetuning import SETTINGS, make_dataset, moved, pretrained

__all__ = ["pretrained"]


def solved(pretrained: Path, task: str, classes: int, columns: int, **options: Any) -> tuple[DeepMoji, Any, Any]:
    start = load_model(pretrained)
    dataset = make_dataset(task, classes)
    prepared = prepare(dataset, start.vocabulary, max_length=None, new_words=0)
    model = DeepMoji(**{**start.model.config, "classes": columns, "task": task})
    model.load_state_dict(
        {**model.state_dict(), **{k: v for k, v in start.model.state_dict().items() if not k.startswith("output")}}
    )
    return model, prepared.examples, solve_output(model, prepared.examples, **options)


@pytest.mark.parametrize(("task", "classes", "columns"), [("binary", 2, 1), ("multiclass", 3, 3), ("multilabel", 3, 3)])
def test_the_layer_separates_what_features_separate(pretrained: Path, task: str, classes: int, columns: int) -> None:
    model, examples, phase = solved(pretrained, task, classes, columns)
    logits, truth = predict_logits(model, examples["test"]), examples["test"].targets
    found = logits.argmax(1) if task == "multiclass" else logits > 0
    assert (found == truth.reshape(found.shape)).all()
    assert phase["epochs"] == 0 and phase["history"] == []
    given, wanted = torch.from_numpy(predict_logits(model, examples["val"])), torch.tensor(examples["val"].targets)
    loss = (
        torch.nn.functional.cross_entropy(given, wanted)
        if task == "multiclass"
        else torch.nn.functional.binary_cross_entropy_with_logits(given, wanted.float().reshape(given.shape))
    )
    assert phase["best_validation_loss"] == pytest.approx(float(loss), rel=1e-4)


def test_it_is_where_the_gradient_of_the_regularised_loss_is_zero(pretrained: Path) -> None:
    model, examples, phase = solved(pretrained, "multiclass", 3, 3)
    features = torch.from_numpy(predict_features(model, examples["train"])).double()
    weight, bias = (part.detach().double().requires_grad_() for part in (model.output.weight, model.output.bias))
    truth = torch.tensor(examples["train"].targets)
    loss = torch.nn.functional.cross_entropy(features @ weight.T + bias, truth, reduction="sum")
    loss = phase["inverse_strength"] * loss + weight.square().sum() / 2
    loss.backward()
    assert weight.grad is not None and bias.grad is not None
    assert float(weight.grad.abs().max()) < 0.05 * max(1.0, phase["inverse_strength"])
    assert float(bias.grad.abs().max()) < 0.05 * max(1.0, phase["inverse_strength"])


def test_classes_without_a_training_text_are_not_predicted(pretrained: Path) -> None:
    start = load_model(pretrained)
    prepared = prepare(make_dataset("multiclass", 2), start.vocabulary, max_length=None, new_words=0)
    model = DeepMoji(**{**start.model.config, "classes": 4, "task": "multiclass"})
    solve_output(model, prepared.examples)
    logits = predict_logits(model, prepared.examples["test"])
    assert set(logits.argmax(1)) == {0, 1}
    assert (model.output.bias[2:] == ABSENT).all()


def test_a_class_that_counts_more_is_predicted_more(pretrained: Path) -> None:
    shares = []
    for weights in ((1.0, 50.0), (50.0, 1.0)):
        model, examples, _ = solved(pretrained, "binary", 2, 1, class_weights=np.array(weights))
        shares.append(float(predict_logits(model, examples["val"]).mean()))
    assert shares[0] > shares[1]


def test_weights_that_stand_for_drawing() -> None:
    targets = np.array([0, 0, 0, 1])
    np.testing.assert_allclose(sampling_weights(targets, 1.0), [2 / 3, 2 / 3, 2 / 3, 2.0])
    np.testing.assert_allclose(sampling_weights(targets, 0.0), [1.0] * 4)


@pytest.mark.parametrize("balance", [0.5, 1.0])
def test_weights_are_how_often_texts_of_several_labels_are_drawn(balance: float) -> None:
    targets = np.array([[1, 0, 0]] * 6 + [[1, 1, 0]] * 2 + [[0, 0, 1], [0, 0, 0], [0, 0, 0]], np.float32)
    order = epoch_order(label_groups(targets), 20_000, balance, (1,), 0)
    drawn = np.bincount(order, minlength=len(targets)) * len(targets) / len(order)
    np.testing.assert_allclose(sampling_weights(targets, balance), drawn, rtol=0.05)


def test_texts_that_count_more_decide_more(pretrained: Path) -> None:
    _, examples, _ = solved(pretrained, "multilabel", 3, 3)
    shares = []
    for factor in (0.02, 50.0):
        weights = np.where(examples["train"].targets[:, 0] > 0.5, factor, 1.0)
        model, examples, _ = solved(pretrained, "multilabel", 3, 3, example_weights=weights)
        shares.append(float(predict_logits(model, examples["val"])[:, 0].mean()))
    assert shares[1] > shares[0]


def test_a_fine_tune_may_stop_there_or_go_on(pretrained: Path, tmp_path: Path) -> None:
    before = load_model(pretrained).model.state_dict()
    results = {}
    for method in ("probe", "probe-thaw"):
        results[method] = finetune(make_dataset(), pretrained, tmp_path / method, method=method, **SETTINGS)
    after = load_model(tmp_path / "probe").model.state_dict()
    assert moved({k: v for k, v in before.items() if not k.startswith("output")}, after) == set()
    (seed,) = results["probe"]["seeds"]
    assert [phase["epochs"] for phase in seed["phases"]] == [0]
    assert "| solved | none |" in (tmp_path / "probe" / "MODEL_CARD.md").read_text()
    (seed,) = results["probe-thaw"]["seeds"]
    assert [phase["epochs"] > 0 for phase in seed["phases"]] == [False, True, True, True, True, True]
    trains = [phase["train"] for phase in results["probe-thaw"]["schedule"]]
    assert trains == [["output"], ["embedding"], ["lstm0"], ["lstm1"], ["attention"], ["all"]]


def test_only_a_first_phase_can_be_solved(pretrained: Path, tmp_path: Path) -> None:
    options = {**SETTINGS, "schedules": {"mine": [{"train": ["all"]}, {"train": ["output"], "solve": True}]}}
    with pytest.raises(UsageError, match="only a first phase that trains"):
        finetune(make_dataset(), pretrained, tmp_path / "out", method="mine", **options)
    start = load_model(pretrained)
    prepared = prepare(make_dataset("multiclass", 2), start.vocabulary, max_length=None, new_words=0)
    phase = Phase("late", ("output",), 0.1, 1, solve=True)
    with pytest.raises(UsageError, match="is to be solved"):
        fit(start.model, prepared.examples["train"], prepared.examples["val"], [phase], batch_size=8, seed=1)
