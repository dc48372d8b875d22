"""DeepMoji anew: emotion from text, learned by predicting emojis.

The import is light: each public name loads its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepmoji.inference import Model, Prediction
    from deepmoji.registry import load
    from deepmoji.text import tokenize
    from deepmoji.vocabulary import Vocabulary
    from deepmoji.weights import import_weights

__version__ = "0.1.0"
__all__ = ["Model", "Prediction", "Vocabulary", "import_weights", "load", "tokenize"]

_HOMES = {
    "Model": "inference",
    "Prediction": "inference",
    "Vocabulary": "vocabulary",
    "import_weights": "weights",
    "load": "registry",
    "tokenize": "text",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'deepmoji' has no attribute {name!r}")
    return getattr(import_module(f"deepmoji.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
