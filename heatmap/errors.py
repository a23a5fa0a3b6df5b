"""The one exception that is shown to the user as a sentence instead of a traceback."""


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one sentence (or a few) that names the file, record or field, says what was
    wrong and what to do. Every command prints it alone and exits with code 2.
    """
