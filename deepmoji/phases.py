"""What a phase of training is; without torch, so that params.yaml can be checked at once."""

from dataclasses import dataclass

LAYERS = ("embedding", "lstm0", "lstm1", "attention", "output")


@dataclass(frozen=True)
class Phase:
    """Which layers learn, how fast, how long; `epoch_size` None is one pass, `patience` None never stops early.

    With `decay` the learning rate falls in a straight line to 0 at the end of the last epoch. `solve`: the output layer
    is solved for (probe.py), which `fit` does not do.
    """

    name: str
    train: tuple[str, ...]
    learning_rate: float
    epochs: int
    patience: int | None = None
    epoch_size: int | None = None
    decay: bool = False
    solve: bool = False
