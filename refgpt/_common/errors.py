"""The errors that input can cause. Each says what is wrong, where, what was given and expected, and how to fix it."""

from __future__ import annotations

from traceback import walk_tb

from refgpt._common.wording import told


class RefgptError(ValueError):
    """Base of every error that a file, an argument or a prompt can cause: each is also a ``ValueError``.

    The error for a missing file is also a ``FileNotFoundError`` (see ``missing``).

    The message is one line that any terminal can show: long values are shortened, control characters escaped. The
    attributes keep the original values.

    Parameters
    ----------
    what : str
        The fault in one sentence, without a full stop.
    where : object, optional
        The file, tensor or argument at fault.
    got, wanted : object, optional
        The offending value and what would have been accepted.
    fix : str, optional
        What the reader can do next.
    """

    def __init__(
        self, what: str, *, where: object = None, got: object = None, wanted: object = None, fix: str = ""
    ) -> None:
        self.what, self.where, self.got, self.wanted, self.fix = what, where, got, wanted, fix
        parts = [told(what) if where is None else f"{told(where)}: {told(what)}"]
        if got is not None:
            parts.append(f"got {told(got)}")
        if wanted is not None:
            parts.append(f"wanted {told(wanted)}")
        if fix:
            parts.append(told(fix))
        super().__init__("; ".join(parts))

    def within(self, place: object) -> RefgptError:
        """The same error with ``place`` put before its own ``where``."""
        where = place if self.where is None else f"{told(place)}, {told(self.where)}"
        return type(self)(self.what, where=where, got=self.got, wanted=self.wanted, fix=self.fix)

    def __reduce__(self) -> tuple:
        return _rebuild, (type(self), self.what, self.where, self.got, self.wanted, self.fix)


def _rebuild(cls: type[RefgptError], what: str, where: object, got: object, wanted: object, fix: str) -> RefgptError:
    return cls(what, where=where, got=got, wanted=wanted, fix=fix)


class ConfigError(RefgptError):
    """A model's configuration is inconsistent or not supported."""


class CheckpointError(RefgptError):
    """A file of weights is missing, damaged, has the wrong shapes, or contains more than tensors."""


class TokenizerError(RefgptError):
    """A tokenizer's files are missing or damaged, or an id does not exist."""


class GenerationError(RefgptError):
    """A prompt or a sampling parameter cannot be used."""


class DataError(RefgptError):
    """A table of texts or labels is missing, damaged or incomplete."""


class KernelError(RefgptError):
    """A kernel was called with unusable arrays, or the forced instruction set cannot run on this machine."""


class ServerError(RefgptError):
    """A server cannot be set up as asked, or what it needs is not installed."""


class MissingConfig(ConfigError, FileNotFoundError):
    """A model's configuration file does not exist."""


class MissingCheckpoint(CheckpointError, FileNotFoundError):
    """A file of weights does not exist."""


class MissingPrompt(GenerationError, FileNotFoundError):
    """A prompt's file does not exist."""


class MissingTokenizer(TokenizerError, FileNotFoundError):
    """A tokenizer's file does not exist."""


class MissingData(DataError, FileNotFoundError):
    """A table's file does not exist."""


def missing(error: type[RefgptError]) -> type[RefgptError]:
    """The variant of an error class for a missing file. It is also a ``FileNotFoundError``, without errno."""
    kinds = (MissingConfig, MissingCheckpoint, MissingPrompt, MissingTokenizer, MissingData)
    return next((kind for kind in kinds if kind.__bases__[0] is error), error)


def is_foreign(fault: BaseException, *libraries: str) -> bool:
    """Whether an exception comes from outside this package and the libraries: from a signal handler or a callback.

    An exception that a caller's code raises while a library works says nothing about the file.

    Parameters
    ----------
    libraries : str
        Names of top-level modules.
    """
    frames = [frame for frame, _ in walk_tb(fault.__traceback__)]
    modules = {str(frame.f_globals.get("__name__")).partition(".")[0] for frame in frames}
    return not modules <= {"refgpt", "contextlib", *libraries}
