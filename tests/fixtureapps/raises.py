"""Fails in the function that the body names."""


def model_fn(model_dir):
    return None


def input_fn(body, content_type):
    if body == "input_fn":
        raise ValueError("expected a number")
    if body == "runtime":
        raise RuntimeError("secret of the input")
    return body


class ToolkitError(RuntimeError):
    status_code = 422


def predict_fn(data, model):
    if data == "predict_fn":
        raise ValueError("secret of the prediction")
    if data == "status":
        raise ToolkitError("try the other endpoint")
    return data


def output_fn(prediction, accept):
    if prediction == "output_fn":
        raise KeyError("secret of the output")
    return prediction, "text/plain"
