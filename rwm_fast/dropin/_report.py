"""What was replaced, what was left, and which backend served the calls so far."""

from __future__ import annotations

from typing import NamedTuple

from rwm_fast.dropin import _calls, _finder


class Report(NamedTuple):
    """The answer of `report`; its text has a line for each entry."""

    replaced: dict[str, str]  # module, or class of layers -> family, or how many
    left: dict[str, str]  # module or class that stays as it is -> why
    calls: dict[_calls.Call, int]  # function, operator, device, dtype, backend -> how often

    def __str__(self) -> str:
        lines = [f"{name}: {what}" for name, what in self.replaced.items()]
        lines += [f"{name}: left as it is: {why}" for name, why in self.left.items()]
        for call, count in sorted(self.calls.items()):
            where = f"{call.device}, {call.dtype}"
            lines.append(f"{call.function} -> {call.operator} ({where}): {call.backend}, {count} x")
        return "\n".join(lines) or "nothing was replaced"


def report() -> Report:
    """What has been replaced in this process, what was left and why, and what ran where.

    A backend is that of the forward pass as the call was made; calls inside torch.compile are not
    counted.
    """
    return Report(dict(_finder.replaced), dict(_finder.left), dict(_calls.calls))
