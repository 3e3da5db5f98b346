"""The SageMaker inference toolkit's default handler as its users set it up: a model_fn and a predict_fn, all else is the toolkit's.

Its decoder makes an array without dimensions of a row with one number.
"""

from pathlib import Path
from typing import Any

import joblib
import numpy
from sagemaker_inference.default_handler_service import DefaultHandlerService
from sagemaker_inference.default_inference_handler import DefaultInferenceHandler
from sagemaker_inference.transformer import Transformer


class Handler(DefaultInferenceHandler):  # type: ignore[misc]  # the toolkit has no types
    """The two functions that every user of the toolkit brings."""

    def default_model_fn(self, model_dir: str, context: Any = None) -> Any:
        return joblib.load(Path(model_dir) / "model.joblib")

    def default_predict_fn(self, data: Any, model: Any, context: Any = None) -> Any:
        return model.predict(numpy.atleast_2d(data))


service = DefaultHandlerService(Transformer(Handler()))


def handle(data: list[dict[str, Any]] | None, context: Any) -> Any:
    """Without data: loads the model."""
    if data is None:
        return service.initialize(context)
    return service.handle(data, context)
