"""What every route asks of the query of a request, before it looks at its parameters."""

from urllib.parse import unquote_to_bytes

from fastapi import Request, params
from fastapi.dependencies.utils import get_flat_params

from accounting.errors import UsageError


async def check_query(request: Request) -> None:
    """Raise UsageError for a query that is not UTF-8, or has a parameter that the route hasn't.

    A misspelled filter would select everything.
    """
    raw = request.scope["query_string"]
    try:
        text = unquote_to_bytes(raw.replace(b"+", b" ")).decode()
    except UnicodeDecodeError:
        raise UsageError(
            r"the query is not UTF-8: other bytes of a name are spelled \xNN, as the views do"
        ) from None
    if "\0" in text:
        raise UsageError(r"the query has a NUL: it is spelled \x00 in a name, as the views do")
    known = {
        parameter.alias
        for parameter in get_flat_params(request.scope["route"].dependant)
        if isinstance(parameter.field_info, params.Query)
    }
    names = [name for name, _ in request.query_params.multi_items()]
    for name in names:
        if name not in known:
            expected = ", ".join(sorted(known)) or "none"
            raise UsageError(f"{name!r} is not a parameter here: expected {expected}")
        if names.count(name) > 1:
            raise UsageError(f"{name}: given more than once")
