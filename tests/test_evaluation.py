"""A model measured on a corpus' test texts, smaller copies of it, and which model answers when none is named."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import deepmoji
from deepmoji import registry
from deepmoji.errors import InputError, UsageError
from deepmoji.evaluation import evaluate, gate_numbers, show
from deepmoji.pretraining import evaluate as measure
from deepmoji.starter import STARTER, compress, folder_bytes
from tests.tiny import TEXTS, tiny_model


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Four test texts from two sources and one of training, with three labels each, in a model's order of belief."""
    tiny_model(tmp_path / "tiny")
    model = deepmoji.load(tmp_path / "tiny")
    texts = ["i love this", "not good", "never", "hate you"]
    best = [[model.labels.index(p.label) for p in answer] for answer in model.predict(texts, top_k=6)]
    labels = (*model.labels[1:], model.labels[0])  # another order than the model's
    rows = pd.DataFrame(
        {
            "text": [*texts, "bad"],
            "labels": [[labels.index(model.labels[c]) for c in (order[0], order[2], order[5])] for order in best]
            + [[0]],
            "split": ["test"] * 4 + ["train"],
            "source": ["a", "a", "b", "b", "b"],
        }
    )
    folder = tmp_path / "corpus"
    folder.mkdir()
    rows[:2].to_parquet(folder / "part-0.parquet")
    rows[2:].to_parquet(folder / "part-1.parquet")
    (folder / "labels.json").write_text(json.dumps(labels))
    return folder


def test_a_model_is_measured_over_all_texts_and_by_source(corpus: Path) -> None:
    model = deepmoji.load(corpus.parent / "tiny")
    texts = ["i love this", "not good", "never", "hate you"]
    best = [[model.labels.index(p.label) for p in answer] for answer in model.predict(texts, top_k=6)]
    wanted = np.array([c for order in best for c in (order[0], order[2], order[5])])
    logits = np.log(model.probabilities(texts))[np.repeat(np.arange(4), 3)]
    expected = measure(logits, wanted, model.labels)
    measured = evaluate(corpus.parent / "tiny", corpus)
    for name in ("top1", "top5", "loss"):
        assert measured[name] == pytest.approx(expected[name])
    assert measured["top1"] < measured["top5"] < 1
    assert gate_numbers(corpus.parent / "tiny", corpus)["top1"] == measured["top1"]
    assert {name: part["examples"] for name, part in measured["sources"].items()} == {"a": 6, "b": 6}
    half = measure(logits[:6], wanted[:6], model.labels)
    assert measured["sources"]["a"]["rows"]["loss"] == pytest.approx(half["rows"]["loss"])
    assert [line.split()[0] for line in show(measured).splitlines()] == ["texts", "all", "a", "b"]


def test_the_mix_of_labels_that_a_model_was_trained_on_is_taken_out(
    corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = corpus.parent / "tiny"
    even = evaluate(folder, corpus)
    assert "does not say on which mix of labels it was trained" in caplog.text
    caplog.clear()
    mixes = {"natural": [0.5, 0.2, 0.1, 0.1, 0.05, 0.05], "learned": [0.3, 0.1, 0.2, 0.2, 0.1, 0.1]}
    (folder / "metrics.json").write_text(json.dumps({"mixes": mixes}))
    model = deepmoji.load(folder)
    texts = ["i love this", "not good", "never", "hate you"]
    best = [[model.labels.index(p.label) for p in answer] for answer in model.predict(texts, top_k=6)]
    wanted = np.array([c for order in best for c in (order[0], order[2], order[5])])
    logits = np.log(model.probabilities(texts))[np.repeat(np.arange(4), 3)]
    expected, measured = measure(logits, wanted, model.labels, mixes), evaluate(folder, corpus)
    assert measured["loss"] == pytest.approx(expected["loss"]) != even["loss"]
    assert measured["rows"]["loss"] == pytest.approx(expected["rows"]["loss"]) != measured["loss"]
    assert measured["sources"]["a"]["loss"] == pytest.approx(
        measure(logits[:6], wanted[:6], model.labels, mixes)["loss"]
    )
    assert not caplog.text


def test_what_cannot_be_compared_is_refused(corpus: Path, tmp_path: Path) -> None:
    (corpus / "labels.json").write_text(json.dumps(["joy", "fear"]))
    with pytest.raises(UsageError, match="have other labels"):
        gate_numbers(corpus.parent / "tiny", corpus)
    with pytest.raises(InputError, match="no labelled corpus"):
        gate_numbers(corpus.parent / "tiny", tmp_path)


def test_a_damaged_part_is_one_sentence(corpus: Path) -> None:
    (corpus / "part-1.parquet").write_bytes((corpus / "part-0.parquet").read_bytes()[:-9])
    with pytest.raises(InputError, match=r"part-1\.parquet cannot be read as Parquet"):
        gate_numbers(corpus.parent / "tiny", corpus)
    for part in corpus.glob("part-*"):
        part.unlink()
    with pytest.raises(InputError, match="no labelled corpus"):
        gate_numbers(corpus.parent / "tiny", corpus)


@pytest.mark.parametrize(("storage", "off"), [("fp32", 0.0), ("fp16", 1e-3), ("int8", 0.02)])
def test_a_smaller_copy_answers_nearly_the_same(tmp_path: Path, storage: str, off: float) -> None:
    tiny_model(tmp_path / "tiny")
    facts = compress(tmp_path / "tiny", tmp_path / "small", storage=storage, words=None)
    before, after = (deepmoji.load(tmp_path / name).probabilities(TEXTS) for name in ("tiny", "small"))
    assert np.abs(before - after).max() <= off
    assert facts["bytes"] == folder_bytes(tmp_path / "small")
    assert (tmp_path / "small" / "model.safetensors").stat().st_size < {"fp32": 1.01, "fp16": 0.7, "int8": 0.6}[
        storage
    ] * (tmp_path / "tiny" / "model.safetensors").stat().st_size


def test_a_cut_vocabulary_reads_the_other_words_as_unknown(tmp_path: Path) -> None:
    tiny_model(tmp_path / "tiny")
    words = len(deepmoji.load(tmp_path / "tiny").vocabulary)
    facts = compress(tmp_path / "tiny", tmp_path / "small", storage="fp32", words=words - 1)
    whole, cut = (deepmoji.load(tmp_path / name) for name in ("tiny", "small"))
    assert facts["words"] == len(cut.vocabulary) == words - 1
    last = whole.vocabulary.words[-1]
    unknown = whole.probabilities_from_ids(np.array([[1]]))
    assert np.allclose(cut.probabilities([last]), unknown, atol=1e-6)
    assert not np.allclose(whole.probabilities([last]), unknown, atol=1e-6)
    with pytest.raises(UsageError, match="storage"):
        compress(tmp_path / "tiny", tmp_path / "small", storage="int4", words=None)


def test_the_starter_model_answers_where_there_is_no_champion(tmp_path: Path) -> None:
    assert registry.default_model(None) == STARTER
    assert registry.default_model(tmp_path) == STARTER
    model = deepmoji.load(STARTER)
    assert model.name == STARTER
    assert len(model.labels) == 64
    assert model.predict(["i am so happy for you, congratulations"], top_k=1)[0][0].probability > 1 / 64
    assert folder_bytes(Path(deepmoji.__file__).parent / "data" / "starter") <= 12_000_000
