"""Every path, name, option and extra that a document, a docstring or a comment puts down exists."""

import builtins
import fnmatch
import functools
import keyword
import re

import pytest
import repository as repo
import torch

# Names of others, or of what a user makes. A name that no text uses has to go from here.
FOREIGN = {
    "--benchmark-only": "pytest-benchmark",
    "--quiet": "mkdocs",
    ".ci/versions.md": "what .ci/versions.py writes",
    "--inplace": "setuptools",
    "--nproc-per-node": "torchrun",
    "--max-restarts": "torchrun",
    "--section.field": "any setting",
    "scores.json": "what a command leaves in its folder",
    "scores.png": "the same",
    "edits.jsonl": "the same",
    "results.json": "what a measurement leaves",
    "results.md": "what a measurement leaves in its folder",
    "table.md": "a file that the reader names",
    "scale_forward": "the example of a header",
    "Python.h": "CPython",
    "FlopCounterMode": "torch",
    "scipy.signal.upfirdn": "scipy",
}

SPAN = re.compile(r"(`+)([^`\n]+)\1")
NAME = re.compile(r"(?:rwm::)?([A-Za-z_]\w*(?:(?:\.|::)[A-Za-z_]\w*)*)(?:\(.*\)|<.*>)?")
SNAKE = re.compile(r"(?<![\w./<*-])(?!sm_\d)[a-z][a-z0-9]*(?:_[a-z0-9]+)*_[a-z0-9]{2,}(?![\w/*.-])")
TOP = "|".join(map(re.escape, repo.TOPS))
SUFFIX = r"\.(?:py|cpp|cuh?|h|md|toml|yml|cfg)\b(?![(/])"
PATH = re.compile(rf"(?<![\w./~-])(?:(?:{TOP})/[\w./<>*{{}},-]*[\w>*}}/]|[\w./<>*-]*\w{SUFFIX})")


def is_path(word: str) -> bool:
    """Whether some file or folder ends so; `<op>` and `*` stand for one part."""
    pattern = re.sub(r"<\w+>", "*", word).rstrip("/").removeprefix("./")
    alternatives = re.search(r"\{([^}]*)\}", pattern)
    choices = alternatives[1].split(",") if alternatives else [""]
    whole = alternatives[0] if alternatives else "\0"
    return all(_matches(pattern.replace(whole, choice)) for choice in choices)


@functools.cache
def _matches(pattern: str) -> bool:
    if "*" not in pattern:
        return any(f"/{path}".endswith(f"/{pattern}") for path in repo.paths())
    return any(
        fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, "*/" + pattern)
        for path in repo.paths()
    )


@functools.cache
def is_name(name: str) -> bool:
    """Whether code knows it: our modules' names strictly, torch's by looking, others by use."""
    parts = re.split(r"\.|::", name)
    if name.startswith("rwm_fast::"):  # registered with torch
        return parts[-1].removesuffix("_backward") in repo.identifiers()
    if parts[0] == "rwm_fast":
        return repo.resolves(name)
    if parts[0] == "torch":
        try:
            return functools.reduce(getattr, parts[1:], torch) is not None
        except AttributeError:
            return set(parts) <= repo.identifiers()
    homes = [p for p in repo.sources(".py") if parts[0] in (p.stem, p.parent.name)]
    homes += repo.classes().get(parts[0], [])
    if len(parts) > 1 and homes and any(parts[1] in repo.defined(p) for p in homes):
        return True
    if len(parts) > 1 and homes and parts[0] not in repo.arguments():
        return False
    return all(map(is_word, parts))


def is_word(name: str) -> bool:
    return name in repo.identifiers() or keyword.iskeyword(name) or hasattr(builtins, name)


def unknown_in_span(span: str) -> list[str]:
    """Names in backticks, as one name or inside an expression, that nothing here has."""
    if PATH.fullmatch(span):
        return []  # `unknown` looks at paths
    whole = NAME.fullmatch(span)
    if whole and not span.startswith("python "):
        return [] if is_name(whole[1]) else [whole[1]]
    return [w for w in SNAKE.findall(span) if not is_name(w)]


def unknown(text: str, printed: bool = True) -> list[str]:
    """What a text names and is not there; what is `printed` holds options of other programs too."""
    found = [word for word in PATH.findall(text) if not is_path(word)]
    for name in re.findall(r"python -m ([\w.]+)", text):
        ours = name.split(".")[0] in repo.TOPS and name != "rwm_fast."  # the start of a message
        if ours and not repo.can_run(name.rstrip(".")):
            found.append(f"python -m {name}")
    for name in re.findall(r"(?<![\w./-])rwm_fast(?:\.[A-Za-z_]\w*)+", text):
        if not PATH.fullmatch(name) and not repo.resolves(name):
            found.append(name)
    command = re.search(r"python -m rwm_fast\.(\w+)", text)
    for option in repo.OPTION.findall(text) if command or not printed else ():
        if not repo.is_option(option, command and command[1]):
            found.append(option)
    for extra in re.findall(r"\.\[([\w,-]+)\]", text):
        found += [f".[{name}]" for name in extra.split(",") if name not in repo.extras()]
    return found


def unknown_in_prose(text: str) -> list[str]:
    found = unknown(text, printed=False)
    for _, span in SPAN.findall(text):
        found += unknown_in_span(span)
    rest = PATH.sub(" ", SPAN.sub(" ", text))
    return found + [w for w in SNAKE.findall(rest) if not is_name(w)]


def complaints(texts, check) -> list[str]:
    return [
        f"{path}:{line}: {word}"
        for path, line, text in texts
        for word in dict.fromkeys(check(text))
        if word not in FOREIGN
    ]


def test_documents_and_comments_name_what_is_there():
    found = complaints(repo.prose(), unknown_in_prose)
    assert not found, "\n".join(found)


def test_messages_name_what_is_there():
    found = complaints(repo.messages(), unknown)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "bind in csrc/<op>/cuda_bindings.cpp",
        "`cuda_bindings.cpp`",
        "in shared memory (to_rgb_fits in Python)",
        "tests/triton compiles every row",
        "gradio: python -m rwm_fast.page",
        "`rwm_fast.ops.masked_l1.nothing`",
        "see rwm_fast.nothing",
        "`winograd.costs` says",
        "`NoSuchClass`",
        "`RegionEditor.no_such_method`",
        "`python -m rwm_fast.edit --no-such-flag`",
        "`--no-such-flag`",
        "pip install '.[nothing]'",
        "`rwm_fast/nothing.py`",
        "`csrc/nothing/`",
        "`torch.nn.functional.nothing_at_all`",
    ],
)
def test_a_false_word_is_seen(text):
    assert unknown_in_prose(text)


@pytest.mark.parametrize(
    "text",
    [
        "`rwm_fast/ops/<op>/reference.py`, `csrc/<op>/`, `tests/*.py`",
        "`masked_l1`, `rwm_fast.masked_l1(a, b)`, `RegionEditor.edit`",
        "`python -m rwm_fast.train --loss.content_alignment 2 --quick`",
        "`torch.autograd.grad`, `pip install -e '.[test]'`",
    ],
)
def test_a_true_word_is_not(text):
    assert not unknown_in_prose(text)


def test_names_of_others_are_still_used():
    texts = "\n".join(text for _, _, text in (*repo.prose(), *repo.messages()))
    assert not [name for name in FOREIGN if name not in texts]
