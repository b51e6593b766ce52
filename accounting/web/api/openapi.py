"""The description of the API, OpenAPI 3.1: its models are the views, as the database has them.

The types and descriptions of the fields come from the columns of the views, so that they can't
differ from them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from accounting.reporting.session_queries import REPORT_COLUMNS
from accounting.reporting.view_columns import ViewColumn, view_columns
from accounting.web.api.listing import CSV_TYPE, JSON_LINES_TYPE
from accounting.web.cookies import NAME
from accounting.web.problems import JSON_TYPE

EVENT_STREAM_TYPE: Final = "text/event-stream"
Schema = dict[str, Any]

_VIEWS: Final[Mapping[str, tuple[str, str]]] = {
    "Session": ("sessions", "An allocation that coturn confirmed."),
    "UserUsage": ("user_usage_monthly", "The usage of a user in an hour, day or month."),
    "RealmUsage": ("realm_usage_monthly", "The usage of a realm in an hour, day or month."),
    "ServerUsage": ("server_usage_daily", "The usage at a server in an hour, day or month."),
    "TransportUsage": (
        "transport_usage_daily",
        "The usage over a transport in an hour, day or month.",
    ),
    "ServerRates": ("rates", "What a server does now in a realm."),
    "Period": ("periods", "A billing period."),
    "Statement": ("statements", "A line of a closed period: the usage of a user."),
    "Adjustment": ("adjustments", "A change of a closed period after the close."),
    "Limit": ("limits", "A limit of usage."),
    "LimitUsage": ("limit_usage", "How much of a limit a user, or the realm, has used now."),
    "LimitState": ("limit_states", "A threshold of a limit that was reached in a bucket."),
    "Gap": ("capture_gaps", "A span in which events may have been lost."),
    "Source": ("sources", "A source, and how far it is captured, loaded and settled."),
    "Unattributed": ("unattributed_usage", "Traffic that nobody is billed for, in an hour."),
    "FeedEvent": ("feed", "An event for billing."),
}
_TO_CUSTOMERS: Final[Mapping[str, tuple[str, ...]]] = {
    "cutoff": ("to a reader of a part: the time until which it was counted, or null",),
    "waits_for": ("to a reader of a part: without the names of sources",),
    "payload": ("to a reader of a part: without `without`",),
}
_TYPES: Final[Mapping[str, Schema]] = {
    "uuid": {"type": "string", "format": "uuid"},
    "text": {"type": "string"},
    "date": {"type": "string", "format": "date"},
    "timestamp with time zone": {"type": "string", "format": "date-time"},
    "smallint": {"type": "integer"},
    "integer": {"type": "integer"},
    "bigint": {"type": "integer"},
    "numeric": {"type": "number"},
    "integer[]": {"type": "array", "items": {"type": "integer"}},
    "boolean": {"type": "boolean"},
    "jsonb": {"type": "object"},
}
_PROBLEM: Final[Schema] = {
    "type": "object",
    "description": "Problem details, RFC 9457.",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "description": "about:blank: the title says what it is."},
        "title": {"type": "string", "description": "The kind of the problem."},
        "status": {"type": "integer", "description": "The status of the answer."},
        "detail": {"type": "string", "description": "What is wrong, and what was expected."},
    },
}
_RATE: Final[Schema] = {
    "type": "object",
    "description": "Bytes per second.",
    "required": ["received", "sent"],
    "properties": {
        "received": {"type": "number", "description": "Received from clients."},
        "sent": {"type": "number", "description": "Sent to clients."},
    },
}
_SECURITY: Final[Mapping[str, Schema]] = {
    "token": {
        "type": "http",
        "scheme": "bearer",
        "description": "A token of `turn-accounting token create`.",
    },
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": NAME,
        "description": "The cookie of a log-in; over https its name begins with `__Host-`, or with "
        "`__Secure-` below a root path.",
    },
}
_NUMBER: Final[Schema] = {"type": "integer"}
_TEXT: Final[Schema] = {"type": "string"}


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _problem(description: str) -> Schema:
    return {"description": description, "content": {JSON_TYPE: {"schema": _reference("Problem")}}}


COUNTED_UNTIL: Final[Mapping[str, Schema]] = {
    "counted_until": {
        "type": ["string", "null"],
        "format": "date-time",
        "description": "What was reported before is counted, from all sources in service; "
        "null before the first report. With jsonl and csv it is the header X-Counted-Until.",
    }
}


WITHOUT_CELLS: Final = "X-Without-Cells"
_WITHOUT_CELLS: Final = (
    "On a front with ACCOUNTING_CELLS_AWAY=leave_out: the cells that do not answer, of which the "
    "answer has nothing."
)
_HEADERS: Final[Schema] = {
    WITHOUT_CELLS: {"description": f"{_WITHOUT_CELLS} Only if there are any.", "schema": _TEXT}
}
_WITHOUT_CELLS_LIST: Final[Schema] = {
    "type": "array",
    "items": _TEXT,
    "description": f"{_WITHOUT_CELLS} Only if there are any. With jsonl and csv it is the header "
    f"{WITHOUT_CELLS}.",
}
_PROBLEMS: Final[Mapping[int | str, Schema]] = {
    400: _problem("A parameter is wrong: the detail says what was expected."),
    401: _problem("A token is needed, or the one that was sent is not valid."),
    403: _problem("The request came through a proxy that the settings do not name."),
    404: _problem("What was named does not exist, or may not be read."),
    409: _problem("Not complete yet; or the feed was restored from a backup."),
    429: _problem("Too many log-ins failed, or too many requests wait: see Retry-After."),
    503: _problem("Postgres can't be reached, or took too long; or too many clients wait."),
    "default": _problem("Any other problem."),
}


def describe(model: str, *, more: Mapping[str, Schema] | None = None) -> dict[int | str, Schema]:
    """The answers of a route with one object. ``more``: other media types."""
    content = {"application/json": {"schema": _reference(model)}, **(more or {})}
    return {200: _answer("The answer.", content), **_PROBLEMS}


def _answer(description: str, content: Mapping[str, Any]) -> Schema:
    return {"description": description, "headers": _HEADERS, "content": content}


def describe_list(
    *models: str, more: Mapping[str, Schema] | None = None
) -> dict[int | str, Schema]:
    """The answers of a list, whose items are of one of these models. ``more``: other members."""
    item = _one_of(models)
    page: Schema = {
        "type": "object",
        "required": ["items", "next", *(more or {})],
        "properties": {
            "items": {"type": "array", "items": item},
            **(more or {}),
            "without_cells": _WITHOUT_CELLS_LIST,
            "next": {
                "type": ["string", "null"],
                "description": "The cursor of the next page; null on the last one.",
            },
        },
    }
    content = {
        "application/json": {"schema": page},
        JSON_LINES_TYPE: {"schema": {**_TEXT, "description": "An item in each line."}},
        CSV_TYPE: {
            "schema": {
                **_TEXT,
                "description": "A heading, and a line for each item.",
            }
        },
    }
    return {200: _answer("The items.", content), **_PROBLEMS}


def _one_of(models: Sequence[str]) -> Schema:
    if len(models) == 1:
        return _reference(models[0])
    return {"anyOf": [_reference(model) for model in models]}


def build_openapi(app: FastAPI) -> Schema:
    """The whole document. Reads the columns of the views."""
    document: Schema = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=app.description,
        routes=app.routes,
        servers=app.servers or None,
    )
    views = view_columns(app.state.database)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for model, (view, description) in _VIEWS.items():
        schemas[model] = _model(views[view], description)
    schemas["SessionReport"] = _reports_model(views)
    schemas.update(_other_models())
    document["components"]["securitySchemes"] = _SECURITY
    document["security"] = [{name: []} for name in _SECURITY]
    if app.state.is_open:
        document["security"].append({})  # or none of them
    return document


def _model(columns: Iterable[ViewColumn], description: str) -> Schema:
    properties = {column.name: _field(column) for column in columns}
    return {
        "type": "object",
        "description": description,
        "required": list(properties),
        "properties": properties,
    }


def _field(column: ViewColumn) -> Schema:
    schema = dict(_TYPES[column.type])
    if column.may_be_null:
        schema["type"] = [schema["type"], "null"]
    description = "; ".join([column.comment, *_TO_CUSTOMERS.get(column.name, ())])
    return {**schema, "description": description}


def _reports_model(views: Mapping[str, Sequence[ViewColumn]]) -> Schema:
    """Reports of both kinds: the columns of their views; those of one of them may be null."""
    kinds = [
        {column.name: column for column in views[view]}
        for view in ("allocation_events", "traffic_reports")
    ]
    properties = {}
    for name in REPORT_COLUMNS:
        columns = [kind[name] for kind in kinds if name in kind]
        schema = _field(columns[0])
        if len(columns) == 1 and not columns[0].may_be_null:
            schema["type"] = [schema["type"], "null"]
            schema["description"] += "; null where the report has none"
        properties[name] = schema
    properties["event"] = {**_TEXT, "description": "new, refreshed, deleted, interim or total"}
    return {
        "type": "object",
        "description": "A report of coturn, as received.",
        "required": list(properties),
        "properties": properties,
    }


def _with_missing_cells(model: Schema) -> Schema:
    properties = {**model["properties"], "without_cells": _WITHOUT_CELLS_LIST}
    return {**model, "properties": properties}


def _object(description: str, **properties: Schema) -> Schema:
    return {
        "type": "object",
        "description": description,
        "required": list(properties),
        "properties": properties,
    }


def _list_of(model: Schema, description: str) -> Schema:
    return {"type": "array", "items": model, "description": description}


def _other_models() -> dict[str, Schema]:
    rate: Schema = {"anyOf": [_reference("Rate"), {"type": "null"}]}
    rates = {"short": rate, "long": rate}
    realm = {**_TEXT, "description": "TURN realm"}
    live = {**_NUMBER, "description": "Number of open sessions"}
    return {
        "Problem": _PROBLEM,
        "Rate": _RATE,
        "Realm": _object("A realm.", realm=realm, live=live),
        "Notice": _object(
            "What needs attention of a source.",
            source={**_TEXT, "description": "Name of the source"},
            is_error={"type": "boolean", "description": "Usage is lost or not captured"},
            notice={**_TEXT, "description": "What it is, in words"},
        ),
        "FeedPage": _object(
            "Events after a number, in order.",
            items=_list_of(_reference("FeedEvent"), "The events"),
            next={**_NUMBER, "description": "Ask for the events after this number next."},
            history={
                **_TYPES["uuid"],
                "description": "What identifies the events up to `next`: store it with the "
                "number, and send it as `history`.",
            },
        ),
        "Live": _with_missing_cells(_live_model(realm, live, rates)),
    }


def _live_model(realm: Schema, live: Schema, rates: Mapping[str, Schema]) -> Schema:
    numbers = {"type": "array", "items": {"type": "number"}}
    return _object(
        "What happens now. Rates are of spans that end where the sources are loaded; they are null "
        "where that was more than a minute ago.",
        now={**_TYPES["timestamp with time zone"], "description": "The database's clock"},
        loaded_until={
            "type": ["string", "null"],
            "format": "date-time",
            "description": "Up to when every source in service is loaded; null if one never was",
        },
        short_seconds={**_NUMBER, "description": "Length of the short span"},
        long_seconds={**_NUMBER, "description": "Length of the long span"},
        everything=_object("All that may be read.", live=live, **rates),
        realms=_list_of(
            _object(
                "A realm.",
                realm=realm,
                live=live,
                hours={**numbers, "description": "Bytes per second in each of the last hours"},
                **rates,
            ),
            "Realms with open sessions, or usage in the last hours",
        ),
        users=_list_of(
            _object(
                "A user.",
                realm=realm,
                user_id={**_TEXT, "description": "User to bill"},
                user_key={**_TYPES["uuid"], "description": "Opaque key of the user"},
                active={**_NUMBER, "description": "Open sessions that reported within 2 minutes"},
                **rates,
            ),
            "The users with most traffic, and those of the sessions below",
        ),
        sessions=_list_of(
            {"allOf": [_reference("Session"), _object("With its rates.", **rates)]},
            "The sessions with most traffic, the newest and the oldest",
        ),
        sources=_list_of(
            _reference("Source"), "Those in service; empty where not everything may be read"
        ),
        gaps=_list_of(_reference("Gap"), "Of the last day; empty where not everything may be read"),
    )
