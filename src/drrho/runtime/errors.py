"""Errors that several rooms raise and the command line reports in one line."""

import re

from torch import Tensor

# User and password in front of a host, and a query, as signed addresses have.
URL_USER = re.compile(r"(?<=://)[^/\s'\"]*@")
URL_QUERY = re.compile(r"(://[^\s'\"?]*\?)[^\s'\"]*=[^\s'\",;)]*")


class CheckpointError(RuntimeError):
    """Error: a checkpoint cannot be read, or belongs to another run."""


class NotFiniteError(RuntimeError):
    """Error: a loss or a gradient is NaN or infinite.

    Attributes:
        step: index of the first such step.
        sample_ids: all of its batch.
    """

    def __init__(self, message: str, *, step: int, sample_ids: Tensor) -> None:
        super().__init__(message)
        self.step = step
        self.sample_ids = sample_ids


class ProcessFailed(RuntimeError):
    """Error: one of several processes cannot continue."""


class UsageError(ValueError):
    """Error: the command line cannot be understood."""


# What a user can usually mend, said in one line by the command line.
USER_ERRORS = (
    *(ValueError, OSError, ModuleNotFoundError),
    *(CheckpointError, NotFiniteError, ProcessFailed),
)


def without_secrets(text: str) -> str:
    """Remove users, passwords and queries from the URLs in a text that is to be shown."""
    return URL_QUERY.sub(r"\1...", URL_USER.sub("", text))
