"""The pretraining stage: from a token store to a model folder, alone and with a second process."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from deepmoji import stages
from deepmoji.checkpoints import STATE_FILE, load_model
from deepmoji.errors import InputError, ServiceError, TrainingError
from deepmoji.insight import describe, nearest_labels, read_sentiments, sentiment_agreement, similarities
from deepmoji.pretraining import evaluate, label_mixes, pretrain
from deepmoji.tokens import write_store
from deepmoji.vocabulary import SPECIALS, Vocabulary
from tests.conftest import ROOT, run_in
from tests.servers import free_port
from tests.synthetic import WORDS, examples

LABELS = ["😂", "😒", "😍", "💔"]
OPTIONS: dict[str, Any] = {
    "embedding_size": 8, "hidden_size": 6, "embedding_dropout": 0.0, "final_dropout": 0.0, "attention": True,
    "learning_rate": 0.02, "decay": False, "batch_size": 16,
    "epochs": 3, "epoch_size": None, "patience": None, "balance": 1.0,
    "precision": "fp32", "checkpoint_seconds": 0.0, "seed": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    folder = tmp_path / "tokens"
    folder.mkdir()
    vocabulary = Vocabulary((*SPECIALS, *(f"w{number}" for number in range(10, WORDS))))
    vocabulary.save(folder / "vocabulary.json")
    (folder / "labels.json").write_text(json.dumps(LABELS))
    for seed, (name, count) in enumerate({"train": 203, "val": 40, "test": 60}.items()):
        write_store(folder / name, [examples(count, seed)], {"vocabulary": vocabulary.digest, "max_length": 11})
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_stage_learns_and_writes_a_whole_model_folder(tokens: Path, tmp_path: Path) -> None:
    metrics = pretrain(tokens, tmp_path / "out", **{**OPTIONS, "epochs": 10}, checkpoints=tmp_path / "state")
    assert metrics["top1"] > 0.9 and metrics["top5"] == 1.0
    assert np.array(metrics["confusion"]).sum() == 60
    found = load_model(tmp_path / "out")
    assert found.labels == tuple(LABELS) and found.config["max_length"] == 11
    assert found.metrics["top1"] == metrics["top1"] and len(found.metrics["history"]) == 10
    written = contents(tmp_path / "out")
    assert {"plots/confusion.png", "plots/learning.png", "plots/dendrogram.png", "insight.json"} <= set(written)
    insight = json.loads(written["insight.json"])
    assert set(insight["nearest"]) == set(LABELS) and len(insight["phrases"]) == 10
    report = written["report.md"].decode()
    assert all(f"]({name})" in report for name in written if name.startswith("plots/"))
    assert all(f"| {row['text']} | {row['labels'][0]['label']} " in report for row in insight["phrases"])
    assert f"| {LABELS[0]} | {' '.join(insight['nearest'][LABELS[0]])} | " in report
    assert (tmp_path / "state" / STATE_FILE).exists(), "it goes once the stage is done with what it made"


def test_the_same_input_gives_the_same_bytes(tokens: Path, tmp_path: Path) -> None:
    pretrain(tokens, tmp_path / "a", **OPTIONS)
    pretrain(tokens, tmp_path / "b", **OPTIONS)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_store_of_another_vocabulary_is_refused(tokens: Path, tmp_path: Path) -> None:
    Vocabulary((*SPECIALS, *(f"x{number}" for number in range(10, WORDS)))).save(tokens / "vocabulary.json")
    with pytest.raises(InputError, match="another vocabulary"):
        pretrain(tokens, tmp_path / "out", **OPTIONS)


def test_an_unreadable_store_is_one_sentence_and_keeps_the_checkpoint(tokens: Path, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / STATE_FILE).write_bytes(b"good")
    (tokens / "train" / "ids.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(InputError, match="tokenize again"):
        pretrain(tokens, tmp_path / "out", **OPTIONS, checkpoints=tmp_path / "state")
    assert (tmp_path / "state" / STATE_FILE).read_bytes() == b"good"
    assert not (tmp_path / "out").exists()


def test_metrics_by_hand() -> None:
    logits = np.array([[9, 1, 0], [9, 1, 0], [0, 9, 1], [9, 1, 0]], dtype=np.float32)
    metrics = evaluate(logits, np.array([0, 0, 1, 1]), ["a", "b", "c"])
    assert metrics["rows"]["top1"] == 0.75
    assert metrics["top1"] == 0.75  # a: 2 of 2, b: 1 of 2, c has no example
    assert metrics["confusion"] == [[2, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert metrics["per_label"]["a"] == {"precision": pytest.approx(2 / 3), "recall": 1.0, "examples": 2}
    assert metrics["per_label"]["c"] == {"precision": None, "recall": None, "examples": 0}
    uneven = evaluate(logits[:3], np.array([0, 1, 1]), ["a", "b", "c"])
    assert uneven["top1"] == 0.75 and uneven["rows"]["top1"] == pytest.approx(2 / 3)
    # Of a as often as of b: b is claimed by half of b's texts and by none of a's; a by all of a's and half of b's.
    assert uneven["per_label"]["a"]["precision"] == pytest.approx(1 / 1.5)
    assert uneven["per_label"]["b"]["precision"] == 1.0


def test_figures_are_those_under_the_mix_of_labels_that_they_ask_about() -> None:
    """Two kinds of text, told apart a little; label a is nine times as frequent as b."""
    mixes = label_mixes(np.array([899, 99]), 0.5)
    assert mixes["natural"] == [0.9, 0.1] and mixes["learned"] == [pytest.approx(0.75), pytest.approx(0.25)]
    # A text of the second kind is twice as likely with b; trained on 3 to 1 the model still answers a for it.
    first, second = np.log([0.75 * 2, 0.25]), np.log([0.75, 0.25 * 2])
    logits = np.array([first] * 6 + [second] * 3 + [first] + [second] * 2, dtype=np.float32)
    targets = np.array([0] * 9 + [1] * 3)
    measured = evaluate(logits, targets, ["a", "b"], mixes)
    assert measured["top1"] == pytest.approx(2 / 3) and measured["per_label"]["b"]["recall"] == pytest.approx(2 / 3)
    assert measured["rows"]["top1"] == 0.75  # a for all of them: at 9 to 1 nothing else pays
    assert measured["as_trained"]["top1"] == pytest.approx(0.5)
    likely = np.log(2 / 3)
    assert measured["loss"] == pytest.approx(-(likely * 2 / 3 + np.log(1 / 3) / 3))
    assert "as_trained" not in evaluate(logits, targets, ["a", "b"])


def test_labels_predicted_together_are_near() -> None:
    rng = np.random.default_rng(0)
    mood = rng.normal(size=(200, 2))
    logits = np.stack([mood[:, 0], mood[:, 0] + 0.1 * mood[:, 1], -mood[:, 0], mood[:, 1]], axis=1).astype(np.float32)
    nearest = nearest_labels(similarities(logits), LABELS)
    assert nearest["😂"][0] == "😒" and nearest["😂"][-1] == "😍"


def test_similarities_are_checked_against_a_sentiment_ranking(tmp_path: Path) -> None:
    table = tmp_path / "ranking.csv"
    table.write_text("Emoji,Negative,Neutral,Positive\n😂,10,10,80\n😒,80,10,10\n😍,5,5,90\n💔,90,5,5\n🐙,1,1,1\n")
    # One more of each kind is counted, so 😂 is (81 - 11) / 103 and so on; likeness by just these is full agreement.
    sentiment = np.array([70 / 103, -70 / 103, 85 / 103, -85 / 103])
    kin = 1 - np.abs(sentiment[:, None] - sentiment)
    known = read_sentiments(table, LABELS)
    assert sentiment_agreement(kin, LABELS, known) == pytest.approx(1)
    assert sentiment_agreement(-kin, LABELS, known) == pytest.approx(-1)
    with pytest.raises(InputError, match="at least 3"):
        read_sentiments(table, ["a", "😂"])
    table.write_text("Emoji,Negative,Neutral,Positive\n😂,10,many,80\n")
    with pytest.raises(InputError, match="row 2"):
        read_sentiments(table, LABELS)
    table.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="columns"):
        read_sentiments(table, LABELS)


def test_a_ranking_gives_a_number_and_a_missing_one_costs_no_training(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "ranking.csv"
    table.write_text("Emoji,Negative,Neutral,Positive\n😂,10,10,80\n😒,80,10,10\n😍,5,5,90\n")
    options = {**OPTIONS, "epochs": 1}
    assert "sentiment_rank_correlation" not in pretrain(tokens, tmp_path / "without", **options)
    metrics = pretrain(tokens, tmp_path / "with", **options, sentiment_ranking=table)
    assert -1 <= metrics["sentiment_rank_correlation"] <= 1
    monkeypatch.setattr("deepmoji.pretraining.fit", None)
    with pytest.raises(InputError, match=r"ranking\.csv cannot be read"):
        pretrain(tokens, tmp_path / "missing", **options, sentiment_ranking=tmp_path / "no" / "ranking.csv")


def test_labels_are_described_with_what_the_font_can_write() -> None:
    assert describe("anger") == "anger"
    assert describe("😂").endswith("face with tears of joy")


# --- the stage in a project ------------------------------------------------------------------------------------------


def write_project(folder: Path, tokens: Path) -> Path:
    """A project of these tokens, and of OPTIONS for the stage."""
    folder.mkdir()
    (folder / "dvc.yaml").write_text("stages: {}\n")
    shutil.copytree(tokens, folder / "artifacts" / "tokens")
    return with_options(folder)


def test_an_outage_after_the_last_step_costs_no_training(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "deepmoji")
    project = stages.Project(write_project(tmp_path / "project", tokens))

    def away(*_: object) -> None:
        raise ServiceError("MLflow is away.")

    with monkeypatch.context() as patch, pytest.raises(ServiceError):
        patch.setattr("deepmoji.tracking.Run.artifacts", away)
        stages.pretrain(project)
    shutil.rmtree(project.artifacts / "pretrained")  # as DVC does before the second try
    monkeypatch.setattr("deepmoji.training._run_epoch", None)
    stages.pretrain(project)
    assert (project.artifacts / "pretrained" / "config.json").is_file()
    assert not list((project.state / "checkpoints").iterdir())


def with_options(folder: Path, **options: Any) -> Path:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["pretrain"] |= OPTIONS | options
    (folder / "params.yaml").write_text(yaml.safe_dump(content))
    return folder


def test_a_killed_training_waits_while_other_settings_train(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "deepmoji")
    project = write_project(tmp_path / "project", tokens)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("deepmoji.training._finish_epoch", killed)
        stages.pretrain(stages.Project(project))
    (waiting,) = (project / ".state" / "checkpoints").iterdir()
    assert "kept for" not in caplog.text
    stages.pretrain(stages.Project(with_options(project, learning_rate=0.01)))
    assert f"{waiting}: kept for when their settings and data are back" in caplog.text
    assert list(waiting.parent.iterdir()) == [waiting]
    assert "going on" not in caplog.text
    stages.pretrain(stages.Project(with_options(project, checkpoint_seconds=60.0)))
    assert "going on at step 13" in caplog.text
    assert list(waiting.parent.iterdir()) == []


def test_a_damaged_store_is_one_sentence_of_the_stage(tokens: Path, tmp_path: Path) -> None:
    project = write_project(tmp_path / "project", tokens)
    meta = project / "artifacts" / "tokens" / "train" / "meta.json"
    meta.write_text(meta.read_text()[:20])
    with pytest.raises(InputError, match=r"meta\.json cannot be read: run tokenize again"):
        stages.pretrain(stages.Project(project))


# --- two processes -------------------------------------------------------------------------------------------------

RANK = """
import json, os, signal, sys
from pathlib import Path
import torch
from deepmoji import training
from deepmoji.errors import DeepMojiError
from deepmoji.pretraining import pretrain

torch.set_num_threads(1)
tokens, out, options, dies_at = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4])
original, calls = training.clip_gradients, 0

def clip(*arguments):
    global calls
    calls += 1
    if calls == dies_at and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments)

training.clip_gradients = clip
try:
    pretrain(tokens, out / f"model{os.environ['RANK']}", checkpoints=out / f"state{os.environ['RANK']}", **options)
except DeepMojiError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def two_processes(tokens: Path, out: Path, dies_at: int = 0) -> list[tuple[int, str]]:
    """Exit code and stderr of both ranks."""
    command = [sys.executable, "-c", RANK, str(tokens), str(out), json.dumps(OPTIONS), str(dies_at)]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "PYTHONPATH": str(ROOT)}
    ranks = [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        return [(process.wait(150), process.communicate()[1]) for process in ranks]
    finally:
        for process in ranks:
            process.kill()


def test_two_processes_of_torchrun_follow_the_loss_curve_of_one(tokens: Path, tmp_path: Path) -> None:
    pretrain(tokens, tmp_path / "alone", **OPTIONS)
    project = write_project(tmp_path / "project", tokens)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "deepmoji", "pretrain"]
    done = run_in(project, sys.executable, *command, variables={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    nothing, numbers = sorted(map(json.loads, done.stdout.splitlines()), key=len)  # rank 0 alone has some
    assert nothing == {} and numbers["epochs"] == OPTIONS["epochs"]
    alone, together = (
        load_model(folder).metrics["history"] for folder in (tmp_path / "alone", project / "artifacts" / "pretrained")
    )
    for mine, theirs in zip(together, alone, strict=True):
        assert mine["train_loss"] == pytest.approx(theirs["train_loss"], abs=1e-4)
        assert mine["validation_loss"] == pytest.approx(theirs["validation_loss"], abs=1e-4)


def test_a_dead_process_is_a_clear_error_within_a_minute(tokens: Path, tmp_path: Path) -> None:
    begin = time.monotonic()
    (code, errors), (dead, _) = two_processes(tokens, tmp_path, dies_at=20)
    assert dead == -signal.SIGKILL
    assert code == 1 and "TrainingError: Another process of this training died" in errors
    assert time.monotonic() - begin < 60 + 30  # 30 s to start both
    assert (tmp_path / "state0" / STATE_FILE).is_file() and not (tmp_path / "state1").exists()  # rank 0 alone writes


def test_processes_that_do_not_meet_are_one_sentence(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = write_project(tmp_path / "project", tokens)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match="torchrun"):
        pretrain(tokens, tmp_path / "out", **OPTIONS)
    with pytest.raises(TrainingError, match="torchrun"):
        stages.pretrain(stages.Project(project))
    assert not (project / ".state").exists()  # the first process joins before it asks MLflow
