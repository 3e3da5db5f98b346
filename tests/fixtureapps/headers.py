"""Answers with what the context has; sets the response headers that a JSON body names."""

import json


def model_fn(model_dir):
    return None


def transform_fn(model, body, content_type, accept, context):
    for name, value in json.loads(body).items():
        context.set_response_header(name, value)
    seen = {
        "headers": dict(context.headers),
        "custom_attributes": context.custom_attributes,
        "inference_id": context.inference_id,
        "request_id": context.request_id,
        "remaining": context.remaining(),
    }
    return json.dumps(seen), "application/json"
