"""The HTML pages, one module each. They show what the API has, and link to it as JSON and CSV."""

from fastapi import Depends, FastAPI

from accounting.web.pages import (
    gaps,
    limits,
    log_in,
    overview,
    periods,
    realm,
    realms,
    session,
    sessions,
    statement,
    unattributed,
    user,
)
from accounting.web.query_check import check_query


def add_routes(app: FastAPI) -> None:
    """Add all pages."""
    for module in (
        log_in,
        overview,
        realms,
        realm,
        unattributed,
        user,
        sessions,
        session,
        periods,
        statement,
        limits,
        gaps,
    ):
        app.include_router(
            module.router, include_in_schema=False, dependencies=[Depends(check_query)]
        )
