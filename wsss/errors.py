"""The one exception that means "the user's input is at fault"."""


class UserError(Exception):
    """Bad input: the message is one clear sentence that names the file (or option) and the fix.

    The command line prints it without a traceback and exits with status 1; everything else that is
    raised is a bug of ours and keeps its traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(_innermost(message))


class UsageError(UserError):
    """An option that does not exist or has an impossible value; the command line exits with status 2."""


def _innermost(message: str) -> str:
    """The sentence itself if torch passes on a worker process's error as text with a traceback.

    ``torch._utils.ExceptionWrapper.reraise`` (DataLoader) and ``torch.multiprocessing.spawn`` (DDP) do.
    """
    if "Traceback (most recent call last)" not in message:
        return message
    return message.rpartition(f"{UserError.__module__}.{UserError.__name__}: ")[2].strip()
