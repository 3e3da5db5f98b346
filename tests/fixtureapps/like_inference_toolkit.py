"""As scripts for the sagemaker-inference toolkit are written: (body, content type) from output_fn, and the context as a last argument."""

import json
import logging

logger = logging.getLogger(__name__)


class TooFewWords(Exception):
    """The toolkit's errors carry their status like this."""

    status_code = 422
    message = "two words at least, please"


def model_fn(model_dir, context):
    logger.info("loading from %s", model_dir)
    return {"good": 1, "bad": -1}


def input_fn(input_data, content_type, context):
    if content_type == "application/json":
        return json.loads(input_data)["text"]
    return input_data.decode() if isinstance(input_data, bytes) else input_data


def predict_fn(data, model, context):
    words = data.split()
    if len(words) < 2:
        raise TooFewWords
    return {"score": sum(model.get(word, 0) for word in words), "attributes": context.custom_attributes}


def output_fn(prediction, accept, context):
    context.set_response_header("X-Amzn-SageMaker-Custom-Attributes", f"score={prediction['score']}")
    if "text/plain" in accept:
        return str(prediction["score"]), "text/plain"
    return json.dumps(prediction), "application/json"
