"""The log: structured events on standard error, for people on a terminal, for programs elsewhere.

Owns the form of the log. Must never write to standard output, which belongs to data. What may be
logged is the caller's duty: no usernames, channels or payloads at info or above, no secret ever.
"""

import logging
import sys
from typing import Literal, TextIO

import structlog
from structlog.typing import Processor


def configure_logging(
    level: Literal["debug", "info", "warning", "error"] = "info",
    form: Literal["auto", "console", "json"] = "auto",
    stream: TextIO | None = None,
) -> None:
    """Send the events of structlog and of the standard `logging` to `stream` (standard error).

    `auto` is console on a terminal and one JSON object a line elsewhere. Times are UTC. Libraries
    that use the standard `logging` are heard from warning on, or from debug when that is the level.
    """
    out = sys.stderr if stream is None else stream
    least = logging.getLevelNamesMapping()[level.upper()]
    console = form == "console" or (form == "auto" and out.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    rendering: list[Processor]
    if console:
        # Where Rich is installed the default shows the values of variables: names, passwords, keys.
        plain = structlog.dev.plain_traceback
        rendering = [structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=plain)]
    else:
        rendering = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=repr, ensure_ascii=False),
        ]
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,  # a test that reconfigures reaches every module's logger
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(least if least == logging.DEBUG else max(least, logging.WARNING))
