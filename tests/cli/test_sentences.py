"""How a command ends on an error: in one sentence, or, where nobody could mend it, as it is."""

import pytest

from rwm_fast.errors import UserError, reports_user_errors


def command(error):
    @reports_user_errors
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (UserError("a\nb"), r"a\nb"),
        (MemoryError(), "memory ran out"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to "
                         "allocate 4096 bytes"),
            "memory ran out, asking for 4096 bytes",
        ),
    ],
    ids=["of the user", "of Python", "of torch"],
)  # fmt: skip
def test_what_a_user_can_mend_is_one_sentence(error, sentence, capsys):
    with pytest.raises(SystemExit) as ended:
        command(error)()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"


def test_other_errors_come_out_as_they_are():
    with pytest.raises(RuntimeError, match="of ours"):
        command(RuntimeError("of ours"))()
