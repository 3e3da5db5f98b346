"""Front 1: Flask, one model: POST /invocations, and /ping. nginx answers the platform's other paths."""

from typing import Any

import flask

from container.batching import Batcher
from container.exchange import Endpoint, Front, close_connection, direct, http
from container.message import Response
from container.metrics import Counters
from container.predictor import Predictor
from container.settings import Settings


class App(Front):
    """The application for one loaded model."""

    def __init__(self, settings: Settings, predictor: Predictor) -> None:
        super().__init__()
        self.one = Endpoint(settings, predictor)

    def wsgi_app(self, environ: Any, start_response: Any) -> Any:
        """Flask's own, but the one path whose microseconds count goes straight to its view where nobody has put hooks around it.

        Flask's contexts and responses, which this view does not use, would take half of what a request costs here besides its prediction.
        """
        if environ["PATH_INFO"] == "/invocations" and environ["REQUEST_METHOD"] == "POST" and not self.is_hooked:
            return direct(self.invocations(environ), start_response)
        return super().wsgi_app(environ, start_response)

    def invocations(self, environ: dict[str, Any]) -> Response:
        """One prediction, or the error that took its place."""
        if self.one.batcher.max_size == 1:
            close_connection(environ)
        try:
            return self.one.invoke(environ, self.counters)
        except (Exception, SystemExit) as error:
            return self.failed(error, environ)

    @property
    def batcher(self) -> Batcher:
        return self.one.batcher

    def start(self, counters: Counters, slot: int) -> bool:
        self.counters = counters
        counters.loaded(self.one.predictor.load_seconds)
        return self.one.predictor.warm_up()


def create_app(settings: Settings, predictor: Predictor) -> App:
    """The application for one loaded model."""
    app = App(settings, predictor)
    app.add_url_rule(
        "/invocations", view_func=lambda: http(app.invocations(flask.request.environ)), methods=["POST"], endpoint="invocations"
    )
    return app
