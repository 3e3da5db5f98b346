"""examples/ner reaches what spaCy's own `train` command reaches with the same config, on real forum comments."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import spacy

from container.settings import environment
from tests.trained import EXAMPLES, ROOT, train_example

DATA = ROOT.parent / "shared" / "data"
TRAINING, EVALUATION = DATA / "fashion_brands_training.jsonl", DATA / "fashion_brands_eval.jsonl"
STEPS = 1000
POINTS = 0.02

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(not TRAINING.is_file(), reason="the fashion brand comments are not beside the checkout (../shared/data)"),
]


def by_the_example(base_dir: Path) -> float:
    output = train_example("ner", base_dir, {"train": TRAINING, "eval": EVALUATION}, timeout=600, max_steps=STEPS)
    found = re.search(r"eval:f1=([0-9.]+)", output)
    assert found, output
    return float(found[1])


def by_spacy(work: Path) -> float:
    """The commands of spaCy alone: its own converter's format, train, and its evaluation of the best pipeline."""
    paths: list[object] = []
    for name, source in (("train", TRAINING), ("dev", EVALUATION)):
        convert(source, work / f"{name}.spacy")
        paths += [f"--paths.{name}", work / f"{name}.spacy"]
    run("train", EXAMPLES / "ner" / "config.cfg", "--output", work, "--training.max_steps", STEPS, *paths)
    run("evaluate", work / "model-best", work / "dev.spacy", "--output", work / "scores.json")
    return float(json.loads((work / "scores.json").read_text())["ents_f"])


def convert(source: Path, target: Path) -> None:
    nlp = spacy.blank("en")
    binary = spacy.tokens.DocBin()
    for line in source.read_text(encoding="utf-8").split("\n"):
        if line:
            record = json.loads(line)
            doc = nlp(record["text"])
            spans = [doc.char_span(span["start"], span["end"], span["label"]) for span in record["spans"]]
            doc.set_ents([span for span in spans if span])
            binary.add(doc)
    binary.to_disk(target)


def run(*arguments: object) -> None:
    command = [sys.executable, "-m", "spacy", *map(str, arguments)]
    done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout


def test_entity_f1_is_that_of_spacys_own_training(tmp_path, record_property):
    ours, theirs = by_the_example(tmp_path / "base"), by_spacy(tmp_path)
    record_property("entity_f1", {"example": ours, "spacy": theirs})
    print(f"entity F1 after {STEPS} steps: the example {ours:.4f}, spacy train {theirs:.4f}", file=sys.stderr)
    assert theirs > 0.5, "spaCy itself learned nothing: nothing was compared"
    assert abs(ours - theirs) <= POINTS
