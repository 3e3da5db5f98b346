"""One format for every line, on stdout."""

import logging
import sys
import time

FORMAT = "%(asctime)s.%(msecs)03dZ %(levelname)s %(process)d %(name)s: %(message)s"


def setup(level: int) -> None:
    """Sends all logging of this process to stdout, from `level` (10 to 50) up."""
    handler = logging.StreamHandler(sys.stdout)
    formatter = logging.Formatter(FORMAT, "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=[handler], force=True)
