"""What takes the whole corpus to decide, one hash partition at a time: spam, duplicates, and who is held out.

Rows with the same key stand in the same partition, so partitions need nothing from one another but label counts.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Ints = npt.NDArray[np.int64]
SPLITS = ("train", "val", "test")
# So many times more candidates are looked at than a held-out set needs: texts with several labels do not always fit.
CANDIDATES_PER_NEED = 2


def partition_of(keys: npt.NDArray[np.uint64], partitions: int) -> Ints:
    """(n,) which partition a key belongs to, by its upper bits."""
    places: Ints = ((keys >> np.uint64(32)) * np.uint64(partitions) >> np.uint64(32)).astype(np.int64)
    return places


def unique_rows(
    ids: pa.Array, keys: npt.NDArray[np.uint64], *, max_copies: int, near: bool
) -> tuple[npt.NDArray[np.bool_], dict[str, int]]:
    """Which rows of a partition, given in input order, stay, and how many each rule drops.

    A text (by id) of more than `max_copies` rows goes with all its copies; of equal texts, and if `near` of equal
    keys, the first stays.
    """
    id_codes = _codes(ids)
    spam = np.zeros(len(ids), np.bool_)
    if max_copies:
        spam = (np.bincount(id_codes) > max_copies)[id_codes] if len(ids) else spam
    duplicate = _repeats(id_codes) & ~spam
    near_duplicate = np.zeros(len(ids), np.bool_)
    if near:
        left = np.flatnonzero(~spam & ~duplicate)
        near_duplicate[left] = _repeats(keys[left])
    dropped = {
        "spam": int(spam.sum()),
        "duplicate": int(duplicate.sum()),
        "near_duplicate": int(near_duplicate.sum()),
    }
    return ~(spam | duplicate | near_duplicate), dropped


def _codes(values: pa.Array) -> Ints:
    codes: Ints = pc.dictionary_encode(values).indices.to_numpy(zero_copy_only=False).astype(np.int64)
    return codes


def _repeats(values: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    repeated = np.ones(len(values), np.bool_)
    repeated[np.unique(values, return_index=True)[1]] = False
    return repeated


def draw_order(ids: pa.Array, seed: int) -> npt.NDArray[np.uint64]:
    """(n,) a number per text id, as good as random and the same everywhere (splitmix64 of the id's upper half)."""
    digits = pc.utf8_slice_codeunits(ids, 0, 16).to_pylist()
    state = np.fromiter((int(half, 16) for half in digits), np.uint64, len(digits))
    with np.errstate(over="ignore"):
        state = state + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def held_out_per_label(counts: Ints, per_label: int) -> Ints:
    """(C,) rows of each label in validation, and as many in test: `per_label`, or a tenth if that is smaller."""
    return np.minimum(per_label, counts // 10)


@dataclass(frozen=True)
class Candidates:
    """Texts of one partition that may be held out, in narrow types, for those of all partitions meet in one process."""

    partition: int
    rows: npt.NDArray[np.int32]  # (n,)
    order: npt.NDArray[np.uint64]  # (n,)
    labels: npt.NDArray[np.int32]  # flat
    lengths: npt.NDArray[np.int32]  # (n,) how many labels each has


def find_candidates(
    partition: int, order: npt.NDArray[np.uint64], labels: pa.Array, counts: Ints, needs: Ints
) -> Candidates:
    """The texts whose turn comes early enough for one of their labels; bounded by the needs, not by the corpus."""
    share = np.minimum(1.0, 2 * CANDIDATES_PER_NEED * needs / np.maximum(counts, 1))
    lengths = pc.list_value_length(labels).to_numpy(zero_copy_only=False)
    flat = pc.list_flatten(labels).to_numpy(zero_copy_only=False)
    best = np.maximum.reduceat(share[flat], np.cumsum(lengths) - lengths) if len(lengths) else np.zeros(0)
    chosen = order / 2.0**64 < best
    return Candidates(
        partition,
        np.flatnonzero(chosen).astype(np.int32),
        order[chosen],
        flat[np.repeat(chosen, lengths)].astype(np.int32),
        lengths[chosen].astype(np.int32),
    )


def draw(candidates: Iterable[Candidates], needs: Ints) -> dict[int, dict[str, Ints]]:
    """Fill validation and test in one walk over the candidates in draw order: {partition: {split: rows}}.

    A text goes where every one of its labels is still wanted, so no label ever gets more than it needs; a rare label
    that comes only beside full ones may get fewer.
    """
    parts = list(candidates)
    walk = np.argsort(np.concatenate([part.order for part in parts]), kind="stable")
    flat = np.concatenate([part.labels for part in parts])
    ends = np.cumsum(np.concatenate([part.lengths for part in parts]), dtype=np.int64)
    open_needs = {"val": needs.tolist(), "test": needs.tolist()}
    taken: dict[str, list[int]] = {"val": [], "test": []}
    left = 2 * int(needs.sum())
    for place in walk:
        if not left:
            break
        wanted = flat[ends[place - 1] if place else 0 : ends[place]].tolist()
        for split, need in open_needs.items():
            if all(need[label] for label in wanted):
                for label in wanted:
                    need[label] -= 1
                left -= len(wanted)
                taken[split].append(int(place))
                break
    bounds = np.cumsum([0, *(len(part.rows) for part in parts)])
    result: dict[int, dict[str, Ints]] = {part.partition: {} for part in parts}
    for split, places in taken.items():
        chosen = np.sort(np.array(places, np.int64))
        for part, start, end in zip(parts, bounds[:-1], bounds[1:], strict=True):
            mine = chosen[np.searchsorted(chosen, start) : np.searchsorted(chosen, end)] - start
            result[part.partition][split] = part.rows[mine].astype(np.int64)
    return result
