"""One family of errors that a user may see: a sentence and a hint, never a traceback.

Anything outside this family is a defect of ours and may show a traceback.
"""

from __future__ import annotations

import errno


class TrainerTuiError(Exception):
    """Something a person can act on.

    Attributes:
        message: one sentence, what is wrong, with the name of the thing.
        hint: what to do next; may be empty.
        exit_code: what the command line exits with: 1 refused, 2 usage, 3 no daemon.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class Refused(TrainerTuiError):
    """The request is understood and will not be done."""


class Stale(Refused):
    """The request was based on a state that has changed; `current` is the state now."""

    def __init__(self, message: str, hint: str = "", current: object = None) -> None:
        super().__init__(message, hint)
        self.current = current


class NotFound(Refused):
    """There is no such job, version or key."""


class ConfigProblem(TrainerTuiError):
    """`config.toml` cannot be used as it stands."""


class WorkspaceProblem(TrainerTuiError):
    """The workspace is missing, not ours, or on a filesystem that cannot hold it."""


class Locked(TrainerTuiError):
    """Another process holds the lock; the message says which."""

    exit_code = 3


class NoDaemon(TrainerTuiError):
    """No daemon answers on this workspace's socket."""

    exit_code = 3


class Unanswered(NoDaemon):
    """A daemon may be there, but what came is no answer: silence, a closed door, no HTTP."""


class DataProblem(TrainerTuiError):
    """A file's rows cannot be trained on; permanent, never retried by itself."""


class Corrupt(TrainerTuiError):
    """Committed files do not match their manifest."""


class Unreadable(Corrupt):
    """Committed files cannot be read now; another time they may be, so no mark of it is kept."""


_DAMAGE = (errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)


def is_damage(problem: OSError) -> bool:
    """Is the medium bad, or what stands on it? A lack of room, rights or memory is not damage."""
    return problem.errno in _DAMAGE


_LACKS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def is_lack(problem: OSError) -> bool:
    """Has this process run out of something? Then it says nothing about what was to be read."""
    return problem.errno in _LACKS
