"""The Multi Model Server handler of entities: `{"input": text}` in, `{"output": [[text, label], ...]}` out."""

from typing import Any

import orjson
import spacy

nlp: Any = None


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[bytes] | None:
    """The entities of one text. Without data: loads the model."""
    global nlp  # noqa: PLW0603 - Multi Model Server's own way: a function, so that its errors are not swallowed
    if data is None:
        nlp = spacy.load(context.system_properties["model_dir"])
        return None
    text = orjson.loads(bytes(data[0]["body"]))["input"]
    found = [[entity.text, entity.label_] for entity in nlp(text).ents]
    context.set_response_content_type(0, "application/json")
    return [orjson.dumps({"output": found})]
