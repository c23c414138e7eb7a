"""What README, CONTRIBUTING and the documents show: Python runs from top to bottom, commands run or parse, and YAML parses.

A block is run as it stands there, unless a comment before it, or at the top of its page for all of them, says why it cannot be:

    <!-- not run: needs SLURM -->
    <!-- not run or parsed: names classes that are to be written -->

Python of such a block must compile, and commands of the first kind must be ones that the program would take: options, classes
and files.
Training is cut to one round, as what is shown may take minutes. Notebooks' cells are run by the build of the site.
"""

import re
import shlex
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from fl_lightning.cli import main
from fl_lightning.experiments.command import parse_sweep_command
from fl_lightning.experiments.sweep import read_sweep
from fl_lightning.options.commands import FURTHER

ROOT = Path(__file__).parents[1]
GENERATED = [line for line in (ROOT / ".gitignore").read_text().splitlines() if line.startswith("docs/")]
NOT_RUN = r"<!-- not (run(?: or parsed)?): [^>]+ -->\n"
BLOCK = re.compile(rf"^(?:{NOT_RUN})?```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
PROGRAMS = ("fl-lightning", "torchrun", "python", "pip", "make", "sbatch", "srun", "NPROC=8", "OMP_NUM_THREADS=1", "pytest")
STAND_INS = {  # files of a user's own, or of a run that was not run
    "FILE": "configs/sweeps/quickstart.yaml",
    "my_sweep.yaml": "configs/sweeps/quickstart.yaml",
    "runs/x/config.yaml": "configs/quickstart.yaml",
    "runs/p/config.yaml": "configs/phishing/invariant.yaml",
    "runs/c/config.yaml": "configs/cifar10/edge_case.yaml",
}


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    language: str
    text: str
    left: str | None
    """"run" or "run or parsed": what is not done with it, for a reason that the page says."""


def pages() -> list[Path]:
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    names = {page: page.relative_to(ROOT).as_posix() for page in found}
    return [page for page in found if names[page] not in GENERATED and not names[page].startswith("docs/_build")]


def blocks() -> Iterator[Block]:
    for page in pages():
        text = page.read_text()
        whole = re.match(rf"# .*\n\n{NOT_RUN}\n", text)
        for left, language, inside in BLOCK.findall(text):
            yield Block(page.relative_to(ROOT).as_posix(), language, inside, left or (whole and whole[1]) or None)


BLOCKS = list(blocks())


def commands(block: Block) -> list[str]:
    """The commands of a block without a language, those that go on in the next line in one piece."""
    if block.language:
        return []
    lines = block.text.replace("\\\n", " ").splitlines()
    return [part for line in lines if line.startswith(PROGRAMS) for part in re.split(r" && ", line)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in that has the configurations, as a checkout has them."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- Python ----------------------------------------------------------------------------------------------------------


PYTHON = {
    page: [b for b in BLOCKS if b.page == page and b.language == "python"] for page in dict.fromkeys(b.page for b in BLOCKS)
}


SHOWN = {
    "README.md": r"^0\.[89]\d*$",
    "docs/howto/detection.md": r"client +malicious\n +\d+ +True",
    "docs/howto/python.md": r"Results: runs/pixels/run\.json(.|\n)*torch\.Size\(\[1, 10\]\)",
    "docs/reference/dealing_out.md": r"tensor\(\[50, 50\]\)",
}
"""What pages must print, where a mistake could pass without."""


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("page", [page for page, found in PYTHON.items() if found])
def test_python_runs_from_top_to_bottom(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {"__name__": "page"}
    for block in PYTHON[page]:
        code = compile(block.text if not block.text.startswith(" ") else f"class _:\n{block.text}", page, "exec")
        if block.left is None:
            exec(code, names)
    assert re.search(SHOWN.get(page, ""), capsys.readouterr().out, flags=re.MULTILINE)


# ---- commands --------------------------------------------------------------------------------------------------------


def as_arguments(command: str) -> list[str]:
    return [STAND_INS.get(word, word) for word in shlex.split(command, comments=True)]


def of_program(words: list[str]) -> list[str] | None:
    """What `fl-lightning` is given by a command: directly, or by a launcher."""
    for before in (["fl-lightning"], ["-m", "fl_lightning"], ["launch/slurm_multinode.sbatch"]):
        for place in range(len(words)):
            if words[place : place + len(before)] == before:
                return words[place + len(before) :]
    return None


def parses(words: list[str]) -> None:
    """Raise or exit with an error unless the program takes these arguments."""
    verb = words[0]
    if verb == "sweep":
        options, _ = parse_sweep_command(words[1:])
        assert options.template or options.file.exists(), options.file
    elif verb == "report":
        assert words[1].startswith("runs/sweeps/") or Path(words[1]).exists(), words[1]
    elif verb in FURTHER:  # analyses have parsers of their own, which compute as soon as they have parsed
        assert all(Path(word).exists() for before, word in pairwise(words) if before == "--config")
    else:
        with pytest.raises(SystemExit) as ended:
            main([*words, "--print_config"])
        assert ended.value.code in (0, None), words


def others(words: list[str]) -> None:
    """Whether what a command names is there, of a command that is not ours."""
    for word in words:
        if word.startswith(("launch/", "tests/")):
            assert (ROOT / word).exists(), word
    if words[:1] == ["make"]:
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), words
    if "-m" in words and words[words.index("-m") + 1].startswith("benchmarks"):
        module = ROOT / words[words.index("-m") + 1].replace(".", "/")
        source = (module / "__main__.py" if module.is_dir() else module.with_suffix(".py")).read_text()
        assert all(f'"{word}"' in source for word in words if word.startswith("--") and word != "--standalone"), words
    if words[:2] == ["pip", "install"] and (extra := re.search(r"\[(\w+)\]", words[-1])):
        assert re.search(rf"^{extra[1]} = \[", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE), words


def runs(words: list[str], folder: Path) -> None:
    """Run a command here, with one round."""
    brief = []
    if words[0] == "fit" and "--trainer.fast_dev_run" not in words:
        brief = ["--trainer.max_epochs", "1", "--trainer.default_root_dir", str(folder / "runs" / "page")]
    status: object = 0
    try:
        main([*words, *brief])
    except SystemExit as ended:
        status = ended.code
    assert not status, words


def once() -> dict[str, list[tuple[Block, str]]]:
    """By page, its commands; one that several pages show in the same way is tried once."""
    found: dict[str, list[tuple[Block, str]]] = {}
    seen = set()
    for block in BLOCKS:
        for command in commands(block):
            key = (" ".join(as_arguments(command)), block.left)
            if key not in seen:
                seen.add(key)
                found.setdefault(block.page, []).append((block, command))
    return found


COMMANDS_OF = once()


@pytest.mark.parametrize("page", COMMANDS_OF)
def test_commands_run_or_parse(page: str, folder: Path) -> None:
    for block, command in COMMANDS_OF[page]:
        words = as_arguments(command)
        given = of_program(words)
        if given is None or block.left is not None:
            others(words)
        if given is not None and block.left is None:
            runs(given, folder)
        elif given is not None and block.left == "run":
            parses(given)


def test_what_is_neither_ours_nor_a_launchers_is_marked() -> None:
    unmarked = [c for b in BLOCKS if b.left is None for c in commands(b) if not c.startswith("fl-lightning")]
    assert unmarked == [], "say in a comment before the block why it is not run"


# ---- YAML ------------------------------------------------------------------------------------------------------------


YAML = [block for block in BLOCKS if block.language == "yaml" and block.left is None]


@pytest.mark.parametrize("block", YAML, ids=[f"{block.page}-{place}" for place, block in enumerate(YAML)])
def test_configurations_parse(block: Block, folder: Path) -> None:
    if "axes" in yaml.safe_load(block.text):
        file = folder / "configs" / "sweeps" / "shown.yaml"
        file.write_text(block.text)
        assert len(read_sweep(file).cells) > 1
    else:
        (folder / "shown.yaml").write_text(block.text)
        with pytest.raises(SystemExit) as ended:
            main(["fit", "--config", "configs/quickstart.yaml", "--config", "shown.yaml", "--print_config"])
        assert ended.value.code in (0, None)


# ---- links -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page.relative_to(ROOT).as_posix() for page in pages()])
def test_files_that_are_named_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[\w-]*)?\)", text):
        file = ((ROOT / page).parent / target).resolve()
        if not target.startswith("http") and file.relative_to(ROOT).as_posix() not in GENERATED:
            assert file.exists(), target
    for config in re.findall(r"configs/[a-z0-9_/]+\.yaml", text):
        assert (ROOT / config).exists(), config
