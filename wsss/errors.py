"""The one exception that means "the user's input is at fault", and text that a terminal may show."""

import unicodedata


class UserError(Exception):
    """Bad input: the message is one clear sentence that names the file (or option) and the fix.

    The command line prints it without a traceback and exits with status 1; everything else that is
    raised is a bug of ours and keeps its traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(escaped(_innermost(message)))


class UsageError(UserError):
    """An option that does not exist or has an impossible value; the command line exits with status 2."""


def _innermost(message: str) -> str:
    """The sentence itself if torch passes on a worker process's error as text with a traceback.

    ``torch._utils.ExceptionWrapper.reraise`` (DataLoader) and ``torch.multiprocessing.spawn`` (DDP) do.
    """
    if "Traceback (most recent call last)" not in message:
        return message
    return message.rpartition(f"{UserError.__module__}.{UserError.__name__}: ")[2].strip()


def escaped(text: str, keep: str = "\n\t") -> str:
    """The text as a terminal may show it: control characters, which a file name may hold, become escapes such as
    ``\\x1b``.

    So do characters that turn the direction of the text and bytes that are no text. ``keep`` lists exceptions.
    """
    if text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape", "surrogatepass").decode()
        if _is_control(char) and char not in keep
        else char
        for char in text
    )


def _is_control(char: str) -> bool:
    category = unicodedata.category(char)
    return category[0] == "C" or category in (
        "Zl",
        "Zp",
    )  # no kind of space but line and paragraph separators
