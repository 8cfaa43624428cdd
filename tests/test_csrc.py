"""The rules of the C++ and CUDA sources that a machine can read from the text."""

import re
from pathlib import Path

CSRC = Path(__file__).parent.parent / "csrc"
SUFFIXES = (".h", ".cpp", ".cu", ".cuh")
MOST = 10  # arguments of a function; more are fields of a record (csrc/common/records.h)

_OPEN, _CLOSE = "([{<", ")]}>"
# A type and, most of the time, a name; what a call hands over looks otherwise.
_PARAMETER = re.compile(
    r"(const |unsigned |typename |\[\[\w+\]\] )*[\w:]+(<.*>)?[\w:]*( const)?[ *&.]+(__restrict__ )?"
    r"(\(&\w*\))?\w*(\[\w*\])*( ?= ?.*)?"
)


def bare(text: str) -> str:
    """Without comments, strings, and breaks of lines."""
    text = re.sub(r'//[^\n]*|/\*.*?\*/|"(\\.|[^"\\\n])*"', " ", text, flags=re.DOTALL)
    return re.sub(r"\s+", " ", text.replace("\\\n", " "))


def parts(text: str, start: int) -> list[str]:
    """What commas separate between the parenthesis at `start` and the one that closes it."""
    depth, found, begin = 0, [], start + 1
    for at in range(start, len(text)):
        letter = text[at]
        depth += (letter in _OPEN) - (letter in _CLOSE and text[at - 1 : at + 1] != "->")
        if depth == 0 or (depth == 1 and letter == ","):
            found.append(text[begin:at].strip())
            begin = at + 1
        if depth == 0:
            break
    return [part for part in found if part]


def parameters(text: str) -> list[tuple[str, int]]:
    """Every list of parameters, of functions, lambdas and pointers to functions: name, length."""
    text, found = bare(text), []
    for match in re.finditer(r"(\w+|\]|\(\*\))(?= ?\()", text):
        listed = parts(text, text.index("(", match.end()))
        pointer = match[1] == "(*)"
        if listed and (pointer or all(_PARAMETER.fullmatch(part) for part in listed)):
            found.append((match[1], len(listed)))
    return found


def test_no_function_has_many_arguments():
    sources = [path for path in CSRC.rglob("*") if path.suffix in SUFFIXES]
    lists = [(path.name, *one) for path in sources for one in parameters(path.read_text())]
    assert len(lists) > 500
    assert [one for one in lists if one[-1] > MOST] == []


def test_a_long_list_is_seen():
    long = ", ".join(f"const std::pair<int, A>& a{i}" for i in range(8))
    text = f"""
    template <class T, int WIDTH = (3 > 2), class A = accumulate_t<T>>
    __global__ void __launch_bounds__(kThreads, 4)
        kernel(const T* __restrict__ x, A (&v)[4], std::vector<std::pair<int, int>> pairs,
               std::int64_t channels,  // how many
               bool last = false, {long}) {{
      call(1, 2, a * b, c->d, {long.replace("const", "")});
    }}
    using Kernel = void (*)(const T*, Geometry, int, A, A, A, A, A, A, A, A);
    const auto f = [&](std::int64_t i, auto count) {{ g(x, y, f(i), h[2]); }};
    """
    assert parameters(text) == [("kernel", 13), ("(*)", 11), ("]", 2)]
