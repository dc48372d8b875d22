"""Fine-tuning methods as data: lists of phases, each saying which layers train and how fast (paper section 3.3)."""

from collections.abc import Mapping, Sequence
from typing import Any

from deepmoji.errors import UsageError
from deepmoji.phases import LAYERS, Phase

METHODS = ("new", "last", "full", "chain-thaw", "probe", "probe-thaw")
PHASE_OPTIONS = ("learning_rate", "finetune_rate", "epochs", "patience", "epoch_size", "schedules")  # of phases_for
PHASE_KEYS = ("train", "solve", "learning_rate", "decay", "epochs", "patience", "epoch_size")


def phases_for(
    method: str,
    *,
    learning_rate: float,
    finetune_rate: float,
    epochs: int,
    patience: int | None,
    epoch_size: int | None,
    schedules: Mapping[str, Sequence[Mapping[str, Any]]],
) -> list[Phase]:
    """The phases of a method, in order.

    new         random start, all layers at `learning_rate`
    last        the new output layer alone at `learning_rate`
    full        all layers at `finetune_rate`
    chain-thaw  the new output layer at `learning_rate`; then each layer alone, first to last, and then all layers,
                at `finetune_rate`
    probe       the new output layer alone, solved for as a logistic regression of frozen features (probe.py)
    probe-thaw  the same, then the phases of chain-thaw after its first

    schedules: own methods by name, each a list of phases with the keys train (layers, or [all]) and optionally
    learning_rate (or else `learning_rate` for the first phase and `finetune_rate` after it), decay (the rate falls in
    a straight line to 0 over the phase's epochs), epochs, patience and epoch_size; a first phase of [output] may
    have `solve: true` instead. UsageError: an unknown method, layer or key, with the list of those that exist.
    """
    taken = sorted(set(schedules) & set(METHODS))
    if taken:
        raise UsageError(f"The schedule {taken[0]!r} has the name of a built-in method: give it another name.")
    if method in schedules:
        plan = [_own(method, number, part) for number, part in enumerate(schedules[method], start=1)]
        if not plan:
            raise UsageError(f"The schedule {method!r} has no phases: give it at least one, or remove it.")
    else:
        plan = _built_in(method, learning_rate, finetune_rate, schedules)
    return [
        Phase(
            name=part.get("name") or f"{number}-{'-'.join(part['train'])}",
            train=tuple(part["train"]),
            learning_rate=_given(part, "learning_rate", learning_rate if number == 1 else finetune_rate),
            epochs=_given(part, "epochs", epochs),
            patience=_given(part, "patience", patience),
            epoch_size=_given(part, "epoch_size", epoch_size),
            decay=bool(part.get("decay")),
            solve=bool(part.get("solve")),
        )
        for number, part in enumerate(plan, start=1)
    ]


def trains_embedding(phases: Sequence[Phase]) -> bool:
    """Whether any phase changes word vectors, so that new words can learn theirs."""
    return any({"all", "embedding"} & set(phase.train) for phase in phases)


def _built_in(
    method: str, learning_rate: float, finetune_rate: float, schedules: Mapping[str, Any]
) -> list[dict[str, Any]]:
    if method == "new":
        return [{"train": ["all"], "learning_rate": learning_rate}]
    if method == "last":
        return [{"train": ["output"], "learning_rate": learning_rate}]
    if method == "full":
        return [{"train": ["all"], "learning_rate": finetune_rate}]
    if method == "probe":
        return [{"train": ["output"], "solve": True}]
    if method in ("chain-thaw", "probe-thaw"):
        inner = [layer for layer in LAYERS if layer != "output"]
        first = {"train": ["output"], "solve": method == "probe-thaw"}
        return [first, *({"train": [layer]} for layer in (*inner, "all"))]
    raise UsageError(f"There is no method {method!r}: choose one of {', '.join((*METHODS, *sorted(schedules)))}.")


def _own(method: str, number: int, part: Mapping[str, Any]) -> dict[str, Any]:
    """Check one phase of an own schedule."""
    place = f"Phase {number} of the schedule {method!r}"
    foreign = sorted(set(part) - set(PHASE_KEYS))
    if foreign:
        raise UsageError(f"{place} has the key {foreign[0]!r}: choose among {', '.join(PHASE_KEYS)}.")
    layers = part.get("train")
    if not isinstance(layers, list | tuple) or not layers:
        raise UsageError(f"{place} names no layers: give `train` a list of {', '.join((*LAYERS, 'all'))}.")
    unknown = [layer for layer in layers if layer not in (*LAYERS, "all")]
    if unknown:
        raise UsageError(f"{place} trains {unknown[0]!r}: choose among {', '.join((*LAYERS, 'all'))}.")
    if part.get("solve") and (number > 1 or list(layers) != ["output"]):
        raise UsageError(f"{place} is to be solved: only a first phase that trains [output] can be.")
    idle = [key for key in part if key not in ("train", "solve") and part[key] not in (None, False)]
    if part.get("solve") and idle:
        raise UsageError(f"{place} is solved for, which takes no steps: leave out {idle[0]}.")
    return dict(part)


def _given(part: Mapping[str, Any], key: str, default: Any) -> Any:
    """A phase's own value; what is left out or null comes from the method's settings."""
    value = part.get(key)
    return default if value is None else value
