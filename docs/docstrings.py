"""Docstrings as the site's reader takes them: formulas (`.. math::`) become MathML, which browsers
draw without help; text between or after numpydoc's sections comes before them; an entry for several
arguments becomes one for each, with its own type and default."""

import re
import textwrap

import griffe
from latex2mathml.converter import convert

FORMULA = re.compile(r"^( *)\.\. math::(.*\n(?:\1 +\S.*\n)*)", re.MULTILINE)
SECTION = re.compile(r"\n(?=[A-Z]\w+\n-{3,}\n)")
ENTRY = re.compile(r"^(\w+(?:, \w+)+)\n((?: +.*\n|\n(?= ))+)", re.MULTILINE)


class Readable(griffe.Extension):
    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring:
            obj.docstring.value = ordered(FORMULA.sub(_drawn, obj.docstring.value + "\n"))


def ordered(text: str) -> str:
    head, *sections = SECTION.split(text)
    for i, section in enumerate(sections):
        first, *others = section.strip().split("\n\n")
        loose = [p for p in others if not any(line.startswith(" ") for line in p.splitlines())]
        sections[i] = "\n\n".join([first, *(p for p in others if p not in loose)]) + "\n"
        head = "\n\n".join([head.rstrip(), *loose])
    if sections[:1] and sections[0].startswith("Parameters\n"):
        sections[0] = ENTRY.sub(_each, sections[0])
    return "\n\n".join([head, *sections])


def _each(found: re.Match) -> str:
    return "".join(f"{name}\n{found[2]}" for name in found[1].split(", "))


def _drawn(found: re.Match) -> str:
    latex = " ".join(textwrap.dedent(found[2]).split())
    return f'<div style="margin: 1em 0">{convert(latex, display="block")}</div>\n'
