"""Where a training stands: the numbers a checkpoint keeps, and what a person watching it sees.

Speeds, padding and memory go to the log and to `report` only; results never hold them.
"""

import hashlib
import logging
import math
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from deepmoji.checkpoints import load_state, save_state
from deepmoji.errors import TrainingError

Report = Callable[[dict[str, float], int], None]
log = logging.getLogger(__name__)


@dataclass
class Progress:
    """Position and history of a training; JSON in the checkpoint. Sampler and dropout follow from the position."""

    phase: int = 0
    epoch: int = 0
    batch: int = 0  # batches of this epoch already learned from
    step: int = 0  # optimiser steps since the start
    loss_sum: float = 0.0  # over this epoch's examples so far
    examples: int = 0
    best: float | None = None  # validation loss of the weights kept as best
    stale: int = 0  # epochs since then
    history: list[dict[str, float]] = field(default_factory=list)  # of this phase
    phases: list[dict[str, Any]] = field(default_factory=list)  # done


def save_progress(
    folder: Path,
    progress: Progress,
    model: nn.Module,
    best: Mapping[str, Tensor],
    optimisers: Sequence[torch.optim.Optimizer],
    identity: Mapping[str, Any],
) -> None:
    """Replace the checkpoint: weights, best weights so far, optimiser moments, position, history."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    for optimiser in optimisers:
        for parameter, state in optimiser.state.items():
            tensors |= {f"optimiser.{key}.{names[id(parameter)]}": value for key, value in state.items()}
    save_state(folder, tensors, {"progress": asdict(progress), "identity": dict(identity)})


def load_progress(
    folder: Path, model: nn.Module, identity: Mapping[str, Any]
) -> tuple[Progress, dict[str, Tensor], dict[str, dict[str, Tensor]]] | None:
    """Put the checkpoint's weights into the model; returns position, best weights, optimiser state by parameter.

    None: there is no checkpoint. TrainingError: it belongs to other data, settings or start weights.
    """
    found = load_state(folder)
    if found is None:
        return None
    tensors, state = found
    other = state.get("identity", {})
    different = [
        f"{key} was {other.get(key)!r:.80}, is {identity.get(key)!r:.80}"
        for key in sorted({*identity, *other})
        if identity.get(key) != other.get(key)
    ]
    if different:
        raise TrainingError(
            f"The checkpoint in {folder} belongs to another training ({'; '.join(different)}): "
            "delete that folder to start anew, or restore what it was made with."
        )
    model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
    best = {name[5:]: tensor for name, tensor in tensors.items() if name.startswith("best.")}
    moments: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimiser."):
            _, key, parameter = name.split(".", 2)
            moments.setdefault(parameter, {})[key] = tensor
    return Progress(**state["progress"]), best, moments


def restore_moments(
    model: nn.Module, optimisers: Sequence[torch.optim.Optimizer], moments: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Give fresh optimisers the moments of a checkpoint."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            for parameter in group["params"]:
                state = moments.get(names[id(parameter)])
                if state:
                    optimiser.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}


def weights_digest(model: nn.Module) -> str:
    """A short hash of all weights, to tell one starting point from another."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()[:16]


class Meter:
    """Speed, padding and loss since the last line: a bar on a terminal, plain log lines elsewhere, and `report`."""

    def __init__(self, report: Report | None, name: str, total: int, done: int, every: int, quiet: bool) -> None:
        self.report, self.name, self.total, self.every, self.quiet = report, name, total, every, quiet
        self.bar = tqdm(
            total=total, initial=done, desc=name, unit="batch", file=sys.stderr, leave=False,
            disable=quiet or not sys.stderr.isatty(),
        )  # fmt: skip
        self.done = done
        self._restart()

    def _restart(self) -> None:
        self.tokens = self.cells = self.examples = self.batches = 0
        self.loss: Tensor | float = 0.0
        self.norm: Tensor | float = 0.0
        self.since = time.perf_counter()

    def batch(self, examples: int, tokens: int, cells: int, loss: Tensor, norm: Tensor, step: int) -> None:
        """Count one batch: `cells` is its padded size; `loss` the sum over its examples; `norm` the gradient's."""
        self.tokens += tokens
        self.cells += cells
        self.examples += examples
        self.batches += 1
        self.loss = self.loss + loss
        self.norm = self.norm + norm  # read at the next line only, since that waits for the GPU
        self.done += 1
        self.bar.update()
        if self.batches == self.every:
            self.flush(step)

    def flush(self, step: int) -> None:
        """Write one line about the batches since the last one.

        TrainingError: their loss, or a gradient that the weights were changed by, is not a number.
        """
        if not self.batches:
            return
        loss = float(self.loss) / self.examples
        for what, value in (("training loss", loss), ("gradient's norm", float(self.norm))):
            if not math.isfinite(value):
                raise TrainingError(
                    f"The {what} became {value} before step {step} of {self.name}: "
                    "lower the learning rate or use precision fp32, the last good checkpoint is intact."
                )
        rate = self.tokens / (time.perf_counter() - self.since)
        numbers = {
            "train_loss": loss,
            "tokens_per_second": rate,
            "padding_share": 1 - self.tokens / max(self.cells, 1),
            "peak_memory_mb": peak_memory_mb(),
        }
        if not self.quiet:
            self.bar.set_postfix_str(f"loss {loss:.3f}, {rate:,.0f} tokens/s")
            if self.bar.disable and self.done < self.total:  # a line about the whole epoch follows its last batch
                log.info("%s: batch %d of %d, loss %.4f, %.0f tokens/s", self.name, self.done, self.total, loss, rate)
            if self.report is not None:
                self.report(numbers, step)
        self._restart()

    def close(self) -> None:
        self.bar.close()


def peak_memory_mb() -> float:
    """Peak memory of this process in MB: the GPU's if one is used, else resident memory."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
