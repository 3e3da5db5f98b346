"""The FastAPI predictor of entities: `{"input": text}` in, `{"output": [[text, label], ...]}` out."""

import orjson
import spacy
from fastapi import FastAPI, Request, Response  # type: ignore[import-not-found, unused-ignore]

nlp = spacy.load("model")
app = FastAPI()


@app.get("/ping")
async def ping() -> Response:
    """200 once the model is loaded: it loads with the module."""
    return Response()


@app.post("/invocations")
async def invocations(request: Request) -> Response:
    """The entities of one text."""
    text = orjson.loads(await request.body())["input"]
    found = [[entity.text, entity.label_] for entity in nlp(text).ents]
    return Response(orjson.dumps({"output": found}), media_type="application/json")
