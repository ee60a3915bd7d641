"""Every error that Russet raises on purpose: one base class, one class a cause.

A message is one sentence that says what was found, what was expected and what to do. The command line prints it alone
and exits with 1; Python callers catch `RussetError` or the class they care about.
"""

from __future__ import annotations


class RussetError(Exception):
    """Base of every error that a user can cause and mend."""


class ModelNotFoundError(RussetError):
    """The name is neither a catalog entry, nor a folder, nor a repository that could be reached."""


class DownloadError(RussetError):
    """A source could not be reached, or what it sent is not what the catalog pins."""


class CheckpointError(RussetError):
    """A checkpoint file is cut short, damaged, or not in the format its name promises."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint asks to run code or to read files outside its own folder."""


class UnsupportedModelError(RussetError):
    """The architecture, or an option of its configuration, is one that Russet does not implement."""


class WeightsError(RussetError):
    """A tensor is missing, has the wrong shape, or holds values that are not finite."""


class TokenizerError(RussetError):
    """The tokenizer files are missing or damaged."""


class ChatTemplateError(RussetError):
    """The chat template is missing, or refuses these messages."""


class PromptTooLongError(RussetError):
    """The prompt does not fit in the model's context."""


class EmptyPromptError(RussetError):
    """There is nothing to answer."""


class PromptEncodingError(RussetError):
    """What was piped in as a prompt is not UTF-8 text."""


class InvalidOptionError(RussetError):
    """An option has a value outside its range, or contradicts another one."""


class OutputExistsError(RussetError):
    """The destination exists already and would have been overwritten."""


class StorageError(RussetError):
    """The disk is full, or a folder cannot be written to."""


class SessionFileError(RussetError):
    """A saved conversation is damaged, or belongs to another model."""


class MissingDependencyError(RussetError):
    """A feature needs an optional package; the message names the extra to install."""


class PeerError(RussetError):
    """Another engine that was to be measured beside Russet could not load the model, or its process failed."""


class BenchmarkDataError(RussetError):
    """A file that a benchmark reads is missing or damaged: evaluation data, or a result written earlier."""


class GateError(RussetError):
    """A lossy mode scores less than the level that is recorded for it, or none is recorded."""


class InsufficientMemoryError(RussetError):
    """What was asked for would not fit in memory; the message has the estimate."""


class PredictorError(RussetError):
    """A KV predictor is damaged, or was made for other models than it is used with."""


class TrainingDataError(RussetError):
    """Text for a recipe is missing, cut short, or made of another tokenizer's tokens."""


class TrainingError(RussetError):
    """A fine-tune cannot go on: it diverged, or what it was to be resumed from is another run's."""
