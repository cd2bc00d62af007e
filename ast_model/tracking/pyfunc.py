"""The model as MLflow serves it: code that MLflow runs when it loads a model; nothing is pickled.

Input, a row per sound, one of: `audio` (bytes of a media file; base64 in JSON), `path` (file or address that the
server can read), `fbank` (frames of 128 values, as `compute_fbank` returns them). Output, a row per sound: `tags` and
`scores`, best first, as many as the parameter `top_k` says.
"""

import mlflow.models
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel

from ast_model.inference import Tagger
from pipeline.errors import AudioTaggingError, InputError

INPUTS = ("audio", "path", "fbank")
CHECKPOINT = "checkpoint"
TOP_K = 5


class ServedTagger(PythonModel):
    """Tags sounds by a checkpoint that lies beside it."""

    def load_context(self, context) -> None:
        self.tagger = Tagger.load(context.artifacts[CHECKPOINT])

    def predict(self, context, model_input: pd.DataFrame, params=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        top_k = (params or {}).get("top_k", TOP_K)
        try:
            rows = [self._tag(row, top_k) for row in model_input.to_dict("records")]
        except AudioTaggingError as error:  # MLflow's server shows the message of its own errors only
            raise MlflowException.invalid_parameter_value(f"{type(error).__name__}: {error}") from error
        return pd.DataFrame(rows, columns=["tags", "scores"])

    def _tag(self, row, top_k: int) -> tuple[list[str], list[float]]:
        # pandas fills what a row leaves out with NaN.
        given = [name for name in INPUTS if not isinstance(value := row.get(name), float | None) and len(value) > 0]
        if len(given) != 1:
            raise InputError(f"expected one of {', '.join(INPUTS)} in each row, found {', '.join(given) or 'none'}")
        value = row[given[0]]
        if given[0] == "fbank":
            scores_C = self.tagger.scores_of_fbank(np.stack([np.asarray(frame, np.float32) for frame in value]))
        else:
            scores_C = self.tagger.scores([bytes(value) if given[0] == "audio" else str(value)])[0]
        best = np.argsort(-scores_C, kind="stable")[:top_k]
        return [self.tagger.labels[index] for index in best], [float(scores_C[index]) for index in best]


mlflow.models.set_model(ServedTagger())
