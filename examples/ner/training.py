"""Named entities: a blank spaCy pipeline, trained by spaCy's own loop on the config.cfg beside this script."""

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import spacy
from spacy.language import Language
from spacy.tokens import Doc, DocBin
from spacy.training import Corpus
from spacy.training.initialize import init_nlp
from spacy.training.loop import train
from spacy.util import load_config

HERE = Path(__file__).parent
HELD_OUT = 5
"""Without a channel to evaluate on, every fifth text is kept out of the training for it."""


def train_fn(job) -> Language:
    """Trains on the JSONL files of the channel `train`, evaluates on those of `eval` or `validation`; without channels on what is shipped.

    Hyperparameters: seed (default 0), max_steps (default 600), and any setting of config.cfg by its dotted name, such as
    training.dropout. Prints `eval:precision=...; eval:recall=...; eval:f1=...;` over whole entities. If the job is stopped, what
    was best until then is saved.
    """
    spacy.util.logger.setLevel(logging.WARNING)  # the table that the loop prints says it all
    with TemporaryDirectory() as work_dir:
        work = Path(work_dir)
        overrides = write_corpora(job, work) | settings(job.hyperparameters)
        nlp = init_nlp(load_config(HERE / "config.cfg", overrides))
        best = work / "model-best"
        try:
            train(nlp, work)
        except BaseException:
            if best.is_dir():
                shutil.copytree(best, job.model_dir / "pipeline", dirs_exist_ok=True)
            raise
        nlp = spacy.load(best)
        scores = nlp.evaluate(list(Corpus(work / "eval.spacy")(nlp)))
    print("eval:precision={ents_p:.4f}; eval:recall={ents_r:.4f}; eval:f1={ents_f:.4f};".format_map(scores))
    return nlp


def settings(hyperparameters) -> dict[str, object]:
    """What the hyperparameters change in config.cfg, by dotted name."""
    chosen = {"system.seed": int(hyperparameters.get("seed", 0)), "training.max_steps": int(hyperparameters.get("max_steps", 600))}
    return chosen | {name: value for name, value in hyperparameters.items() if "." in name}


def write_corpora(job, work: Path) -> dict[str, object]:
    """Converts the JSONL to spaCy's binary form in `work`; returns the settings that name the files."""
    examples = list(read(files(job, "train")))
    evaluation = list(read(files(job, "eval", "validation")))
    if not evaluation:
        evaluation = examples[::HELD_OUT]
        examples = [example for number, example in enumerate(examples) if number % HELD_OUT]
    for name, part in (("train", examples), ("eval", evaluation)):
        DocBin(docs=part).to_disk(work / f"{name}.spacy")
    return {"paths.train": str(work / "train.spacy"), "paths.dev": str(work / "eval.spacy")}


def files(job, *channels: str) -> list[Path]:
    """The JSONL files of the first of these channels that the job has; if it has no channel at all, the shipped ones."""
    if not job.channels:
        return sorted((HERE / "data" / channels[0]).glob("*.jsonl"))
    if channels[0] == "train" or any(name in job.channels for name in channels):
        found: list[Path] = job.channel(*channels).files("*.jsonl")
        return found
    return []


def read(paths: list[Path]) -> Iterator[Doc]:
    """Documents from lines of {"text": ..., "spans": [{"start": ..., "end": ..., "label": ...}]}, offsets in characters, end exclusive.

    Raises ValueError that names the line at fault.
    """
    nlp = spacy.blank("en")
    for path in paths:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    yield document(nlp, json.loads(line))
                except (KeyError, TypeError, ValueError) as error:
                    raise ValueError(f"{path.name}, line {number}: {error!r}") from error


def document(nlp: Language, record) -> Doc:
    """One text with its entities. Raises ValueError if a span does not begin and end with a word, or two overlap."""
    doc = nlp.make_doc(record["text"])
    ents = []
    for span in record["spans"]:
        found = doc.char_span(span["start"], span["end"], label=span["label"])
        if found is None:
            raise ValueError(f"the span {span} does not begin and end with a word: {record['text'][span['start'] : span['end']]!r}")
        ents.append(found)
    doc.ents = ents
    return doc
