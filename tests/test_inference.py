"""A model folder in use: shapes, order, independence of the batch, and the open cases."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

import deepmoji
from deepmoji import inference
from deepmoji.errors import InputError, UsageError
from deepmoji.inference import Model, Prediction, load_folder
from tests.tiny import TEXTS, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_folder(tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


def test_load_takes_a_folder(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "m")
    loaded = deepmoji.load(folder)
    assert isinstance(loaded, deepmoji.Model)
    assert loaded.name == str(folder)
    assert loaded.labels[0] == "😂"


def test_probabilities_are_those_of_the_network(model: Model) -> None:
    ids = torch.tensor([[10, 11, 13]])
    logits = model._network.eval()(ids, torch.tensor([3]))
    expected = torch.softmax(logits, 1).detach().numpy()
    np.testing.assert_allclose(model.probabilities(["I love this"]), expected, atol=1e-6)
    np.testing.assert_allclose(model.probabilities_from_ids(ids.numpy()), expected, atol=1e-6)


def test_predict_ranks_labels(model: Model) -> None:
    answers = model.predict(TEXTS, top_k=3)
    shares = model.probabilities(TEXTS)
    assert len(answers) == len(TEXTS)
    for answer, row in zip(answers, shares, strict=True):
        assert [p.label for p in answer] == [model.labels[c] for c in np.argsort(-row)[:3]]
        assert [p.probability for p in answer] == sorted(row, reverse=True)[:3]
    label, probability = answers[0][0]
    assert isinstance(answers[0][0], Prediction) and isinstance(label, str) and type(probability) is float


@pytest.mark.parametrize(
    ("thresholds", "rows", "expected"),
    [
        (None, [[0.2, 0.5, 0.3]], [["b"]]),
        ([0.1, 0.6, 0.3], [[0.2, 0.5, 0.3], [0.0, 0.1, 0.2]], [["a", "c"], []]),
        ([0.3], [[0.71, 0.29], [0.7, 0.3]], [["a"], ["b"]]),
    ],
    ids=["none", "a label each", "two classes"],
)
def test_labels_count_from_their_thresholds_on(
    tmp_path: Path, thresholds: list[float] | None, rows: list[list[float]], expected: list[list[str]]
) -> None:
    loaded = load_folder(tiny_model(tmp_path / "m"))
    loaded.labels = ("a", "b", "c")[: len(rows[0])]
    loaded.config = {**loaded.config, "thresholds": thresholds}
    assert loaded.decide(np.array(rows, dtype=np.float32)) == expected


def test_top_k_beyond_the_labels_gives_all(model: Model) -> None:
    assert len(model.predict(["love"], top_k=99)[0]) == len(model.labels)
    with pytest.raises(UsageError, match="top_k is 0"):
        model.predict(["love"], top_k=0)


def test_answers_do_not_depend_on_company_or_order(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*TEXTS, "love " * 7, ""]
    together = model.probabilities(texts), model.encode(texts)
    alone = [np.concatenate([f([text]) for text in texts]) for f in (model.probabilities, model.encode)]
    turned = [f(texts[::-1])[::-1] for f in (model.probabilities, model.encode)]
    monkeypatch.setattr(inference, "BATCH_TOKENS", 11)
    cut = model.probabilities(texts), model.encode(texts)
    for other in (alone, turned, cut):
        for a, b in zip(together, other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    assert np.ptp(together[0], axis=0).max() > 0.01, "the texts differ, so the comparison means something"


def test_padding_does_not_matter(model: Model) -> None:
    ids = model.vocabulary.encode(TEXTS, 8)
    wide = np.pad(ids, ((0, 0), (0, 9)))
    np.testing.assert_allclose(model.probabilities_from_ids(ids), model.probabilities(TEXTS), atol=1e-6)
    np.testing.assert_allclose(model.probabilities_from_ids(wide), model.probabilities(TEXTS), atol=1e-6)
    np.testing.assert_allclose(model.encode_from_ids(wide), model.encode(TEXTS), atol=1e-6)
    attention = model.attention_from_ids(wide)
    assert attention.shape == wide.shape
    assert (attention[wide == 0] == 0).all()
    np.testing.assert_allclose(attention.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(attention[:, :8], model.attention_from_ids(ids), atol=1e-6)


def test_explain_gives_tokens_in_input_order(model: Model) -> None:
    words = model.explain(["I hate this shit @you http://a.io 42 zebra"])[0]
    assert [token for token, _ in words] == [
        "i", "hate", "this", "shit", "CUSTOM_AT", "CUSTOM_URL", "CUSTOM_NUMBER", "zebra",
    ]  # fmt: skip
    assert words.truncated == 0
    assert sum(share for _, share in words) == pytest.approx(1, abs=1e-5)
    ids = model.vocabulary.encode(["I hate this shit @you http://a.io 42 zebra"], 8)
    np.testing.assert_allclose([share for _, share in words], model.attention_from_ids(ids)[0], atol=1e-6)


def test_what_is_not_read_of_a_long_text_is_told(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    text = "love " * 8 + "hate bad"
    words = model.explain([text, "love"])
    assert [token for token, _ in words[0]][-2:] == ["hate", "bad"]
    assert words[0].truncated == 2 and words[1].truncated == 0
    assert [share for _, share in words[0]][-2:] == [0.0, 0.0]
    with caplog.at_level(logging.WARNING):
        cut = model.probabilities([text, "love"])
    assert "1 of 2 texts were read up to their first 8 tokens" in caplog.text
    np.testing.assert_allclose(cut[:1], model.probabilities(["love " * 8]), atol=1e-6)


def test_max_length_can_be_chosen(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "m")
    short, long = load_folder(folder, max_length=2), load_folder(folder, max_length=50)
    text = "i love this shit " * 5
    np.testing.assert_allclose(short.probabilities([text]), short.probabilities(["i love"]), atol=1e-6)
    assert long.explain([text])[0].truncated == 0
    with pytest.raises(UsageError, match="max_length is 0"):
        load_folder(folder, max_length=0)


def test_a_text_without_tokens_gets_the_answer_without_evidence(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        shares = model.probabilities(["", "love"])
    assert "1 of 2 texts hold no token" in caplog.text
    bias = torch.softmax(model._network.output.bias, 0).detach().numpy()
    np.testing.assert_allclose(shares[0], bias, atol=1e-6)
    assert (model.encode([""]) == 0).all()
    assert model.explain([""]) == [[]]


def test_rows_of_zeros_and_no_rows(model: Model) -> None:
    ids = np.zeros((3, 5), dtype=np.uint16)
    assert np.isfinite(model.probabilities_from_ids(ids)).all()
    assert (model.attention_from_ids(ids) == 0).all()
    assert model.probabilities([]).shape == (0, 6)
    assert model.encode([]).shape == (0, 32)
    assert model.predict([]) == [] and model.explain([]) == []
    assert model.encode_from_ids(np.zeros((0, 4), dtype=np.int64)).shape == (0, 32)
    assert model.attention_from_ids(np.zeros((2, 0), dtype=np.int64)).shape == (2, 0)


def test_a_binary_model_answers_for_both_classes(tmp_path: Path) -> None:
    model = load_folder(tiny_model(tmp_path / "m", ("negative", "positive"), task="binary"))
    shares = model.probabilities(TEXTS)
    assert shares.shape == (len(TEXTS), 2)
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
    ids = torch.tensor([[10, 11, 13]])
    positive = torch.sigmoid(model._network(ids, torch.tensor([3]))).item()
    assert shares[0, 1] == pytest.approx(positive, abs=1e-6)
    assert {p.label for p in model.predict(["love"])[0]} == {"negative", "positive"}


def test_labels_of_a_multilabel_model_stand_for_themselves(tmp_path: Path) -> None:
    model = load_folder(tiny_model(tmp_path / "m", ("joy", "fear", "anger"), task="multilabel"))
    shares = model.probabilities(TEXTS)
    assert shares.shape == (len(TEXTS), 3)
    assert (np.abs(shares.sum(1) - 1) > 0.01).any()
    assert ((shares > 0) & (shares < 1)).all()


def test_a_model_without_attention_refuses_to_explain(tmp_path: Path) -> None:
    model = load_folder(tiny_model(tmp_path / "m", attention=False))
    assert model.encode(["love"]).shape == (1, 12)
    for ask in (lambda: model.explain(["love"]), lambda: model.attention_from_ids(np.array([[10]]))):
        with pytest.raises(UsageError, match="without attention"):
            ask()


def test_wrong_input_is_one_sentence(model: Model, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="put it in brackets"):
        model.predict("I love this")
    with pytest.raises(UsageError, match="Text 1 is of type NoneType"):
        model.encode(["love", None])  # type: ignore[list-item]
    for ids in (np.array([1, 2]), np.array([[0.5]])):
        with pytest.raises(UsageError, match="give a matrix"):
            model.encode_from_ids(ids)
    for wrong in (99, -1):
        with pytest.raises(UsageError, match="the vocabulary from 0 to 24"):
            model.encode_from_ids(np.array([[1, wrong]]))
    with pytest.raises(InputError, match="is missing"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="fp64"):
        load_folder(tiny_model(tmp_path / "m"), precision="fp64")


def test_bf16_is_near_fp32(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "m")
    exact, coarse = load_folder(folder), load_folder(folder, precision="bf16")
    difference = np.abs(exact.probabilities(TEXTS) - coarse.probabilities(TEXTS)).max()
    assert 0 < difference < 0.05


def test_batches_bound_the_padded_size() -> None:
    lengths = np.array([3, 40_000, 0, 200, 7, *[30] * 2000])
    batches = inference._batches(lengths)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for rows in batches:
        assert len(rows) <= inference.BATCH_ROWS
        assert len(rows) == 1 or len(rows) * lengths[rows].max() <= inference.BATCH_TOKENS
