"""Which examples come when, and how they become tensors: balanced sampling, length buckets, prefetching.

Everything here is a function of (seed, phase, epoch), so a restarted run sees the same batches in the same order.
N texts, P examples (a text with three emojis is three examples), B batch, T tokens.
"""

import hashlib
import queue
import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepmoji.errors import TrainingError
from deepmoji.tokens import Examples

Ints = NDArray[np.int64]

WINDOW_BATCHES = 256  # sorted by length together: few batches mix lengths, and order stays random


class Batch(NamedTuple):
    """ids (B, T) int64, lengths (B,) int64 on the CPU, targets (B,) int64 or (B, C) float32."""

    ids: Tensor
    lengths: Tensor
    targets: Tensor


def epoch_order(groups: list[Ints], size: int | None, balance: float, seed: tuple[int, ...], epoch: int) -> Ints:
    """The examples of one epoch, (size,) indices in random order.

    `groups` are the examples of each label. Label l is drawn in proportion to count_l ** (1 - balance): 0 leaves
    the data's own mix, 1 makes labels equally frequent. Within a label no example comes again before all came.
    Without balance consecutive epochs walk through permutations of all examples, so none is favoured.
    """
    if balance == 0:
        return _walk(np.concatenate(groups) if len(groups) > 1 else groups[0], size, seed, epoch)
    rng = np.random.default_rng((*seed, epoch))
    total = size or int(sum(len(group) for group in groups))
    weights = np.array([len(group) ** (1 - balance) if len(group) else 0.0 for group in groups])
    draws = rng.multinomial(total, weights / weights.sum())
    order = np.concatenate([_draw(group, int(count), rng) for group, count in zip(groups, draws, strict=True)])
    rng.shuffle(order)
    return order


def _draw(group: Ints, count: int, rng: np.random.Generator) -> Ints:
    if count == 0:
        return group[:0]
    whole, rest = divmod(count, len(group))
    return np.concatenate([np.tile(group, whole), rng.choice(group, rest, replace=False)])


def _walk(examples: Ints, size: int | None, seed: tuple[int, ...], epoch: int) -> Ints:
    n = len(examples)
    start = epoch * (size or n)
    end = start + (size or n)
    pieces = []
    for turn in range(start // n, -(-end // n)):
        permuted = np.random.default_rng((*seed, turn)).permutation(examples)
        pieces.append(permuted[max(start - turn * n, 0) : end - turn * n])
    return np.concatenate(pieces)


def label_groups(targets: NDArray[np.generic]) -> list[Ints]:
    """Example indices per label; of multilabel targets (P, C), one more group holds the examples without any."""
    if targets.ndim == 1:
        order = np.argsort(targets, kind="stable")
        counts = np.bincount(targets.astype(np.int64))
        return [group.astype(np.int64) for group in np.split(order, np.cumsum(counts)[:-1])]
    positive = targets > 0.5  # type: ignore[operator]
    groups = [np.flatnonzero(column).astype(np.int64) for column in positive.T]
    return [*groups, np.flatnonzero(~positive.any(axis=1)).astype(np.int64)]


def bucket(
    examples: Examples, order: Ints, batch_size: int, seed: tuple[int, ...], window: int = WINDOW_BATCHES
) -> Iterator[Ints]:
    """Batches of nearly equal length: each window of the order is sorted, cut, and its batches shuffled."""
    span = window * batch_size
    for number, start in enumerate(range(0, len(order), span)):
        part = order[start : start + span]
        part = part[np.argsort(_lengths(examples, examples.rows[part]), kind="stable")]
        cuts = np.arange(0, len(part), batch_size)
        for cut in np.random.default_rng((*seed, number)).permutation(cuts):
            yield part[cut : cut + batch_size]


def collate(examples: Examples, chosen: Ints, vocabulary_size: int) -> Batch:
    """Tensors of the chosen examples, padded with 0 to the longest of them (at least one column)."""
    ids, lengths = gather_ids(examples, examples.rows[chosen], vocabulary_size)
    return Batch(ids, lengths, torch.from_numpy(np.ascontiguousarray(examples.targets[chosen])))


def gather_ids(examples: Examples, rows: Ints, vocabulary_size: int) -> tuple[Tensor, Tensor]:
    """ids (B, T) int64 and lengths (B,) int64 of texts, by one indexed read of the flat ids.

    TrainingError: an id that the vocabulary does not have.
    """
    starts = examples.offsets[rows]
    lengths = _lengths(examples, rows)
    t = max(int(lengths.max(initial=0)), 1)
    present = np.arange(t)[None, :] < lengths[:, None]
    ids = np.zeros((len(rows), t), dtype=np.int64)
    ids[present] = examples.ids[(starts[:, None] + np.arange(t))[present]]
    if ids.max(initial=0) >= vocabulary_size:
        raise TrainingError(
            f"The examples hold word id {ids.max()}, the model knows ids below {vocabulary_size}: "
            "encode them with the model's vocabulary."
        )
    return torch.from_numpy(ids), torch.from_numpy(lengths)


def by_length(examples: Examples, batch_size: int) -> Iterator[Ints]:
    """All texts in batches of nearly equal length, longest first, so that memory shows its peak at once."""
    order = np.argsort(-_lengths(examples, slice(None)), kind="stable")
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _lengths(examples: Examples, rows: Ints | slice) -> Ints:
    lengths: Ints = examples.offsets[1:][rows] - examples.offsets[:-1][rows]
    return lengths


def to_device(batches: Iterator[Batch], device: torch.device, depth: int = 8) -> Iterator[Batch]:
    """Batches on the device. For a GPU a thread gathers and pins them ahead, and copies do not wait."""
    if device.type == "cpu":
        yield from batches
        return
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(depth)
    stop = threading.Event()

    def work() -> None:
        try:
            for batch in batches:
                pinned = Batch(batch.ids.pin_memory(), batch.lengths, batch.targets.pin_memory())
                while not stop.is_set():
                    try:
                        ready.put(pinned, timeout=1)
                        break
                    except queue.Full:
                        continue
                if stop.is_set():
                    return
            ready.put(None)
        except BaseException as error:  # raised again where the batches are used
            ready.put(error)

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield Batch(
                item.ids.to(device, non_blocking=True), item.lengths, item.targets.to(device, non_blocking=True)
            )
    finally:
        stop.set()


def examples_digest(examples: Examples) -> str:
    """A short hash of the examples: their sizes and up to 65,536 evenly spaced entries of every array."""
    total = hashlib.sha256()
    for array in (examples.ids, examples.offsets, examples.rows, examples.targets):
        flat = array.reshape(-1)
        step = max(len(flat) // 65_536, 1)
        total.update(f"{array.shape} {array.dtype.kind}".encode())
        total.update(np.ascontiguousarray(flat[::step]).astype(np.float64).tobytes())
    return total.hexdigest()[:16]


def check_examples(examples: Examples, classes: int, task: str, name: str) -> None:
    """TrainingError where rows or targets cannot belong to a model of this task."""
    if len(examples.rows) == 0:
        raise TrainingError(f"There are no {name} examples: give at least one.")
    targets = examples.targets
    shape_fits = targets.shape[1:] == (classes,) if task == "multilabel" else targets.ndim == 1
    if not shape_fits or len(targets) != len(examples.rows):
        raise TrainingError(
            f"The {name} targets have shape {targets.shape} for {len(examples.rows)} examples, "
            f"which is not what a {task} model of {classes} output(s) learns from: check the labels."
        )
    limit = {"multiclass": classes, "binary": 2, "multilabel": 2}[task]
    if targets.min() < 0 or targets.max() >= limit:
        raise TrainingError(
            f"The {name} targets reach from {targets.min()} to {targets.max()}, a {task} model takes 0 to {limit - 1}: "
            "check the labels."
        )
