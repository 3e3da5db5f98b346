"""Answers with the request's body and type."""


def model_fn(model_dir):
    return None


def transform_fn(model, body, content_type, accept):
    return body, content_type
