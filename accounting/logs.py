"""The log: structured events on standard error, as text on a terminal and as JSON elsewhere.

It never writes to standard output, which carries data. Callers log neither usernames, channels nor
payloads at info or above, and never a secret.
"""

import logging
import sys
from typing import Literal, TextIO

import structlog
from structlog.typing import Processor


def configure_logging(
    level: Literal["debug", "info", "warning", "error"] = "info",
    format_: Literal["auto", "console", "json"] = "auto",
    stream: TextIO | None = None,
) -> None:
    """Send the events of structlog and of the standard ``logging`` to ``stream``, or to stderr.

    ``auto`` is ``console`` on a terminal and one JSON object per line elsewhere. Times are UTC.
    Libraries log through ``logging``: from warning on, or everything at level debug.
    """
    out = sys.stderr if stream is None else stream
    min_level = logging.getLevelNamesMapping()[level.upper()]
    console = format_ == "console" or (format_ == "auto" and out.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderers: list[Processor]
    if console:
        # The default with Rich prints the values of variables: names, passwords, keys.
        plain = structlog.dev.plain_traceback
        renderers = [structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=plain)]
    else:
        renderers = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=repr, ensure_ascii=False),
        ]
    structlog.configure(
        processors=[*shared, *renderers],
        wrapper_class=structlog.make_filtering_bound_logger(min_level),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,  # tests reconfigure the loggers of all modules
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(min_level if min_level == logging.DEBUG else max(min_level, logging.WARNING))
