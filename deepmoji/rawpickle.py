"""A reader for the published `raw.pickle` benchmark files that runs nothing of what they could ask for.

The files are Python 2 pickles of plain lists and dicts with a few numpy index arrays. Only the four names those
arrays need are admitted, and each stands for a class of this module that does nothing but keep what it is given;
any other name in a file is refused before it is looked up.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from deepmoji.errors import InputError


class _Dtype:
    """What a pickled numpy dtype says: its code, such as i8, and its byte order."""

    def __init__(self, code: bytes | str, *_: object) -> None:
        self.code, self.order = _text(code), "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = {"<": "<", ">": ">", "|": "|"}[_text(state[1])]


class _Array:
    """A pickled one-dimensional numpy array of numbers."""

    values: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, _, data = state
        if dtype.code not in {"i8", "i4", "f8", "b1"} or len(shape) != 1:
            raise pickle.UnpicklingError(f"an array of {dtype.code} with {len(shape)} axes")
        self.values = np.frombuffer(data, np.dtype(dtype.order + dtype.code))
        if self.values.shape != tuple(shape):
            raise pickle.UnpicklingError(f"an array of {len(self.values)} values that claims {shape}")


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _scalar(dtype: _Dtype, data: bytes) -> int | float | bool:
    array = _Array()
    array.__setstate__((1, (1,), dtype, False, data))
    value: int | float | bool = array.values.item()
    return value


_ADMITTED = {
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
}


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"the name {module}.{name}")
        return _ADMITTED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("a persistent id")


def read_raw_pickle(path: Path) -> dict[str, Any]:
    """Read one published `raw.pickle`: texts (str), info (a dict a text), train_ind, val_ind, test_ind (int64 arrays).

    Byte strings are taken as UTF-8. InputError for a file that holds anything else, or cannot be read.
    """
    try:
        content = _Restricted(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        raw = {_text(key): value for key, value in content.items()}
        return {
            "texts": [_text(value) for value in raw["texts"]],
            "info": [{_text(key): _plain(value) for key, value in row.items()} for row in raw["info"]],
            **{part: _indices(raw[part]) for part in ("train_ind", "val_ind", "test_ind")},
        }
    except FileNotFoundError:
        raise InputError(f"{path} is missing: name a data folder that holds the published sets.") from None
    except (OSError, MemoryError, RecursionError, pickle.UnpicklingError, EOFError) as error:
        reason = error if str(error) else type(error).__name__
        raise InputError(f"{path} is not read: {reason} is not part of a published set.") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} does not hold a published set ({type(error).__name__}: {error}): texts, info, train_ind, val_ind "
            "and test_ind were expected."
        ) from None


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, str):
        return value
    raise TypeError(f"{type(value).__name__} where a text was expected")


def _plain(value: object) -> object:
    return value.values if isinstance(value, _Array) else value


def _indices(value: object) -> np.ndarray:
    values = value.values if isinstance(value, _Array) else np.asarray(value)
    if values.ndim != 1 or values.dtype.kind not in "iub":
        raise TypeError("row numbers were expected")
    return np.flatnonzero(values) if values.dtype.kind == "b" else values.astype(np.int64)
