"""What may stand in for a file of another project, and whether it does what that file does."""

from __future__ import annotations

import ast
from typing import Any, NamedTuple

Alternatives = tuple[tuple[str, Any], ...]  # (signature, what serves it)
ROOT = "2 ** 0.5"  # as every family means it


class Offer(NamedTuple):
    """A module of ours in place of those whose dotted name is, or ends in, `module`."""

    family: str
    module: str
    names: dict[str, Alternatives]  # public functions and classes, by the signatures there are
    more: dict[str, Any] = {}  # helpers and switches
    inside: frozenset[str] = frozenset()  # public names that only the file itself uses

    def fits(self, name: str) -> bool:
        """Whether a module of this name may be meant."""
        return f".{name}".endswith(f".{self.module}")

    def serve(self, source: str) -> dict[str, Any] | str:
        """What the module holds in place of a file with this source, or why it cannot.

        Every public function and class of the file must be one of ours with the same arguments in
        the same order with the same defaults.
        """
        held = {name: found[0][1] for name, found in self.names.items()} | self.more
        for node in ast.parse(source).body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or _is_internal(node):
                continue
            name = node.name
            if name in self.inside:
                continue
            said = signature(node)
            served = [value for text, value in self.names.get(name, ()) if text == said]
            if name not in self.names:
                return f"it defines {name}, which is not known"
            if not served:
                known = " or ".join(f"({text})" for text, _ in self.names[name])
                return f"its {name}({said}) is not the known {name}{known}"
            if isinstance(node, ast.ClassDef) and _has_shaped_bias(node):
                return f"its {name} keeps a bias of several dimensions"
            held[name] = served[0]
        return held


def signature(node: ast.FunctionDef | ast.ClassDef) -> str:
    """Arguments and defaults of a function, or of a class without self; no annotations."""
    if isinstance(node, ast.ClassDef):
        inits = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        if not inits:
            return ""
        arguments = inits[0].args
        arguments.args = arguments.args[1:]
    else:
        arguments = node.args
    for argument in ast.walk(arguments):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    text = ast.unparse(arguments)
    return text.replace("np.sqrt(2)", ROOT).replace("math.sqrt(2)", ROOT)


def _is_internal(node: ast.FunctionDef | ast.ClassDef) -> bool:
    """Private, or a torch.autograd.Function, which only the file's own functions apply."""
    bases = node.bases if isinstance(node, ast.ClassDef) else []
    return node.name.startswith("_") or any(ast.unparse(b).endswith("Function") for b in bases)


def _has_shaped_bias(node: ast.ClassDef) -> bool:
    calls = [n for n in ast.walk(node) if isinstance(n, ast.Call)]
    return any(ast.unparse(n.func) == "torch.zeros" and len(n.args) > 1 for n in calls)
