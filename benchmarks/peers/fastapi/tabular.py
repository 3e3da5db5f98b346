"""The FastAPI predictor of CSV rows.

The endpoint is `async def` and predicts on the event loop: a `def` endpoint, which goes through a thread pool, is slower
(see the README).
"""

import joblib
import numpy
from fastapi import FastAPI, Request, Response  # type: ignore[import-not-found, unused-ignore]

model = joblib.load("model/model.joblib")
app = FastAPI()


@app.get("/ping")
async def ping() -> Response:
    """200 once the model is loaded: it loads with the module."""
    return Response()


@app.post("/invocations")
async def invocations(request: Request) -> Response:
    """text/csv in, one row a line; one prediction a line out."""
    rows = [[float(value) for value in line.split(",")] for line in (await request.body()).decode().splitlines()]
    answers = model.predict(numpy.array(rows)).tolist()
    return Response("".join(f"{answer}\n" for answer in answers), media_type="text/csv")
