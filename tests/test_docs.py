"""The documents as people use them: python blocks run, shell blocks name what exists, and the chart
is that of the committed results."""

import importlib.util
import re
import shlex

import pytest
import repository as repo
import torch
from PIL import Image
from torch.distributed import run

from rwm_fast import Encoder, Generator
from rwm_fast.config import PRESETS
from rwm_fast.models import save_weights

DOCUMENTS = [p for p in repo.sources(".md") if p.name == "README.md" or p.parts[0] == "docs"]
# what docs/export.md reads is written, and its block run, by tests/models/test_export.py
WITH_PYTHON = [p for p in DOCUMENTS if any(repo.blocks(p, "python")) and p.stem != "export"]
STEPS = re.findall(
    r"^(?:step|side_by_side) (.*)$", (repo.ROOT / ".ci/run").read_text(), re.MULTILINE
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the documents assume: a trained run, two photos and a mask."""
    path = tmp_path_factory.mktemp("user")
    (path / "runs" / "demo").mkdir(parents=True)
    config = PRESETS["demo"]
    weights = path / "runs" / "demo" / "weights.safetensors"
    save_weights(weights, Encoder(config.model), Generator(config.model), config)
    Image.new("RGB", (80, 48), (200, 120, 40)).save(path / "a.jpg")
    Image.new("RGB", (64, 64), (20, 60, 200)).save(path / "b.jpg")
    Image.new("L", (80, 48), 255).save(path / "m.png")
    return path


@pytest.mark.parametrize("document", WITH_PYTHON, ids=str)
def test_python_blocks_run(document, folder, monkeypatch):
    """One after another, as a reader would type them."""
    monkeypatch.chdir(folder)
    torch.manual_seed(0)
    names: dict = {"__name__": "document"}
    for _, line, block in repo.blocks(document, "python"):
        exec(compile("\n" * (line - 1) + block, str(document), "exec"), names)


def test_the_readme_has_python():
    assert {"README.md", "docs/project.md"} <= {p.as_posix() for p in WITH_PYTHON}


def commands():
    """Every command of a shell block, as words; environment variables before it left out."""
    for document in repo.sources(".md"):
        for path, line, block in repo.blocks(document, ""):
            for number, text in enumerate(block.splitlines(), line):
                words = shlex.split(text, comments=True)
                for command in " ".join(map(shlex.quote, words)).split(" '&&' "):
                    words = [w for w in shlex.split(command) if not re.match(r"[A-Z_]+=", w)]
                    if words:
                        yield pytest.param(words, id=f"{path}:{number}:{words[0]}")


COMMANDS = list(commands())


def test_there_are_commands():
    assert len(COMMANDS) > 20


def markers() -> set[str]:
    text = (repo.ROOT / "pyproject.toml").read_text()
    section = re.search(r"^markers = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)[1]
    return set(re.findall(r'^  "(\w+):', section, re.MULTILINE))


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_is_one_that_can_be_given(words):
    """What test_names.py does not see: programs, values, files, markers, steps."""
    program, *rest = words
    if program == "torchrun":  # its own options, then those of ours
        job = run.get_args_parser().parse_args(rest)
        assert job.module and job.training_script == "rwm_fast.train"
        program, rest = "python", ["-m", job.training_script, *job.training_script_args]
    if program == "python" and rest[:1] == ["-m"] and rest[1].startswith("rwm_fast."):
        module = importlib.import_module(rest[1])
        if rest[1] == "rwm_fast.train":
            module.parse(rest[2:])
        elif rest[2:]:
            required = {w.split("=")[0] for w in rest if w.startswith("--")}
            assert required <= repo.options(rest[1].removeprefix("rwm_fast."))
    elif program == "python" and rest[:1] == ["-m"]:
        assert repo.can_run(rest[1]), rest
    elif program == "python":
        assert (repo.ROOT / rest[0]).is_file(), rest
    elif program == "pytest":
        asked = dict(zip(rest, rest[1:], strict=False)).get("-m")
        assert asked is None or asked in markers(), asked
        values = {"-m", "-k"}
        names = [
            w for a, w in zip(["", *rest], rest, strict=False) if a not in values and w[0] != "-"
        ]
        assert all((repo.ROOT / name).exists() for name in names), names
    elif program == "pip":
        assert rest[0] in ("install", "wheel")
    elif program.startswith(".ci/"):
        assert (repo.ROOT / program).is_file()
        assert set(rest) <= {name for line in STEPS for name in line.split()}, rest
    else:
        assert program in ("ruff", "mkdocs"), f"{program}: a program that this test does not know"


@pytest.mark.parametrize("document", repo.sources(".md"), ids=str)
def test_links_lead_to_files(document):
    """Of all documents as they lie in the repository; the site's builder looks at its own."""
    text = (repo.ROOT / document).read_text()
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
        assert (repo.ROOT / document.parent / target).exists(), target


def test_the_chart_is_made_of_the_committed_results(tmp_path):
    spec = importlib.util.spec_from_file_location("chart", repo.ROOT / "docs" / "chart.py")
    chart = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(chart)
    measured = chart.ratios()
    assert set(measured) == set(chart.ROWS)
    assert all(measured[row][c]["median"] > 0 for row in measured for c in chart.COLUMNS)
    chart.draw(tmp_path / "speed.png")
    with Image.open(tmp_path / "speed.png") as new, Image.open(repo.ROOT / "docs/speed.png") as old:
        assert new.size == old.size
