"""The served model. MLflow runs this file when it loads a model, so nothing is pickled.

Each input row holds one of `audio` (bytes of a media file; base64 in JSON), `path` (a file or address that the server
can read) and `fbank` (frames of 128 values, as `compute_fbank` returns them). Each output row holds the `tags` and
`scores` of the best `top_k` classes, best first.
"""

import mlflow.models
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel

from ast_model.inference import Tagger
from ast_model.tagging.options import TaggingOptions
from ast_model.tagging.ranking import rank_classes
from pipeline.errors import AudioTaggingError, InputError

INPUTS = ("audio", "path", "fbank")
CHECKPOINT = "checkpoint"


class ServedTagger(PythonModel):
    """A tagger for MLflow, loaded from the checkpoint among the model's artifacts."""

    def load_context(self, context) -> None:
        self.tagger = Tagger.load(context.artifacts[CHECKPOINT])

    def predict(self, context, model_input: pd.DataFrame, params=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        top_k = (params or {}).get("top_k", TaggingOptions.top_k)
        try:
            rows = [self._tag(row, top_k) for row in model_input.to_dict("records")]
        except AudioTaggingError as error:  # MLflow's server hides the messages of all errors but its own
            raise MlflowException.invalid_parameter_value(f"{type(error).__name__}: {error}") from error
        return pd.DataFrame(rows, columns=["tags", "scores"])

    def _tag(self, row, top_k: int) -> tuple[list[str], list[float]]:
        # pandas fills the absent columns of a row with NaN.
        given = [name for name in INPUTS if not isinstance(value := row.get(name), float | None) and len(value) > 0]
        if len(given) != 1:
            raise InputError(f"expected one of {', '.join(INPUTS)} in each row, found {', '.join(given) or 'none'}")
        value = row[given[0]]
        if given[0] == "fbank":
            scores_C = self.tagger.scores_of_fbank(np.stack([np.asarray(frame, np.float32) for frame in value]))
        else:
            scores_C = self.tagger.scores([bytes(value) if given[0] == "audio" else str(value)])[0]
        best = rank_classes(scores_C, top_k)
        return [self.tagger.labels[index] for index in best], [float(scores_C[index]) for index in best]


mlflow.models.set_model(ServedTagger())
