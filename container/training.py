"""The `train` program: finds the user's training script, runs it, completes the artifact, says why it failed."""

import ast
import dataclasses
import logging
import os
import re
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from container import logs, training_job, training_script, user_code, versions
from container.errors import StartupError
from container.settings import HASH_SEED, Settings, SettingsError, environment
from container.training_job import Stop, TrainingError, TrainingJob
from container.training_script import ScriptFailed

log = logging.getLogger(__name__)

PROGRAM_DIR = Path(__file__).resolve().parent.parent
"""Where `train` is. Code may be baked into code/ here: what an image has below /opt/ml may be hidden in a job (contract, 7.1)."""

FAILURE_LENGTH = 1024
"""Characters of the failure file that become the job's FailureReason."""

STOP_GRACE = 90
"""Seconds that a train_fn which watches job.stopping() has left after SIGTERM; the platform kills after 120."""

INFERENCE_SCRIPT = "inference.py"
STOPPED = 128 + signal.SIGTERM


class Stopped(BaseException):
    """Raised inside a train_fn that does not watch job.stopping(). No Exception, so that `except Exception` does not hide it."""


def main(given: Sequence[str] | None = None) -> int:
    """`train`: one training job. Returns the exit code: 0 if the model is made, else not 0, and output/failure says why."""
    arguments = sys.argv[1:] if given is None else given
    if arguments:
        print(f"train takes no arguments; it was given {' '.join(arguments)}", file=sys.stderr)
        return 2
    if given is None:
        _hash_alike()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a metric counts when it is printed, not at the end
    try:
        settings = Settings.read()
    except SettingsError as error:
        settings = Settings.read({"SAGEMAKER_BASE_DIR": environment().get("SAGEMAKER_BASE_DIR", "")})  # where the failure file is
        logs.setup(settings.log_level)
        return _fail(error, settings.code_dir, settings)
    logs.setup(settings.log_level)
    return run(settings)


def _hash_alike() -> None:
    """Starts this program again (same pid) if texts hash by chance: the order of a set decides the bytes of its pickle, and more."""
    if environment().get("PYTHONHASHSEED") in (None, "", "random") and not sys.flags.ignore_environment:
        os.execve(sys.executable, sys.orig_argv, environment(PYTHONHASHSEED=HASH_SEED))  # noqa: S606 - the very program that runs here


def run(settings: Settings) -> int:
    """One training job in this process, from the files in the input directory to the artifact. Returns the exit code."""
    code_dir = settings.code_dir
    before = signal.getsignal(signal.SIGTERM)
    try:
        for marker in (settings.failure_file, settings.output_dir / "success"):
            marker.unlink(missing_ok=True)
        job = training_job.read(settings)
        for directory in (job.model_dir, job.checkpoint_dir, job.output_data_dir):
            directory.mkdir(parents=True, exist_ok=True)
        script, code_dir = find(settings, job)
        job = dataclasses.replace(job, script=script)
        _print_plan(script, job)
        inference = script.parent / INFERENCE_SCRIPT
        if job.is_first_host and inference.is_file() and (reason := unservable(inference, inference.read_bytes())):
            log.warning("the model could not be served with the script that is copied beside it: %s", reason)
        try:
            _train(script, code_dir, job, settings)
        finally:  # what a train_fn saved before it was stopped is an artifact too: the platform uploads it
            if job.is_first_host and any(job.model_dir.iterdir()):
                _complete(script, job.model_dir)
    except (Exception, SystemExit, KeyboardInterrupt, Stopped) as error:
        return _fail(error, code_dir, settings)
    finally:
        signal.signal(signal.SIGTERM, before)
    (settings.output_dir / "success").touch()
    log.info("done: %s", ", ".join(sorted(path.name for path in job.model_dir.iterdir())) or "the model directory is empty")
    return 0


def find(settings: Settings, job: TrainingJob) -> tuple[Path, Path]:
    """The training script and the directory of code that it is in.

    Looked for in SAGEMAKER_SUBMIT_DIRECTORY, else in code/ of the base directory, else in code/ beside `train`; its name is
    SAGEMAKER_PROGRAM, else training.py. Where a variable is not set the hyperparameter of the same name counts
    (sagemaker_program). Raises TrainingError that says where it was looked for.
    """
    program = settings.program or str(job.platform_parameters.get("sagemaker_program") or "") or "training.py"
    submitted = settings.submit_directory or str(job.platform_parameters.get("sagemaker_submit_directory") or "")
    if "://" in submitted:
        raise TrainingError(
            f"the submit directory {submitted} is not on this machine, and this container fetches nothing: give the job a channel "
            f"'code' with the unpacked files and SAGEMAKER_SUBMIT_DIRECTORY={settings.data_dir / 'code'}, or bake the code into the image"
        )
    directories = [Path(submitted)] if submitted else [settings.code_dir, PROGRAM_DIR / "code"]
    for directory in directories:
        script = (directory / program).resolve()
        if script.is_file():
            if not script.is_relative_to(directory.resolve()):
                raise TrainingError(f"the training script {program!r} is outside of {directory}")
            return script, directory.resolve()
    raise TrainingError(
        f"there is no training script: {' and '.join(str(directory / program) for directory in directories)} "
        "were looked for; bring training.py with train_fn(job), or name a script with SAGEMAKER_PROGRAM"
    )


def unservable(script: Path, content: bytes) -> str:
    """Why an inference script cannot serve any model; empty where nothing is wrong with it at first sight. It is not imported.

    content: of the script. A job is told before it trains: an endpoint would be the next to know.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an escape that is none: who imports it is told
            compile(content, str(script), "exec", dont_inherit=True)
    except SyntaxError as error:
        return f"{script} is not valid Python: {error.msg} (line {error.lineno}): {(error.text or '').strip()}"
    except ValueError as error:
        return f"{script} is not valid Python: {error}"
    if b"model_fn" in content or re.search(rb"import\s*\*", content):
        return ""
    return f"{script} has no model_fn(model_dir): a script must have one; it returns the loaded model"


def save(model: Any, model_dir: Path) -> Path:
    """Writes what train_fn returned as the server finds it: model.joblib (anything with predict), or pipeline/ (spaCy).

    Raises TrainingError if it is neither, or a scikit-learn estimator that is not fitted.
    """
    spacy, sklearn = sys.modules.get("spacy"), sys.modules.get("sklearn")
    if spacy is not None and isinstance(model, spacy.Language):
        model.to_disk(model_dir / "pipeline")
        return model_dir / "pipeline"
    if not callable(getattr(model, "predict", None)):
        raise TrainingError(
            f"train_fn returned {type(model).__name__}: accepted are a fitted scikit-learn estimator (or another object with predict), "
            "a spaCy pipeline, or None if it has saved its model to job.model_dir"
        )
    if sklearn is not None:
        _refuse_unfitted(model)
    import joblib  # with scikit-learn: it is there where a model is

    path = model_dir / "model.joblib"
    unfinished = path.with_suffix(".unfinished")
    try:
        joblib.dump(model, unfinished)
        return unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def failure_text(error: BaseException, code_dir: Path) -> str:
    """What went wrong in at most 1,024 characters: exception and message, the user's line, the line that raised, the causes."""
    parts = [_reason(error)]
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if Path(frame.filename).is_relative_to(code_dir)]
    if users:
        parts.append(f"  at {_place(users[-1])}: {users[-1].line}")
        if frames[-1] is not users[-1]:
            parts.append(f"  raised in {_place(frames[-1])}")
        parts += [f"  called at {_place(frame)}: {frame.line}" for frame in reversed(users[:-1])]
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None and not isinstance(error, StartupError):
        parts.append(f"caused by {_reason(cause)}")
    return "\n".join(parts)[:FAILURE_LENGTH]


def _train(script: Path, code_dir: Path, job: TrainingJob, settings: Settings) -> None:
    if not defines(script, "train_fn"):
        with _interruptible(job.stop):
            training_script.run(script, code_dir, job, settings)
        return
    with _interruptible(job.stop):
        train_fn = user_code.import_script(script).train_fn
        try:
            model = train_fn(job)
        except SystemExit as left:
            if left.code:
                raise
            model = None
    if model is not None and job.is_first_host:
        log.info("saved %s", save(model, job.model_dir))
    elif model is not None:
        log.info("the returned model is saved by %s alone", job.hosts[0])
    elif not any(job.model_dir.iterdir()):
        log.warning("train_fn returned None, and %s is empty: the artifact will be, too", job.model_dir)


def defines(script: Path, name: str) -> bool:
    """Whether a Python file has a function of this name at its top. It is not imported: a script may train when it is."""
    if script.suffix != ".py":
        return False
    try:
        tree = ast.parse(script.read_bytes(), str(script))
    except SyntaxError as error:
        raise TrainingError(f"{script.name} is not valid Python: {error.msg} (line {error.lineno}): {(error.text or '').strip()}") from None
    names = {alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    return name in names or any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body)


@contextmanager
def _interruptible(stop: Stop) -> Iterator[None]:
    """While the user's code runs: what SIGTERM does to it. Afterwards SIGTERM is ignored, so that the model is saved whole."""

    def on_term(_signum: int, _frame: object) -> None:
        stop.requested = True
        if not stop.watched:
            raise Stopped("SIGTERM")
        log.info("SIGTERM: train_fn has %d s to save and return", STOP_GRACE)
        signal.alarm(STOP_GRACE)

    def on_alarm(_signum: int, _frame: object) -> None:
        raise Stopped(f"SIGTERM, and train_fn did not return within {STOP_GRACE} s")

    before = signal.signal(signal.SIGTERM, on_term), signal.signal(signal.SIGALRM, on_alarm)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGALRM, before[1])


def _complete(script: Path, model_dir: Path) -> None:
    """Adds the versions, and the inference script beside the training script with the Python files beside it, unless code/ has one."""
    versions.record(model_dir, versions.imported() if defines(script, "train_fn") else versions.installed())
    code_dir, target = script.parent, model_dir / "code"
    if not (code_dir / INFERENCE_SCRIPT).is_file() or (target / INFERENCE_SCRIPT).exists() or target == code_dir:
        return
    for path in user_code.beside(script):
        relative = path.relative_to(code_dir)
        if not target.is_relative_to(code_dir / relative.parts[0]):
            copy = target / relative
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    log.info("copied %s and the Python files beside it to %s", INFERENCE_SCRIPT, target)


def _refuse_unfitted(model: Any) -> None:
    from sklearn.base import BaseEstimator
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    if isinstance(model, BaseEstimator):
        try:
            check_is_fitted(model)
        except NotFittedError as error:
            raise TrainingError(f"train_fn returned a {type(model).__name__} that is not fitted") from error


def _print_plan(script: Path, job: TrainingJob) -> None:
    parameters = ", ".join(f"{name}={value!r}" for name, value in sorted(job.hyperparameters.items())) or "none"
    channels = ", ".join(f"{channel.name} ({channel.mode})" for channel in job.channels.values()) or "none"
    hosts = f"{job.current_host} of {', '.join(job.hosts)}" if len(job.hosts) > 1 else job.current_host
    for line in (
        f"script           {script}",
        f"hyperparameters  {parameters}",
        f"channels         {channels}",
        f"hosts            {hosts}",
    ):
        log.info("%s", line)
    if (script.parent / "requirements.txt").is_file():
        log.info("requirements.txt is not installed in a job: what it names must be in the image")


def _fail(error: BaseException, code_dir: Path, settings: Settings) -> int:
    text = failure_text(error, code_dir)
    if not isinstance(error, TrainingError | SettingsError):
        log.error("%s", "".join(traceback.format_exception(error)).rstrip())
    log.error("TRAINING FAILED: %s", text)
    try:
        settings.output_dir.mkdir(parents=True, exist_ok=True)
        if not settings.failure_file.exists():  # the user's code may have written a better one
            settings.failure_file.write_text(text, errors="backslashreplace")  # the name of a file may not be UTF-8
    except OSError as problem:
        log.error("the failure file could not be written: %s", problem)
    return _exit_code(error)


def _exit_code(error: BaseException) -> int:
    if isinstance(error, ScriptFailed):
        return error.code
    if isinstance(error, Stopped):
        return STOPPED
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    return error.code if isinstance(error, SystemExit) and isinstance(error.code, int) and 0 < error.code < 256 else 1


def _reason(error: BaseException) -> str:
    """Type and message; the message alone where it is ours; cut so that the frames have a place beside it."""
    text = str(error).strip()
    if isinstance(error, ScriptFailed):
        return text
    if isinstance(error, Stopped):
        return f"stopped by {text} before train_fn had returned"
    if isinstance(error, MemoryError):
        text = text or "no memory left on this machine"
    name = "" if isinstance(error, TrainingError | StartupError | SettingsError) else type(error).__name__
    return ": ".join(part for part in (name, text[:600]) if part)


def _place(frame: traceback.FrameSummary) -> str:
    path = Path(frame.filename)
    return f"{'/'.join(path.parts[-2:])}:{frame.lineno} in {frame.name}"
