"""The entry point of the image's target `mms`: `serve` starts Multi Model Server behind nginx, anything else is run as a command."""

import os
import sys

from container import mms, serving


def main(arguments: list[str]) -> int:
    """Becomes the command that the arguments are, in this process, or serves. Returns the exit code; what fails says why in one line."""
    if arguments[:1] == ["serve"]:
        return serving.run(arguments[1:], mms.server)
    if not arguments:
        print("berth: no command came; accepted are serve, or any command with its arguments", file=sys.stderr)
        return 2
    try:
        os.execvp(arguments[0], arguments)  # noqa: S606 - that is what it is for
    except OSError as error:
        print(f"berth: cannot run {arguments[0]!r}: {error.strerror}; accepted are serve, or any command on PATH", file=sys.stderr)
        return 127


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
