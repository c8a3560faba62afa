"""The one exception that means "the user's input is at fault"."""


class UserError(Exception):
    """Bad input: the message is one clear sentence that names the file (or option) and the mend.

    The command line prints it without a traceback and exits with status 1; everything else that is
    raised is a bug of ours and keeps its traceback.
    """
