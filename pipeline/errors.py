"""Errors that end a command. An unavailable clip is not an error but a `records.Failure`.

    AudioTaggingError
    ├── ConfigError        a setting is impossible or contradicts another
    ├── InputError         a file or table is invalid
    │   └── WeightsError   the weights don't fit the model
    ├── SourceError        the media source is unreachable
    ├── StoreError         the store can't be read or written
    │   ├── CorruptError   stored bytes don't match their record
    │   └── LeaseError     another run holds the store
    ├── WorkerError        worker processes died repeatedly without progress
    ├── MismatchError      two inputs have different settings
    ├── NoClipsError       no clips are left to continue with
    ├── TrainingError      training can't continue
    ├── StoppedError       the run stopped on request and saved everything
    └── TrackingError      the tracking server is unusable

Each message says what was expected, what was found, where, and what to do. Text from files, servers and libraries
passes through `quote` or `describe`.
"""

import errno

MAX_QUOTED_CHARS = 200
"""Maximum length of quoted external text in a message. In a table without line breaks, a single field can be many
megabytes long."""


class AudioTaggingError(Exception):
    """Base class of all errors that users can fix. Commands print the message and exit with `exit_code`."""

    exit_code = 1


class ConfigError(AudioTaggingError):
    exit_code = 2


class InputError(AudioTaggingError):
    pass


class WeightsError(InputError):
    pass


class SourceError(AudioTaggingError):
    pass


class StoreError(AudioTaggingError):
    pass


class CorruptError(StoreError):
    pass


class LeaseError(StoreError):
    """Another run holds the store. Exit code 75 is `EX_TEMPFAIL` from sysexits.h, which tells the caller to retry
    later."""

    exit_code = 75


class WorkerError(AudioTaggingError):
    pass


class MismatchError(AudioTaggingError):
    pass


class NoClipsError(AudioTaggingError):
    pass


class TrainingError(AudioTaggingError):
    pass


class StoppedError(AudioTaggingError):
    """The run stopped on request. The exit code is 75, as for LeaseError, because running the command again resumes the
    work."""

    exit_code = 75


class TrackingError(AudioTaggingError):
    pass


def quote(text: object, limit: int = MAX_QUOTED_CHARS) -> str:
    """Quote the first `limit` characters of external text and escape its control characters."""
    text = str(text)
    return repr(text) if len(text) <= limit else f"{text[:limit]!r}… ({len(text):,} characters)"


def describe(error: BaseException, limit: int = MAX_QUOTED_CHARS) -> str:
    """Describe an error from a library in one line: its type and the first `limit` characters of its message."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:limit]}" + "…" * (len(message) > limit)


def is_disk_full(error: BaseException) -> bool:
    """Return True if the disk is full or a quota is exhausted."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def describe_storage_error(error: Exception) -> str:
    """Describe an error from a storage library in one line, and add a remedy if the library suggests none."""
    if type(error).__name__ == "NoCredentialsError":  # compare by name: local stores don't import botocore
        return f"{describe(error)}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or attach a role"
    if isinstance(error, FileNotFoundError) and isinstance(error.__cause__, OSError):
        return describe(error.__cause__)  # fsspec reports an unreachable host as a missing file
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    return describe(error)
