"""What may reach a terminal."""

import pytest

from wsss.errors import UserError, escaped
from wsss.runtime import say


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("a\rb\x07\x9b", r"a\rb\x07\x9b"),
        ("a\u202eb\u2028", r"a\u202eb\u2028"),
        ("a\udce9b", r"a\udce9b"),  # a byte of a file name that is no UTF-8
        ("日本 é\u00a0\u202f\\x1b\n\tx", "日本 é\u00a0\u202f\\x1b\n\tx"),
    ],
)
def test_control_characters_become_escapes_and_all_else_stays(
    text: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert escaped(text) == str(UserError(text)) == shown
    say(text)
    assert capsys.readouterr().err == f"{shown}\n"


def test_line_ends_are_escaped_where_asked() -> None:
    assert escaped("a\n\tb", keep="") == r"a\n\tb"
