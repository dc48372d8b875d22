"""Errors that a user can cause. Each message is one sentence: what came, what was expected, what to do.

DeepMojiError            exit code 1: the work failed
├── InputError           data that cannot be read, or holds nothing usable
├── ValidationFailed     data that breaks a rule of its suite
├── TrainingError        training that cannot go on (NaN loss, foreign checkpoint, full disk)
├── RegistryError        a model that is missing, or that may not be promoted
├── ServiceError         a server (MLflow, Prefect, storage) that does not answer
└── UsageError           exit code 2: wrong option, name or parameter
"""


class DeepMojiError(Exception):
    """Base of every error that this project raises on purpose; `exit_code` is what the command returns."""

    exit_code = 1


class InputError(DeepMojiError):
    """Input that is missing, unreadable, empty or of the wrong shape."""


class ValidationFailed(DeepMojiError):
    """Data that breaks a validation rule."""


class TrainingError(DeepMojiError):
    """Training that cannot go on; the last good checkpoint is intact."""


class RegistryError(DeepMojiError):
    """A model that is not there, or that a gate refuses."""


class ServiceError(DeepMojiError):
    """A server that cannot be reached."""


class UsageError(DeepMojiError):
    """An unknown name, or an option of the wrong kind."""

    exit_code = 2


def describe(error: OSError) -> str:
    """The sentence for a disk that is full or read-only, or a file that may not be used."""
    return f"{error.filename or 'A file'} could not be used ({error.strerror or error}): mend that and retry."
