"""The entry point of the image's target `mms`: `serve` starts Multi Model Server behind nginx, anything else is run as a command."""

import os
import sys

from container import logs, mms
from container.errors import StartupError
from container.serving import temporary_run_dir
from container.settings import Settings, SettingsError


def main(arguments: list[str]) -> int:
    """Becomes the command that the arguments are, in this process, or serves. Returns the exit code; what fails says why in one line."""
    if arguments[:1] == ["serve"]:
        return serve(arguments[1:])
    if not arguments:
        print("berth: no command came; accepted are serve, or any command with its arguments", file=sys.stderr)
        return 2
    try:
        os.execvp(arguments[0], arguments)  # noqa: S606 - that is what it is for
    except OSError as error:
        print(f"berth: cannot run {arguments[0]!r}: {error.strerror}; accepted are serve, or any command on PATH", file=sys.stderr)
        return 127


def serve(arguments: list[str]) -> int:
    """Runs until it is stopped or fails. Returns the exit code; a failure prints one last line that names the cause."""
    try:
        if arguments:
            raise StartupError(f"serve takes no arguments; {' '.join(arguments)!r} came. Everything is set by environment variables")
        settings = Settings.read()
        logs.setup(settings.log_level)
        with temporary_run_dir(settings) as run_dir:
            return mms.server(settings.but(run_dir=run_dir)).run()
    except (StartupError, SettingsError) as error:
        print(f"STARTUP FAILED: {error}", file=sys.stderr, flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
