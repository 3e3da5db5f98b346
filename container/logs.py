"""One format for every line, on stdout."""

import logging
import sys
import time
from typing import Any

from gunicorn.glogging import Logger

FORMAT = "%(asctime)s.%(msecs)03dZ %(levelname)s %(process)d %(name)s: %(message)s"
MISLEADING = ("Worker (pid:%s) was sent ", "Worker (pid:%s) exited with code ")
"""gunicorn guesses at memory here; gunicorn_conf says what the kernel counted."""


def setup(level: int) -> None:
    """Sends all logging of this process to stdout, from `level` (10 to 50) up."""
    handler = logging.StreamHandler(sys.stdout)
    formatter = logging.Formatter(FORMAT, "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=[handler], force=True)


class GunicornLogger(Logger):
    """Hands gunicorn's messages to this process's logging; from warnings up, unless all is debugged. nginx logs the requests."""

    def setup(self, cfg: Any) -> None:
        level = logging.getLogger().level
        setup(level)
        self.error_log.propagate = True
        self.error_log.handlers = []
        self.error_log.setLevel(level if level <= logging.DEBUG else max(level, logging.WARNING))
        self.error_log.addFilter(lambda record: not str(record.msg).startswith(MISLEADING))

    def access(self, resp: Any, req: Any, environ: Any, request_time: Any) -> None:
        """Nothing: see nginx.conf."""
