"""The error that the command line tells in one line instead of a traceback."""


class UserError(Exception):
    """A mistake of the user's, told in one line that says what to do; exit status 2."""


class DiskFull(UserError):
    """No space is left: every further row would fail of it."""
