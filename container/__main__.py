"""The image's entry point: becomes the program that `docker run IMAGE WORD` names, in this process. Knows nothing of either program."""

import runpy
import sys
from pathlib import Path

WORDS = ("serve", "train")
ROOT = Path(__file__).resolve().parent.parent


def main(arguments: list[str], root: Path = ROOT) -> None:
    """Run the launcher that the first argument names, with the rest as its own; exits 2 and one line on stderr for any other word."""
    word = arguments[0] if arguments else ""
    here = [known for known in WORDS if (root / known).is_file()]
    if word not in here:
        print(f"berth: cannot run {word!r}; accepted are {', '.join(here)} (anything else: docker run --entrypoint)", file=sys.stderr)
        raise SystemExit(2)
    launcher = str(root / word)
    sys.argv = [launcher, *arguments[1:]]
    runpy.run_path(launcher, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
