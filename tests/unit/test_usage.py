"""The words of a tool's command line, as they may be spelt."""

from pathlib import Path

import pytest

from wsss.errors import UsageError
from wsss.usage import FLAG, ToolParser, numbers


def parser() -> ToolParser:
    made = ToolParser(prog="wsss tool")
    made.add_argument("photos", nargs="*", type=Path)
    made.add_argument("--ms_flip", **FLAG)
    made.add_argument("--scales", type=numbers, default=())
    made.add_argument("--accelerator", choices=("auto", "cpu", "gpu"), default="auto")
    return made


@pytest.mark.parametrize("words", ["--ms_flip", "--ms-flip", "--evaluate.ms_flip true", "--ms_flip=true"])
def test_flags_are_spelt_as_the_user_likes(words: str) -> None:
    found = parser().parse_args([*words.split(), "a.jpg", "b.jpg"])
    assert (found.ms_flip, found.photos) == (True, [Path("a.jpg"), Path("b.jpg")])


@pytest.mark.parametrize(
    "words", ["", "--ms_flip false", "--evaluate.ms-flip=false", "--ms_flip --ms_flip false"]
)
def test_flags_can_be_off(words: str) -> None:
    assert parser().parse_args(words.split()).ms_flip is False


@pytest.mark.parametrize("option", ["--accelerator", "--runtime.accelerator", "--device"])
def test_the_accelerator_has_the_name_that_the_stages_give_it(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parser().parse_args([option, "cpu"]).accelerator == "cpu"
    note = "wsss tool: note: --device is now --accelerator\n"
    assert capsys.readouterr().err == (note if option == "--device" else "")


@pytest.mark.parametrize("text", ["0.5,1", "[0.5, 1]", "[0.5,1.0]"])
def test_numbers_are_written_with_or_without_brackets(text: str) -> None:
    assert parser().parse_args(["--scales", text]).scales == (0.5, 1.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--ms_flop"],
            r"^there is no option --ms_flop; did you mean --ms_flip\? \(see `wsss tool --help`\)$",
        ),
        (["--seed", "3"], r"^there is no option --seed \(see `wsss tool --help`\)$"),
        (["--segmenter.scales", "1"], "there is no option --segmenter.scales; did you mean --scales"),
        (["--ms_flip=perhaps"], "--ms_flip: expected true or false, got perhaps"),
        (["--scales", "1,two"], "--scales: expected numbers such as 0.5,1, got 1,two"),
        (["--accelerator", "gpuu"], r"invalid choice: 'gpuu' .*; did you mean gpu\?"),
        (["--accelerator"], "--accelerator: expected one argument"),
    ],
)
def test_words_that_mean_nothing_are_refused_in_a_sentence(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parser().parse_args(words)


def test_sub_commands_have_options_and_near_names_of_their_own() -> None:
    made = ToolParser(prog="wsss tool")
    actions = made.add_subparsers(dest="action", required=True)
    check = actions.add_parser("check")
    check.add_argument("--fast_way", **FLAG)
    assert made.parse_args(["check", "--fast-way"]).fast_way is True
    with pytest.raises(UsageError, match=r"invalid choice: 'chekc' .*; did you mean check\?"):
        made.parse_args(["chekc"])
    with pytest.raises(UsageError, match=r"no option --fast; .*--fast_way\? \(see `wsss tool check --help`"):
        made.parse_args(["check", "--fast"])
    with pytest.raises(UsageError, match="there is no option --fast_way"):
        made.parse_args(["--fast_way", "check"])
