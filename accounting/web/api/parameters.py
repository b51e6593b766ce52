"""Filters that several routes have: the command line's words."""

from typing import Annotated
from uuid import UUID

from fastapi import Query

Realm = Annotated[
    str | None,
    Query(description="Only this realm, as the views spell it; empty: the realm without a name."),
]
User = Annotated[str | None, Query(description="Only this user_id.")]
SessionUser = Annotated[str | None, Query(description="Only this user_id or username.")]
UserKey = Annotated[UUID | None, Query(description="Only the user with this key.")]
Source = Annotated[str | None, Query(description="Only this source.")]
Since = Annotated[
    str | None,
    Query(
        description="From then on: today, yesterday, 7d, 24h, 2026-11, 2026-11-22, "
        "2026-11-22T15:00."
    ),
]
Until = Annotated[str | None, Query(description="Before then; as since.")]
Period = Annotated[str | None, Query(description="Only this period: its first day, YYYY-MM-DD.")]
