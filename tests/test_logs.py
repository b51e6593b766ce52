"""The log goes to one stream, as JSON lines for programs or as text for people."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Literal

import pytest
import structlog

from accounting.logs import configure_logging


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_events_are_json_lines_off_a_terminal() -> None:
    out = io.StringIO()
    configure_logging("info", "auto", out)
    structlog.get_logger().info("subscribed", source="default", raw=b"\xff")
    logging.getLogger("alembic").warning("late by %d s", 3)
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    assert first.pop("timestamp").endswith("Z")
    assert first == {
        "event": "subscribed",
        "level": "info",
        "source": "default",
        "raw": "b'\\xff'",
    }
    assert (second["event"], second["level"], second["logger"]) == (
        "late by 3 s",
        "warning",
        "alembic",
    )


def test_events_below_the_level_are_dropped() -> None:
    out = io.StringIO()
    configure_logging("warning", "json", out)
    structlog.get_logger().info("below the level")
    logging.getLogger("redis").info("below the level too")
    assert out.getvalue() == ""


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_traceback_has_no_values_of_variables(form: Literal["json", "console"]) -> None:
    out = io.StringIO()
    configure_logging("info", form, out)
    secret = "hunter" + str(2)
    try:
        int(secret and "broken")
    except ValueError as error:
        structlog.get_logger().error("job failed", exc_info=error)
        logging.getLogger("library").error("failed", exc_info=error)
    assert out.getvalue().count("ValueError: invalid literal") == 2
    assert secret not in out.getvalue()


def test_an_error_is_logged_with_its_traceback() -> None:
    out = io.StringIO()
    configure_logging("info", "json", out)
    try:
        int("broken")
    except ValueError:
        structlog.get_logger().exception("job failed", job="settle")
    logged = json.loads(out.getvalue())
    assert logged["event"] == "job failed"
    assert "ValueError: invalid literal" in logged["exception"]


def test_the_console_form_is_text() -> None:
    out = io.StringIO()
    configure_logging("info", "console", out)
    structlog.get_logger().info("subscribed", source="default")
    assert "subscribed" in out.getvalue()
    assert "source=default" in out.getvalue()
