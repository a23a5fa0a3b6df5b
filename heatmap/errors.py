"""The one exception that is shown to the user as a sentence instead of a traceback."""

import errno
import sys
from collections.abc import Callable

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one sentence (or a few) that names the file, record or field, says what was
    wrong and what to do. Every command prints it alone and exits with code 2.
    """


def guard(command: Callable[[], object]) -> None:
    """Runs a command; what the user can mend becomes a sentence on stderr and exit code 2.

    Args:
      command: takes no arguments.

    Raises:
      SystemExit: with code 2 after a UserError, or a disk that is full or cannot be written; with
        130, as shells do, after a Ctrl-C that nothing else answers.
    """
    try:
        command()
    except KeyboardInterrupt as error:
        raise SystemExit(130) from error
    except UserError as error:
        _exit(str(error))
    except Exception as error:
        sentence = disk_trouble(error)
        if sentence is None:
            raise
        _exit(sentence)


def disk_trouble(error: BaseException) -> str | None:
    """Phrases a full or read-only disk, wherever in a chain of exceptions it shows.

    Orbax writes arrays through a library that reports the operating system's error as text.
    """
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen).replace("\n", " ")
        if isinstance(seen, OSError) and seen.filename:
            text = f"{seen.strerror}: {seen.filename}"
        number = getattr(seen, "errno", None)
        if number in _FULL or "No space left" in text or "File too large" in text:
            return f"The disk is full ({text}). Free some space and run the same command again."
        readable = ("Read-only file system", "Permission denied")
        if (
            isinstance(seen, PermissionError)
            or number == errno.EROFS
            or any(r in text for r in readable)
        ):
            return f"No access ({text}). Change what may be read or written there, or name another."
        seen = seen.__cause__ or seen.__context__
    return None


def _exit(sentence: str) -> None:
    print(sentence, file=sys.stderr)
    raise SystemExit(2)
