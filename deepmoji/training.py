"""The one training loop: `fit` learns through a list of phases; `predict_*` run a model over many texts.

Pretraining is one phase over all layers, chain-thaw six (paper, section 3.3). A phase ends when its epochs are
over or the validation loss stopped falling, and leaves its best weights behind, at worst those that it began with.
Under torchrun each process learns from its slice of every batch; the sum of their gradients is that of the whole batch.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.nn.parallel import DistributedDataParallel

from deepmoji import batches as data
from deepmoji.checkpoints import reason
from deepmoji.errors import TrainingError, UsageError
from deepmoji.model import DeepMoji
from deepmoji.optimiser import RowAdam, clip_gradients
from deepmoji.phases import LAYERS, Phase
from deepmoji.precision import autocast, choose_device, for_inference, uses_bf16
from deepmoji.progress import Meter, Progress, Report, load_progress, restore_moments, save_progress, weights_digest
from deepmoji.tokens import Examples

log = logging.getLogger(__name__)

LOG_BATCHES = 50  # between two lines about speed and loss
VALIDATION_BATCH = 512
START_TIMEOUT = timedelta(minutes=10)  # until all processes of a distributed training are ready
ExampleLosses = Callable[[Tensor, Tensor], Tensor]  # logits (B, C), targets -> (B,)


@dataclass(frozen=True)
class FitResult:
    """Per phase: name, epochs run, best_validation_loss, and history with both losses of each epoch."""

    phases: list[dict[str, Any]]


def fit(
    model: DeepMoji,
    train: Examples,
    validation: Examples,
    phases: Sequence[Phase],
    *,
    batch_size: int,
    seed: int,
    balance: float = 0.0,
    class_weights: ArrayLike | None = None,
    precision: str = "auto",
    clip_norm: float = 1.0,
    embedding_l2: float = 1e-6,
    device: str = "auto",
    checkpoints: Path | None = None,
    checkpoint_seconds: float = 60,
    report: Report | None = None,
    context: dict[str, str] | None = None,
) -> FitResult:
    """Train the model in place through the phases, on `device`; it comes back on the device where it was.

    `balance`: labels are drawn in proportion to count ** (1 - balance). `class_weights`: (C,) factors of the loss
    per true class (multiclass), (2,) for binary, (C,) on the positives (multilabel). With `checkpoints` the state
    is saved there every `checkpoint_seconds` and a killed run goes on from it, on the CPU with bit-identical
    result; `context` (vocabulary digest, ...) must then be the same. Dropout and order depend on the seed only.
    UsageError: phases or options that make no sense; TrainingError: see errors.
    """
    world = dist.get_world_size() if dist.is_initialized() else 1
    run = _Run(
        model=model,
        train=train,
        validation=validation,
        phases=tuple(phases),
        batch_size=batch_size,
        seed=seed % 2**63,
        balance=balance,
        losses=_example_losses(model, class_weights),
        device=choose_device(device),
        bf16=uses_bf16(precision, choose_device(device)),
        clip_norm=clip_norm,
        embedding_l2=embedding_l2,
        checkpoints=checkpoints,
        checkpoint_seconds=checkpoint_seconds,
        report=report,
        rank=dist.get_rank() if world > 1 else 0,
        world=world,
    )
    _check(run)
    identity = _identity(run, class_weights, context)
    home, sparse = next(model.parameters()).device, model.embedding.sparse
    gpus = [run.device] if run.device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        try:
            model.to(run.device)
            # On the CPU a dense gradient of 50,000 rows would cost more than the rows it holds.
            model.embedding.sparse = run.device.type == "cpu"
            if world > 1:
                # Any of them may have had work to do before, as the first has with MLflow and the data's digests.
                dist.barrier(dist.new_group(timeout=START_TIMEOUT, backend="gloo"))
            return FitResult(_run_phases(run, identity))
        except RuntimeError as error:
            _explain(error, world)
            raise
        finally:
            model.embedding.sparse = sparse
            model.requires_grad_(True)
            model.to(home).eval()


@dataclass(frozen=True)
class _Run:
    model: DeepMoji
    train: Examples
    validation: Examples
    phases: tuple[Phase, ...]
    batch_size: int
    seed: int
    balance: float
    losses: ExampleLosses
    device: torch.device
    bf16: bool
    clip_norm: float
    embedding_l2: float
    checkpoints: Path | None
    checkpoint_seconds: float
    report: Report | None
    rank: int
    world: int


def _run_phases(run: _Run, identity: dict[str, Any]) -> list[dict[str, Any]]:
    found = load_progress(run.checkpoints, run.model, identity) if run.checkpoints else None
    progress, best, moments = found or (Progress(), {}, {})
    if found:
        log.info("going on at step %d (phase %d, epoch %d)", progress.step, progress.phase + 1, progress.epoch + 1)
    groups = data.label_groups(run.train.targets) if run.balance else [np.arange(len(run.train.rows))]
    saved = time.monotonic()
    while progress.phase < len(run.phases):
        phase = run.phases[progress.phase]
        network, optimisers = _prepare(run, phase)
        restore_moments(run.model, optimisers, moments)
        moments = {}
        best = best or _weights(run.model)
        if progress.best is None:
            progress.best = _validation_loss(run)
        while progress.epoch < phase.epochs and not (phase.patience and progress.stale >= phase.patience):
            saved = _run_epoch(run, phase, network, optimisers, groups, progress, best, identity, saved)
            loss = _validation_loss(run)
            _finish_epoch(run, phase, progress, loss)
            if progress.stale == 0:
                best = _weights(run.model)
        run.model.load_state_dict(best)
        progress.phases.append(
            {
                "name": phase.name,
                "epochs": progress.epoch,
                "best_validation_loss": progress.best,
                "history": progress.history,
            }
        )
        progress = Progress(progress.phase + 1, step=progress.step, best=progress.best, phases=progress.phases)
        best = {}
        _save(run, progress, best, [], identity)
    return progress.phases


def _weights(model: DeepMoji) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _prepare(run: _Run, phase: Phase) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    """Freeze what the phase does not train, and give what it trains a fresh Adam."""
    layers = _layers(run.model) if "all" in phase.train else phase.train
    run.model.requires_grad_(False)
    for name in layers:
        run.model.get_submodule(name).requires_grad_(True)
    optimisers: list[torch.optim.Optimizer] = []
    if "embedding" in layers:
        optimisers.append(RowAdam(run.model.embedding.parameters(), phase.learning_rate, run.embedding_l2))
    others = [p for name in layers if name != "embedding" for p in run.model.get_submodule(name).parameters()]
    if others:
        optimisers.append(torch.optim.Adam(others, phase.learning_rate, fused=True))
    if run.world == 1:
        return run.model, optimisers
    # A view of the bucket saves a copy of every gradient each step. Without device_ids the lengths stay on the CPU.
    return DistributedDataParallel(run.model, gradient_as_bucket_view=True), optimisers


def _run_epoch(
    run: _Run,
    phase: Phase,
    network: nn.Module,
    optimisers: list[torch.optim.Optimizer],
    groups: list[NDArray[np.int64]],
    progress: Progress,
    best: dict[str, Tensor],
    identity: dict[str, Any],
    saved: float,
) -> float:
    """Learn from the rest of the epoch; returns when the last checkpoint was made."""
    key = (run.seed, progress.phase)
    order = data.epoch_order(groups, phase.epoch_size, run.balance, key, progress.epoch)
    plan = list(data.bucket(run.train, order, run.batch_size, (*key, progress.epoch)))
    title = f"{phase.name}, epoch {progress.epoch + 1} of {phase.epochs}"
    meter = Meter(run.report, title, len(plan), progress.batch, LOG_BATCHES, quiet=run.rank > 0)
    trained = [p for p in run.model.parameters() if p.requires_grad]
    total = torch.zeros((), dtype=torch.float64, device=run.device)
    run.model.train()
    mine = (chosen[run.rank :: run.world] for chosen in plan[progress.batch :])
    try:
        for chosen, batch in zip(plan[progress.batch :], _batches(run, run.train, mine), strict=True):
            torch.manual_seed(_step_seed(run, progress))
            rate = _learning_rate(phase, progress, len(plan))
            for optimiser in optimisers:
                optimiser.param_groups[0]["lr"] = rate
                optimiser.zero_grad(set_to_none=True)
            with autocast(run.bf16, run.device):
                logits = network(batch.ids, batch.lengths)
            share = float(run.rank < len(chosen))  # the last batch may be smaller than the number of processes
            loss = run.losses(logits, batch.targets).sum() * share
            # DDP averages over processes, so that together they follow the mean over the whole batch.
            torch.autograd.backward(loss * (run.world / len(chosen)))
            norm = clip_gradients(trained, run.clip_norm)
            for optimiser in optimisers:
                optimiser.step()
            total += loss.detach()
            progress.batch += 1
            progress.step += 1
            progress.examples += len(chosen)
            tokens, cells = int(batch.lengths.sum()), batch.ids.numel()
            meter.batch(len(batch.lengths), tokens, cells, loss.detach(), norm, progress.step)
            if _is_due(run, progress.step, saved):
                meter.flush(progress.step)  # raises before weights that are no numbers are saved
                _take_over(run, progress, total)
                _save(run, progress, best, optimisers, identity)
                saved = time.monotonic()
        meter.flush(progress.step)
        _take_over(run, progress, total)
    finally:
        meter.close()
    return saved


def _batches(run: _Run, examples: Examples, plan: Iterator[NDArray[np.int64]]) -> Iterator[data.Batch]:
    size = run.model.embedding.num_embeddings
    # An empty slice still has to take part in the exchange of gradients: example 0 stands in, with weight 0.
    made = (data.collate(examples, chosen if len(chosen) else np.zeros(1, np.int64), size) for chosen in plan)
    return data.to_device(made, run.device)


def _learning_rate(phase: Phase, progress: Progress, epoch_batches: int) -> float:
    if not phase.decay:
        return phase.learning_rate
    done = (progress.epoch * epoch_batches + progress.batch) / (phase.epochs * epoch_batches)
    return phase.learning_rate * (1 - done)


def _step_seed(run: _Run, progress: Progress) -> int:
    place = (run.seed, progress.phase, progress.epoch, progress.batch, run.rank)
    return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1)


def _is_due(run: _Run, step: int, saved: float) -> bool:
    if run.checkpoints is None:
        return False
    due = time.monotonic() - saved >= run.checkpoint_seconds
    if run.world == 1:
        return due
    if step % 10:
        return False
    flag = torch.tensor(float(due), device=run.device)
    dist.broadcast(flag, 0)
    return bool(flag)


def _take_over(run: _Run, progress: Progress, total: Tensor) -> None:
    """Move the loss of all processes since the last time into the progress."""
    if run.world > 1:
        dist.all_reduce(total)
    progress.loss_sum += float(total)
    total.zero_()


def _save(
    run: _Run,
    progress: Progress,
    best: dict[str, Tensor],
    optimisers: list[torch.optim.Optimizer],
    identity: dict[str, Any],
) -> None:
    if run.checkpoints is not None and run.rank == 0:
        save_progress(run.checkpoints, progress, run.model, best, optimisers, identity)


def _finish_epoch(run: _Run, phase: Phase, progress: Progress, loss: float) -> None:
    train_loss = progress.loss_sum / progress.examples
    if not np.isfinite(loss):
        raise TrainingError(
            f"The validation loss became {loss} in epoch {progress.epoch + 1} of {phase.name}: "
            "lower the learning rate or use precision fp32, the last good checkpoint is intact."
        )
    better = progress.best is None or loss < progress.best
    progress.best = loss if better else progress.best
    progress.stale = 0 if better else progress.stale + 1
    progress.history.append({"epoch": progress.epoch + 1, "train_loss": train_loss, "validation_loss": loss})
    progress.epoch += 1
    progress.batch = progress.examples = 0
    progress.loss_sum = 0.0
    if run.rank == 0:
        log.info("%s: epoch %d, train loss %.4f, validation loss %.4f", phase.name, progress.epoch, train_loss, loss)
        if run.report is not None:
            run.report({"epoch_train_loss": train_loss, "validation_loss": loss}, progress.step)


@torch.no_grad()
def _validation_loss(run: _Run) -> float:
    """Mean loss over the validation examples, in eval mode; each process takes every n-th batch."""
    run.model.eval()
    order = np.arange(len(run.validation.rows))
    plan = list(data.bucket(run.validation, order, VALIDATION_BATCH, (0,), window=len(order)))[run.rank :: run.world]
    total = torch.zeros((), dtype=torch.float64, device=run.device)
    for batch in _batches(run, run.validation, iter(plan)):
        with autocast(run.bf16, run.device):
            logits = run.model(batch.ids, batch.lengths)
        total += run.losses(logits, batch.targets).sum()
    if run.world > 1:
        dist.all_reduce(total)
    return float(total) / len(order)


def predict_logits(
    model: DeepMoji, examples: Examples, *, batch_size: int = 256, precision: str = "fp32", device: str = "auto"
) -> NDArray[np.float32]:
    """Logits (N, C) of all texts, in input order; batches are made by length."""
    return _predict(model, examples, batch_size, precision, device, DeepMoji.forward, model.output.out_features)


def predict_features(
    model: DeepMoji, examples: Examples, *, batch_size: int = 256, precision: str = "fp32", device: str = "auto"
) -> NDArray[np.float32]:
    """Features (N, F) of all texts, in input order: what the output layer sees, without dropout."""

    def features(network: DeepMoji, ids: Tensor, lengths: Tensor) -> Tensor:
        return network.features(ids, lengths)[0]

    return _predict(model, examples, batch_size, precision, device, features, model.feature_size)


def _predict(
    model: DeepMoji,
    examples: Examples,
    batch_size: int,
    precision: str,
    device: str,
    compute: Callable[[DeepMoji, Tensor, Tensor], Tensor],
    width: int,
) -> NDArray[np.float32]:
    where = choose_device(device)
    home, training = next(model.parameters()).device, model.training
    out = np.zeros((len(examples.offsets) - 1, width), dtype=np.float32)
    network = for_inference(model.to(where), uses_bf16(precision, where))
    try:
        with torch.inference_mode():
            for rows in data.by_length(examples, batch_size):
                ids, lengths = data.gather_ids(examples, rows, model.embedding.num_embeddings)
                out[rows] = compute(network, ids.to(where), lengths).float().cpu().numpy()
    finally:
        model.to(home).train(training)
    return out


def _example_losses(model: DeepMoji, class_weights: ArrayLike | None) -> ExampleLosses:
    """The loss of each example (B,): cross entropy, or the mean over columns of binary cross entropies."""
    columns = 2 if model.task == "binary" else model.output.out_features
    weights = None if class_weights is None else torch.tensor(np.asarray(class_weights), dtype=torch.float32)
    if weights is not None and weights.shape != (columns,):
        raise UsageError(f"There are {tuple(weights.shape)} class weights: give one for each of {columns} classes.")

    def losses(logits: Tensor, targets: Tensor) -> Tensor:
        factors = None if weights is None else weights.to(logits.device)
        if model.task == "multiclass":
            return cross_entropy(logits, targets, weight=factors, reduction="none")
        if model.task == "multilabel":
            return binary_cross_entropy_with_logits(logits, targets, pos_weight=factors, reduction="none").mean(1)
        plain = binary_cross_entropy_with_logits(logits[:, 0], targets.to(logits.dtype), reduction="none")
        return plain if factors is None else plain * factors[targets]

    return losses


def _layers(model: DeepMoji) -> tuple[str, ...]:
    return tuple(name for name in LAYERS if getattr(model, name) is not None)


def _check(run: _Run) -> None:
    if not run.phases:
        raise UsageError("There is no phase to train: give at least one.")
    layers = _layers(run.model)
    for phase in run.phases:
        if phase.solve:
            raise UsageError(f"Phase {phase.name!r} is to be solved: only the first phase of a fine-tune can be.")
        unknown = [name for name in phase.train if name not in (*layers, "all")]
        if unknown or not phase.train:
            raise UsageError(
                f"Phase {phase.name!r} trains {', '.join(unknown) or 'nothing'}: "
                f"choose from {', '.join(layers)} or all."
            )
        for name in ("epochs", "patience", "epoch_size"):
            value = getattr(phase, name)
            if value is not None and value < 1:
                raise UsageError(f"Phase {phase.name!r} has {name} {value}: give a number above 0.")
    if run.batch_size < 1 or not 0 <= run.balance <= 1:
        raise UsageError(
            f"Batch size {run.batch_size} or balance {run.balance} makes no sense: "
            "give a batch size above 0 and a balance from 0 to 1."
        )
    for examples, name in ((run.train, "training"), (run.validation, "validation")):
        data.check_examples(examples, run.model.output.out_features, run.model.task, name)


def _identity(run: _Run, class_weights: ArrayLike | None, context: dict[str, str] | None) -> dict[str, Any]:
    """What a checkpoint must have in common with the run that goes on from it."""
    if run.checkpoints is None:
        return {}
    return {
        **(context or {}),
        "model": run.model.config,
        "start weights": weights_digest(run.model),
        "phases": [{**asdict(phase), "train": list(phase.train)} for phase in run.phases],
        "batch_size": run.batch_size,
        "seed": run.seed,
        "balance": run.balance,
        "class_weights": None if class_weights is None else np.asarray(class_weights, dtype=float).tolist(),
        "bf16": run.bf16,
        "clip_norm": run.clip_norm,
        "embedding_l2": run.embedding_l2,
        "training data": data.examples_digest(run.train),
        "validation data": data.examples_digest(run.validation),
    }


def _explain(error: RuntimeError, world: int) -> None:
    """Raise a TrainingError where another process of a distributed training is the cause."""
    text = str(error)
    if world > 1 and any(word in text for word in ("gloo", "NCCL", "Connection", "Timed out", "timed out")):
        raise TrainingError(
            f"Another process of this training died or hangs ({reason(error)}): "
            "look at its log and start all processes again, they go on from the last checkpoint."
        ) from None
