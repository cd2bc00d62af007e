"""Errors that end a command. An unavailable clip is not an error but a `records.Failure`.

    AudioTaggingError
    ├── ConfigError        a setting that is impossible, or that contradicts another
    ├── InputError         a given file or table is not valid
    │   └── WeightsError   weights that don't fit the model
    ├── SourceError        the source of the media as a whole doesn't answer
    ├── StoreError         the store can't be read or written
    │   ├── CorruptError   bytes that don't match their record
    │   └── LeaseError     another run holds the store
    ├── MismatchError      two things that don't belong together
    ├── NoClipsError       no clips to continue with
    ├── TrainingError      training can't continue
    ├── StoppedError       asked to stop, and everything is saved
    └── TrackingError      the tracking server can't be used

Each message says what was expected, what was found, where, and what to do. What comes from a file, a server or a
library goes into it through `quote` or `describe`.
"""

import errno

MAX_QUOTED_CHARS = 200
"""Of foreign text in a message: a table without line breaks is one field of many megabytes."""


class AudioTaggingError(Exception):
    """Base of all errors that a person can repair; a command prints its message and exits with `exit_code`."""

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
    """Exit code 75 is `EX_TEMPFAIL` of sysexits.h: try again later."""

    exit_code = 75


class MismatchError(AudioTaggingError):
    pass


class NoClipsError(AudioTaggingError):
    pass


class TrainingError(AudioTaggingError):
    pass


class StoppedError(AudioTaggingError):
    """Exit code 75, as for a lease: run again later."""

    exit_code = 75


class TrackingError(AudioTaggingError):
    pass


def quote(text: object, limit: int = MAX_QUOTED_CHARS) -> str:
    """Quote foreign text for a message: its first `limit` characters, with control characters escaped."""
    text = str(text)
    return repr(text) if len(text) <= limit else f"{text[:limit]!r}… ({len(text):,} characters)"


def describe(error: BaseException, limit: int = MAX_QUOTED_CHARS) -> str:
    """Describe a library's error on one line: its type, and the first `limit` characters of its message."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:limit]}" + "…" * (len(message) > limit)


def is_disk_full(error: BaseException) -> bool:
    """Tell whether an error means that a disk is full, or a quota used up."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def describe_storage_error(error: Exception) -> str:
    """Describe a storage library's error on one line, with what to do where its own message doesn't say."""
    if type(error).__name__ == "NoCredentialsError":  # botocore's, which a store in a folder does without
        return f"{describe(error)}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or attach a role"
    if isinstance(error, FileNotFoundError) and isinstance(error.__cause__, OSError):
        return describe(error.__cause__)  # fsspec calls a host that doesn't answer a file that isn't there
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    return describe(error)
