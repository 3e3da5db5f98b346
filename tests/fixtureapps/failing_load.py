"""Cannot load its model."""


def model_fn(model_dir):
    return open_weights(model_dir)


def open_weights(model_dir):
    raise OSError("weights.bin is truncated")


def predict_fn(data, model):
    return data
