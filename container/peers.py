"""What one shard asks of another, over the other's own socket. Cooperative: while it waits, this shard answers, the other one included."""

from contextlib import closing
from pathlib import Path

from gevent import socket

from container.errors import error_response
from container.message import Response
from container.proxy import LOAD_SECONDS


def ask(path: Path, method: str, target: str, body: bytes, request_id: str) -> Response:
    """The answer of the shard that listens at a path; if it dies before it answers, the error that nginx would give."""
    lines = ("Host: shard", "Connection: close", f"X-Request-Id: {request_id}", f"Content-Length: {len(body)}")
    head = "\r\n".join((f"{method} {target} HTTP/1.1", *lines, "", ""))
    answer = bytearray()
    with closing(socket.socket(socket.AF_UNIX)) as connection:
        try:
            connection.settimeout(LOAD_SECONDS)
            connection.connect(str(path))
            connection.sendall(head.encode() + body)
            while part := connection.recv(1 << 16):
                answer += part
        except TimeoutError:
            return error_response(504, f"another worker did not answer within {LOAD_SECONDS} s", request_id)
        except OSError:
            answer.clear()
    first, _, rest = bytes(answer).partition(b"\r\n")
    if not first:
        return error_response(502, "another worker died of this request; its log says why", request_id)
    return Response(rest.partition(b"\r\n\r\n")[2], "application/json", int(first.split()[1]))
