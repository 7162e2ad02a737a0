"""Keep torch's exporters from writing to the terminal: what they say goes to our log at DEBUG."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

__all__ = ["quiet_exporters"]

log = logging.getLogger(__name__)

_TALKERS = ("torch", "onnxscript", "onnx_ir", "onnx")


@contextlib.contextmanager
def quiet_exporters() -> Iterator[None]:
    """Send warnings, log records and prints of torch's exporters to this module's DEBUG log.

    Loggers, warning filters and streams are as before on leaving.
    """
    printed = io.StringIO()
    with (
        contextlib.ExitStack() as restore,
        warnings.catch_warnings(record=True) as caught,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        warnings.simplefilter("always")
        for logger in _talking_loggers():
            restore.callback(_set_up, logger, logger.handlers, logger.propagate)
            _set_up(logger, [_Forward()], propagate=False)
        try:
            yield
        finally:
            for warning in caught:
                log.debug("%s: %s", warning.category.__name__, warning.message)
            if printed.getvalue():
                log.debug("printed by the exporter: %s", printed.getvalue())


class _Forward(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        log.debug("%s: %s", record.name, record.getMessage())


def _talking_loggers() -> list[logging.Logger]:
    """The roots of the libraries' loggers, and those below that have handlers of their own."""
    known = logging.Logger.manager.loggerDict
    below = [
        logger
        for name, logger in known.items()
        if isinstance(logger, logging.Logger)
        and name.split(".")[0] in _TALKERS
        and (logger.handlers or not logger.propagate)
    ]
    return list({*map(logging.getLogger, _TALKERS), *below})


def _set_up(logger: logging.Logger, handlers: list[logging.Handler], propagate: bool) -> None:
    logger.handlers = handlers
    logger.propagate = propagate
