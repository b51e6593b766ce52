"""The JSON API under ``/api/v1``: one module per noun."""

from fastapi import FastAPI

from accounting.web.api import periods


def add_routes(app: FastAPI, prefix: str) -> None:
    """Add all routes under the prefix."""
    for module in (periods,):
        app.include_router(module.router, prefix=prefix)
