"""Errors that a user can cause or has to know about.

Every exception takes one string, so that it survives pickling on its way between ranks.
"""


class PseudoSubtomoError(Exception):
    """Base class: the message is for the user, a traceback would not help."""


class InputError(PseudoSubtomoError):
    """The input cannot be used; the message lists what was found."""


class UsageError(PseudoSubtomoError):
    """The command line, or the way the program was launched, is wrong."""


class OutputError(PseudoSubtomoError):
    """A result could not be written."""
