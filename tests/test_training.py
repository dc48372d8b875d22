"""The training loop: order, balance, phases, early stopping, and that nothing can kill it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from deepmoji import training
from deepmoji.batches import bucket, collate, epoch_order, label_groups
from deepmoji.checkpoints import STATE_FILE
from deepmoji.errors import TrainingError, UsageError
from deepmoji.model import DeepMoji, Task
from deepmoji.optimiser import RowAdam, clip_gradients
from deepmoji.phases import Phase
from deepmoji.tokens import Examples
from deepmoji.training import fit, predict_features, predict_logits
from tests.synthetic import CLASSES, WORDS, examples

ROOT = Path(__file__).resolve().parents[1]
ALL = Phase("all", ("all",), 1e-2, 2)


def tiny(task: Task = "multiclass", **options: object) -> DeepMoji:
    torch.manual_seed(0)
    return DeepMoji(WORDS, 1 if task == "binary" else CLASSES, 8, 6, task=task, **options)  # type: ignore[arg-type]


def weights(model: DeepMoji) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny layers on two busy cores wait for each other far longer than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- order and batches ---------------------------------------------------------------------------------------------


def test_unbalanced_epochs_walk_through_all_examples() -> None:
    groups = [np.arange(10)]
    first, second, third = (epoch_order(groups, 6, 0.0, (1, 0), epoch) for epoch in range(3))
    walk = np.concatenate([first, second, third])
    assert sorted(walk[:10]) == list(range(10))
    assert len(set(walk[10:])) == 8
    assert sorted(epoch_order(groups, None, 0.0, (1, 0), 5)) == list(range(10))


@pytest.mark.parametrize(("balance", "shares"), [(1.0, [0.5, 0.5]), (0.5, [0.75, 0.25]), (0.0, [0.9, 0.1])])
def test_balance_sets_the_share_of_each_label(balance: float, shares: list[float]) -> None:
    targets = np.array([0] * 900 + [1] * 100)
    order = epoch_order(label_groups(targets), 20_000, balance, (1, 0), 0)
    np.testing.assert_allclose(np.bincount(targets[order]) / len(order), shares, atol=0.02)
    if balance == 1.0:
        copies = np.bincount(order)[900:]  # about 10,000 draws from 100 texts: each comes equally often
        assert copies.max() - copies.min() <= 1


def test_multilabel_examples_without_a_label_are_a_group_of_their_own() -> None:
    targets = np.array([[1, 0], [1, 1], [0, 0]], dtype=np.float32)
    assert [group.tolist() for group in label_groups(targets)] == [[0, 1], [1], [2]]


def test_batches_hold_every_example_once_and_hardly_any_padding() -> None:
    data = examples(20_000)
    plan = list(bucket(data, np.arange(20_000), 64, (1,)))
    assert sorted(np.concatenate(plan)) == list(range(20_000))
    made = [collate(data, chosen, WORDS) for chosen in plan]
    assert sum(int(batch.lengths.sum()) for batch in made) / sum(batch.ids.numel() for batch in made) > 0.98
    widths = [batch.ids.shape[1] for batch in made]
    assert widths != sorted(widths) and widths != sorted(widths, reverse=True)


def test_batches_show_the_right_ids_and_targets() -> None:
    data = examples(50)
    batch = collate(data, np.array([7, 3]), WORDS)
    for row, example in enumerate((7, 3)):
        wanted = data.ids[data.offsets[example] : data.offsets[example + 1]]
        assert batch.ids[row, : len(wanted)].tolist() == wanted.tolist()
        assert not batch.ids[row, len(wanted) :].any()
    assert batch.targets.tolist() == data.targets[[7, 3]].tolist()


def test_prediction_is_in_input_order_at_any_batch_size() -> None:
    data, model = examples(37), tiny().eval()
    one_by_one = np.concatenate(
        [
            model(torch.from_numpy(data.ids[a:b].astype(np.int64))[None], torch.tensor([b - a])).detach().numpy()
            for a, b in zip(data.offsets, data.offsets[1:], strict=False)
        ]
    )
    for size in (1, 5, 64):
        np.testing.assert_allclose(predict_logits(model, data, batch_size=size), one_by_one, atol=1e-5)
    features = predict_features(model, data, batch_size=5)
    logits = model.output(torch.from_numpy(features)).detach().numpy()
    np.testing.assert_allclose(logits, one_by_one, atol=1e-5)


# --- optimiser -----------------------------------------------------------------------------------------------------


def test_row_adam_is_adam_where_all_rows_are_touched() -> None:
    torch.manual_seed(0)
    mine, theirs = (torch.nn.Parameter(torch.arange(12.0).reshape(4, 3)) for _ in range(2))
    rows, adam = RowAdam([mine], lr=0.1, l2=0.01), torch.optim.Adam([theirs], lr=0.1, weight_decay=0.02)
    for _ in range(5):
        gradient = torch.randn(4, 3)
        mine.grad, theirs.grad = gradient.clone(), gradient.clone()
        rows.step()
        adam.step()
    torch.testing.assert_close(mine, theirs)


def test_row_adam_leaves_untouched_rows_and_takes_sparse_as_dense() -> None:
    dense, sparse = (torch.nn.Parameter(torch.ones(5, 2)) for _ in range(2))
    optimisers = [RowAdam([parameter], lr=0.1, l2=0.01) for parameter in (dense, sparse)]
    for rows in ([1, 3, 3], [3, 4, 4]):
        values = torch.randn(3, 2, generator=torch.Generator().manual_seed(rows[0]))
        gradient = torch.sparse_coo_tensor(torch.tensor([rows]), values, (5, 2), check_invariants=True)
        dense.grad, sparse.grad = gradient.to_dense(), gradient
        for optimiser in optimisers:
            optimiser.step()
    torch.testing.assert_close(dense, sparse)
    assert torch.equal(dense[[0, 2]], torch.ones(2, 2))
    assert (dense[[1, 3, 4]] != 1).all()


def test_clipping_counts_sparse_gradients_once() -> None:
    dense, sparse = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(3, 1))
    dense.grad = torch.tensor([3.0, 0.0])
    sparse.grad = torch.sparse_coo_tensor(
        torch.tensor([[1, 1]]), torch.tensor([[1.0], [3.0]]), (3, 1), check_invariants=True
    )
    norm = clip_gradients([dense, sparse], 1.0)
    assert norm.item() == pytest.approx(5.0)  # 3, 4
    assert dense.grad[0].item() == pytest.approx(0.6, abs=1e-5)
    assert sparse.grad.to_dense()[1].item() == pytest.approx(0.8, abs=1e-5)


# --- phases --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
def test_each_task_is_learned(task: Task) -> None:
    model = tiny(task)
    phases = [replace(ALL, epochs=8)]
    result = fit(model, examples(600, 1, task), examples(100, 2, task), phases, batch_size=16, seed=1)
    assert result.phases[0]["best_validation_loss"] < 0.15
    test = examples(200, 3, task)
    logits = predict_logits(model, test)
    guess = {"multiclass": logits.argmax(1), "binary": logits[:, 0] > 0, "multilabel": logits > 0}[task]
    assert (guess == test.targets).mean() > 0.95


def test_a_phase_touches_only_its_layers() -> None:
    model = tiny()
    before = weights(model)
    phases = [Phase("head", ("output",), 1e-2, 1), Phase("embedding", ("embedding",), 1e-2, 1)]
    result = fit(model, examples(100), examples(50), phases, batch_size=16, seed=1)
    after = weights(model)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"output", "embedding"}
    assert [phase["name"] for phase in result.phases] == ["head", "embedding"]
    assert all(parameter.requires_grad for parameter in model.parameters())


def loss_on(model: DeepMoji, data: Examples) -> float:
    logits = torch.from_numpy(predict_logits(model, data))
    return torch.nn.functional.cross_entropy(logits, torch.from_numpy(data.targets)).item()


@pytest.mark.parametrize("rate", [3e-3, 3e-2])
def test_training_stops_when_validation_no_longer_improves_and_keeps_the_best(rate: float) -> None:
    # Labels without sense: the validation loss can only rise once the noise is learned by heart, here at once or later.
    train, validation = examples(60, 1), examples(60, 2)
    rng = np.random.default_rng(0)
    train, validation = (replace(d, targets=rng.integers(0, CLASSES, 60)) for d in (train, validation))
    model = tiny(final_dropout=0.0, embedding_dropout=0.0)
    start = loss_on(model, validation)
    phase = Phase("all", ("all",), rate, 50, patience=2)
    [result] = fit(model, train, validation, [phase], batch_size=16, seed=1, precision="fp32").phases
    losses = [start, *(row["validation_loss"] for row in result["history"])]
    assert result["epochs"] == len(losses) - 1 < 50
    assert result["epochs"] == int(np.argmin(losses)) + 2
    assert loss_on(model, validation) == pytest.approx(min(losses), abs=1e-5)
    assert result["best_validation_loss"] == pytest.approx(min(losses), abs=1e-5)


def test_no_phase_ends_worse_than_it_began() -> None:
    model = tiny()
    phases = [Phase("good", ("all",), 1e-2, 3), Phase("wild", ("all",), 3.0, 2)]
    result = fit(model, examples(200), examples(50), phases, batch_size=16, seed=1, precision="fp32").phases
    assert all(row["validation_loss"] > result[0]["best_validation_loss"] for row in result[1]["history"])
    assert result[1]["best_validation_loss"] == result[0]["best_validation_loss"]
    assert loss_on(model, examples(50)) == pytest.approx(result[0]["best_validation_loss"], abs=1e-5)


def test_the_seed_alone_decides() -> None:
    def run(seed: int) -> dict[str, torch.Tensor]:
        model = tiny()
        torch.rand(seed + 1)  # the caller's random state must not matter
        fit(model, examples(100), examples(50), [ALL], batch_size=16, seed=seed)
        return weights(model)

    first, again, other = run(1), run(1), run(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["output.weight"], other["output.weight"])


def test_the_callers_random_state_stays() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    model = DeepMoji(WORDS, CLASSES, 8, 6)
    torch.manual_seed(5)
    fit(model, examples(30), examples(30), [ALL], batch_size=16, seed=1)
    assert torch.equal(torch.rand(1), wanted)


def test_class_weights_move_the_decision() -> None:
    def share(class_weights: list[float] | None) -> float:
        model = tiny("binary")
        data = replace(examples(200, 1, "binary"), targets=np.arange(200) % 2)  # nothing to learn but the prior
        fit(model, data, data, [ALL], batch_size=16, seed=1, class_weights=class_weights)
        return float((1 / (1 + np.exp(-predict_logits(model, data)))).mean())

    assert share([1.0, 9.0]) > share(None) + 0.2


def test_report_gets_speed_and_losses() -> None:
    seen: dict[str, list[int]] = {}

    def report(numbers: dict[str, float], step: int) -> None:
        for name in numbers:
            seen.setdefault(name, []).append(step)

    fit(tiny(), examples(160), examples(50), [ALL], batch_size=16, seed=1, report=report)
    assert {"train_loss", "validation_loss", "tokens_per_second", "padding_share", "peak_memory_mb"} <= set(seen)
    assert seen["validation_loss"] == [10, 20]


# --- what cannot be trained ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phases", "options", "word"),
    [
        ([], {}, "no phase"),
        ([replace(ALL, train=("lstm2",))], {}, "lstm2"),
        ([replace(ALL, epochs=0)], {}, "epochs"),
        ([ALL], {"balance": 2.0}, "balance"),
        ([ALL], {"precision": "fp8"}, "fp8"),
        ([ALL], {"device": "toaster"}, "toaster"),
        ([ALL], {"class_weights": [1.0]}, "class weights"),
    ],
)
def test_wrong_use_is_refused(phases: list[Phase], options: dict[str, object], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        fit(tiny(), examples(20), examples(20), phases, batch_size=8, seed=1, **options)  # type: ignore[arg-type]


def test_examples_of_another_model_are_refused() -> None:
    data = examples(20)
    foreign = replace(data, ids=data.ids + np.uint16(WORDS))
    for bad, word in (
        (replace(data, targets=data.targets + CLASSES), "targets"),
        (replace(data, targets=np.zeros((20, CLASSES), np.float32)), "shape"),
        (replace(data, rows=data.rows[:0], targets=data.targets[:0]), "no training"),
        (foreign, "word id"),
    ):
        with pytest.raises(TrainingError, match=word):
            fit(tiny(), bad, data, [ALL], batch_size=8, seed=1)


@pytest.mark.parametrize(("where", "says"), [("loss", "training loss became nan"), ("gradient", "norm became inf")])
def test_what_is_no_number_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path, where: str, says: str) -> None:
    def run(model: DeepMoji, folder: Path) -> dict[str, torch.Tensor]:
        fit(model, examples(40), examples(20), [ALL], batch_size=8, seed=1, checkpoints=folder, checkpoint_seconds=0)
        return weights(model)

    broken, calls = tiny(), 0

    def fifth(value: torch.Tensor, factor: float) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return value * (factor if calls == 5 else 1)

    if where == "loss":
        broken.output.register_forward_hook(lambda module, _, out: fifth(out, float("nan")) if module.training else out)
    else:
        bias = broken.output.bias
        bias.register_hook(lambda it: fifth(it, float("inf")))  # type: ignore[no-untyped-call]
    with pytest.raises(TrainingError, match=says):
        run(broken, tmp_path / "broken")
    with safe_open(tmp_path / "broken" / STATE_FILE, framework="pt") as stream:
        assert json.loads(stream.metadata()["state"])["progress"]["step"] == 4
    gone_on, whole = run(tiny(), tmp_path / "broken"), run(tiny(), tmp_path / "whole")
    assert all(torch.equal(gone_on[name], whole[name]) for name in whole)


def test_a_full_disk_is_one_sentence_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> None:
        fit(tiny(), examples(40), examples(20), [ALL], batch_size=8, seed=1, checkpoints=tmp_path, checkpoint_seconds=0)

    saves = 0
    original = os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal saves
        saves += 1
        if saves == 4:
            raise OSError(28, "No space left on device")
        original(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(TrainingError, match=r"No space left on device.*intact"):
        run()
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]
    run()  # goes on from it
    assert load_file(tmp_path / STATE_FILE)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"seed": 2}, "seed was 1, is 2"),
        ({"batch_size": 4}, "batch_size was 8, is 4"),
        ({"phases": [replace(ALL, learning_rate=0.5)]}, "phases"),
        ({"train": examples(40, seed=9)}, "training data"),
        ({"context": {"vocabulary": "b"}}, "vocabulary was 'a', is 'b'"),
        ({"model": DeepMoji(WORDS, CLASSES, 8, 7)}, "model"),
    ],
)
def test_a_foreign_checkpoint_is_refused(tmp_path: Path, change: dict[str, object], word: str) -> None:
    options: dict[str, object] = {
        "model": tiny(), "train": examples(40), "validation": examples(20), "phases": [ALL], "batch_size": 8,
        "seed": 1, "checkpoints": tmp_path, "context": {"vocabulary": "a"},
    }  # fmt: skip
    fit(**options)  # type: ignore[arg-type]
    options["model"] = tiny()
    with pytest.raises(TrainingError, match=word):
        fit(**{**options, **change})  # type: ignore[arg-type]


def test_a_damaged_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).write_bytes(b"\x10\x00\x00\x00nonsense")
    with pytest.raises(TrainingError, match="cannot be read"):
        fit(tiny(), examples(40), examples(20), [ALL], batch_size=8, seed=1, checkpoints=tmp_path)


# --- kill -9 -------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from tests.synthetic import CLASSES, WORDS, examples
from deepmoji import training
from deepmoji.model import DeepMoji
from deepmoji.phases import Phase
from deepmoji.training import fit

folder, where, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
calls = 0

def dying(original):
    def call(*arguments):
        global calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)
    return call

if where == "step":
    training.clip_gradients = dying(training.clip_gradients)
if where == "save":
    os.fsync = dying(os.fsync)
torch.manual_seed(0)
model = DeepMoji(WORDS, CLASSES, 8, 6)
phases = [Phase("head", ("output",), 1e-2, 2), Phase("all", ("all",), 1e-2, 3, patience=2)]
fit(model, examples(200, 1), examples(50, 2), phases, batch_size=16, seed=3, balance=1.0,
    checkpoints=folder / "checkpoints", checkpoint_seconds=0)
save_file(model.state_dict(), folder / "final.safetensors")
"""


def run_killed(folder: Path, where: str, count: int) -> int:
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, str(folder), where, str(count)]
    return subprocess.run(command, env=environment, timeout=120, check=False).returncode


def test_killed_at_any_step_and_run_again_the_weights_are_the_same_bits(tmp_path: Path) -> None:
    assert run_killed(tmp_path / "whole", "never", 0) == 0
    # 2 epochs of 13 batches, then 3 of 13: in the first phase, while a file is written, in the second phase.
    step = int(np.random.default_rng().integers(2, 20))
    assert run_killed(tmp_path / "killed", "step", step) == -signal.SIGKILL
    assert run_killed(tmp_path / "killed", "save", 9) == -signal.SIGKILL
    assert run_killed(tmp_path / "killed", "step", 17) == -signal.SIGKILL
    assert run_killed(tmp_path / "killed", "never", 0) == 0
    whole, killed = ((tmp_path / name / "final.safetensors").read_bytes() for name in ("whole", "killed"))
    assert whole == killed, f"differs after kill -9 at step {step}"


def test_a_finished_training_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> tuple[str, dict[str, torch.Tensor]]:
        model = tiny()
        result = fit(model, examples(40), examples(20), [ALL], batch_size=8, seed=1, checkpoints=tmp_path)
        return json.dumps(result.phases), weights(model)

    first, before = run()
    monkeypatch.setattr(training, "_run_epoch", None)
    second, after = run()
    assert first == second
    assert all(torch.equal(before[name], after[name]) for name in before)
