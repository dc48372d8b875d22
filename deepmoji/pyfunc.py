"""The model as MLflow serves it. MLflow runs this file by itself ("models from code"), so nothing is pickled.

Input: a list of texts, or a table of one column. The parameter `output` chooses the answer, one row per text:
predict (labels, probabilities, decision), probabilities (a column per label), features, explain (tokens,
attention, truncated).
"""

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from deepmoji.errors import UsageError
from deepmoji.inference import Model, load_folder

OUTPUTS = ("predict", "probabilities", "features", "explain")


class ServedModel(PythonModel):
    """A model folder behind MLflow's interface."""

    model: Model

    def load_context(self, context: Any) -> None:
        self.model = load_folder(Path(context.artifacts["model"]), name=Path(context.artifacts["model"]).name)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        chosen: dict[str, Any] = {"output": "predict", "top_k": 5} | (params or {})
        texts = model_input.iloc[:, 0].tolist()
        match chosen["output"]:
            case "predict":
                probabilities = self.model.probabilities(texts)
                answers = self.model.rank(probabilities, int(chosen["top_k"]))
                rows: list[dict[str, Any]] = [
                    {
                        "labels": [p.label for p in best],
                        "probabilities": [p.probability for p in best],
                        "decision": decision,
                    }
                    for best, decision in zip(answers, self.model.decide(probabilities), strict=True)
                ]
            case "probabilities":
                return pd.DataFrame(self.model.probabilities(texts), columns=list(self.model.labels))
            case "features":
                rows = [{"features": row.tolist()} for row in self.model.encode(texts)]
            case "explain":
                rows = [
                    {
                        "tokens": [a.token for a in words],
                        "attention": [a.attention for a in words],
                        "truncated": words.truncated,
                    }
                    for words in self.model.explain(texts)
                ]
            case other:
                raise UsageError(f"The output {other!r} is not known: choose one of {', '.join(OUTPUTS)}.")
        return pd.DataFrame(rows)


# MLflow reads the model from here when it runs this file: the one statement of the package that acts on import.
set_model(ServedModel())
