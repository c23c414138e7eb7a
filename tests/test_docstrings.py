"""What docstrings show must be what comes out, where it needs no files of the user's own."""

import doctest
import importlib
import pkgutil
from pathlib import Path
from typing import Any

import pytest
import torch
from text_world import needs_transformers

import fl_lightning

PACKAGES = ("aggregators", "attacks", "data", "models", "updates")

WITH_FILES = {
    "fl_lightning.analysis.command.analyse",  # writes some, and prints more than its example shows
    "fl_lightning.attacks.edge_case.EdgeCase",
    "fl_lightning.data.director_tweets.DirectorTweets",
    "fl_lightning.data.glove.GloVe",
    "fl_lightning.data.hugging_face_instructions.HuggingFaceInstructions",
    "fl_lightning.data.hugging_face_text.HuggingFaceText",
    "fl_lightning.data.tokenizer.Tokenizer",
    "fl_lightning.data.phishing_table.PhishingTable",
    "fl_lightning.data.twitter.Twitter",
    "fl_lightning.simulation.Simulation",  # trains, and prints more
    "fl_lightning.checkpoints.trained.Loadable.load",  # of a run
}

WITH_EXTRA = {
    "fl_lightning.models.hugging_face.HuggingFaceCausalLM",
    "fl_lightning.models.hugging_face.HuggingFaceClassifier",
    "fl_lightning.models.lora.LoRA",
}


def known() -> dict[str, Any]:
    """Names that an example may use without a word: torch, and what the package exports."""
    modules = [fl_lightning, *(importlib.import_module(f"fl_lightning.{name}") for name in PACKAGES)]
    return {"torch": torch} | {name: getattr(module, name) for module in modules for name in module.__all__}


def examples() -> list[doctest.DocTest]:
    names = [found.name for found in pkgutil.walk_packages(fl_lightning.__path__, "fl_lightning.")]
    modules = [importlib.import_module(name) for name in names if not name.endswith("__main__")]
    finder = doctest.DocTestFinder()
    found = [test for module in modules for test in finder.find(module, globs={**known(), **vars(module)})]
    return [test for test in found if test.examples and test.name not in WITH_FILES]


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.name.removeprefix("fl_lightning."))
def test_examples_show_what_comes_out(example: doctest.DocTest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if example.name in WITH_EXTRA:
        needs_transformers()
    (tmp_path / "configs").symlink_to(Path(__file__).parents[1] / "configs")
    monkeypatch.chdir(tmp_path)
    told: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert not runner.run(example, out=told.append).failed, "".join(told)
