"""The JSON API under ``/api/v1``: one module per noun.

listing     lists: pages by cursor, JSON Lines and CSV
cursor      where a list goes on
parameters  filters that several routes have
openapi     the description of all routes, from the columns of the views
feed_watch  wakes those who wait for events
"""

import json
from typing import Final

from fastapi import Depends, FastAPI
from starlette.requests import Request
from starlette.responses import Response

from accounting.web.api import feed, limits, live, periods, realms, sessions, sources, usage
from accounting.web.api.openapi import build_openapi
from accounting.web.query_check import check_query
from accounting.web.render import json_response

OPENAPI_PATH: Final = "/api/openapi.json"


def add_routes(app: FastAPI, prefix: str) -> None:
    """Add all routes under the prefix, and their description."""
    for module in (realms, usage, sessions, periods, limits, sources, live, feed):
        app.include_router(module.router, prefix=prefix, dependencies=[Depends(check_query)])
    app.add_api_route(OPENAPI_PATH, _openapi, include_in_schema=False)


def _openapi(request: Request) -> Response:
    """The description, made when it is first asked for."""
    app: FastAPI = request.app
    if app.openapi_schema is None:
        app.openapi_schema = build_openapi(app)
    return json_response(json.dumps(app.openapi_schema))
