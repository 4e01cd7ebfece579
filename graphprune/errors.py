"""One hierarchy of errors. Every message names the node, tensor, axis and sizes it is about, and says what to do.

The command line turns each class into its exit code (the README lists them): 0 done, 1 internal error, 2 usage or
unreadable input, 3 target cannot be met, 4 verification failed, 5 too noisy to say, 6 nothing prunable,
130 interrupted.
"""

from __future__ import annotations

import signal

__all__ = [
    "GraphpruneError",
    "InputError",
    "NoiseError",
    "NotationError",
    "NothingPrunableError",
    "RuleError",
    "RunTimeoutError",
    "TargetError",
    "Terminated",
    "UnsupportedError",
    "UsageError",
    "VerificationError",
]


class GraphpruneError(Exception):
    """Base of every error that graphprune raises on purpose. The text is one plain sentence or two."""

    exit_code = 1


class UsageError(GraphpruneError):
    """What was asked makes no sense: an unknown tensor name, a target of 0, an output folder that cannot be written."""

    exit_code = 2


class InputError(GraphpruneError):
    """The model (or plan, or data) given cannot be read or run: truncated, missing external data, wrong shapes."""

    exit_code = 2


class UnsupportedError(InputError):
    """The model holds operators that the target has no counterpart of; ``refusals``: (operator, node, reason) each."""

    def __init__(self, message: str, refusals: tuple[tuple[str, str, str], ...] = ()) -> None:
        super().__init__(message)
        self.refusals = refusals


class RunTimeoutError(GraphpruneError):
    """One run of the model did not end in time. Not an ``InputError``: other input sizes are not worth a try."""

    exit_code = 2


class TargetError(GraphpruneError):
    """The target cannot be met; the message names what was reached and what limits it."""

    exit_code = 3


class VerificationError(GraphpruneError):
    """The cut network does not equal its masked original; no artefact was written."""

    exit_code = 4


class NoiseError(GraphpruneError):
    """The machine is too noisy for the measurement to say anything."""

    exit_code = 5


class NothingPrunableError(GraphpruneError):
    """No group may be cut; the message gives the most frequent reasons."""

    exit_code = 6


class NotationError(GraphpruneError):
    """A rule's line cannot be read. Quotes the line and points at the column."""


class RuleError(GraphpruneError):
    """A rule does not fit the node it was applied to (sizes, ranks, attributes)."""


class Terminated(SystemExit):
    """The process was asked to end; ``code`` is 128 and the signal's number, as a shell reports it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name
