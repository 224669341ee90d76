"""Errors that a user can cause or has to know about.

Every exception takes one string, so that it survives pickling on its way between ranks.
"""

import errno

#: Errors of the machine, whichever file is read. EIO is not among them: it may be one file on a bad
#: disk, and `--allow_failures` is to leave out that tomogram, however often the job is started.
_MACHINE_ERRORS = frozenset(
    {
        # too many open files, no memory
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        # a mount whose server, client or device is gone: NFS, Lustre, FUSE
        errno.ESTALE,
        errno.ENOTCONN,
        errno.ESHUTDOWN,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.ETIMEDOUT,
        errno.ENODEV,
        errno.ENXIO,
        # a mount for which this machine has no key or ticket any more
        errno.ENOKEY,
        errno.EKEYEXPIRED,
        errno.EKEYREJECTED,
        errno.EKEYREVOKED,
    }
)


class PseudoSubtomoError(Exception):
    """Base class: the message is for the user, a traceback would not help."""


class InputError(PseudoSubtomoError):
    """The input cannot be used; the message lists what was found."""


class LockedError(InputError):
    """Another job writes to the output directory."""


def reading_error(message: str, error: OSError) -> PseudoSubtomoError:
    """Return the error of a file that cannot be read: the input's, but where the machine fails."""
    is_machine = error.errno in _MACHINE_ERRORS
    return (PseudoSubtomoError if is_machine else InputError)(message)


class RankError(PseudoSubtomoError):
    """A rank can do nothing of the job: any other piece of work would fail there too."""


class UsageError(PseudoSubtomoError):
    """The command line, or the way the program was launched, is wrong."""


class OutputError(PseudoSubtomoError):
    """A result could not be written."""
