"""`python -m local_test.many NAME PORT [--count N]`: N models behind one endpoint, on this machine, and how to ask one of them.

Trains an example if it has no model yet, starts `serve` as the platform does for a multi-model endpoint, and loads the example's model
under N names. The names say which is which; the models are N copies, as loaded as any.
"""

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from local_test.example import CONTENT_TYPES, EXAMPLES, ROOT, run, train


def main(arguments: list[str] | None = None) -> int:
    """Serve until stopped. Returns the exit code of `train` if that fails, else of `serve`."""
    parser = argparse.ArgumentParser(prog="local_test.many", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", choices=sorted(path.parent.name for path in EXAMPLES.glob("*/training.py")))
    parser.add_argument("port", type=int)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--build", type=Path, default=ROOT / "build")
    given = parser.parse_args(arguments)
    base_dir = given.build.absolute() / given.name
    if not base_dir.is_dir():
        code = train(given.name, base_dir)
        if code:
            return code
    return serve(given.name, base_dir / "model", given.port, given.count)


def serve(name: str, model_dir: Path, port: int, count: int) -> int:
    """Run `serve` in the foreground until it ends, with `count` models loaded. Returns its exit code."""

    def load_and_tell() -> None:
        seconds = load(f"http://127.0.0.1:{port}", model_dir, [f"{name}-{number:04d}" for number in range(count)])
        print(f"\n{count} models are loaded, in {seconds:.2f} s. Ask one of them, from {ROOT}:\n")
        print(f"    {question(name, f'{name}-{count // 2:04d}', port)}\n", flush=True)

    return run({"SAGEMAKER_MULTI_MODEL": "true"}, port, load_and_tell)


def load(url: str, model_dir: Path, names: list[str]) -> float:
    """Loads a model under each name, one after the other, as the platform does. Returns the seconds it took.

    Raises SystemExit, with what was said, at the first that is refused.
    """
    started = time.monotonic()
    for name in names:
        order = json.dumps({"model_name": name, "url": str(model_dir)}).encode()
        request = urllib.request.Request(f"{url}/models", order, {"Content-Type": "application/json"})  # noqa: S310 - http to this machine
        try:
            with urllib.request.urlopen(request, timeout=60):  # noqa: S310
                pass
        except urllib.error.HTTPError as error:
            said = " ".join(error.read().decode(errors="replace").split())
            raise SystemExit(f"the load of {name} was refused with {error.code}: {said}") from error
        except OSError as error:
            raise SystemExit(f"the load of {name} was not answered: {error}") from error
    return time.monotonic() - started


def question(example: str, model: str, port: int) -> str:
    """The curl command that asks one model."""
    payload = next(path for path in sorted((EXAMPLES / example).glob("payload.*")) if path.suffix in CONTENT_TYPES)
    content_type = CONTENT_TYPES[payload.suffix]
    return (
        f"curl --data-binary @{payload.relative_to(ROOT)} -H 'Content-Type: {content_type}' http://127.0.0.1:{port}/models/{model}/invoke"
    )


if __name__ == "__main__":
    sys.exit(main())
