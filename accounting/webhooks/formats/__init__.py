"""How events become requests for one kind of receiver, and what its answers mean.

Pure: ``customers`` has looked up before whom each event is billed to. Requests are neither signed
nor authorized: ``signing`` signs those of ``standard`` and ``cloudevents`` by their header
``webhook-id``, and all metering receivers take ``Authorization: Bearer <key>``.

- ``options``: what an operator chooses. ``envelope``: what is said of any event.
- ``standard``, ``cloudevents``: every event. ``openmeter``, ``lago``, ``stripe``: usage, by
  ``metering``.
"""

from typing import Final, assert_never
from urllib.parse import urlsplit, urlunsplit

from accounting.webhooks.formats import lago, openmeter, stripe
from accounting.webhooks.formats.cloudevents import CloudEventsFormat
from accounting.webhooks.formats.format import Format
from accounting.webhooks.formats.metering import EventCustomers
from accounting.webhooks.formats.options import FormatName, FormatOptions
from accounting.webhooks.formats.standard import StandardFormat

_PATHS: Final = {
    FormatName.OPENMETER: openmeter.PATH,
    FormatName.LAGO: lago.PATH,
    FormatName.STRIPE: stripe.PATH,
}
_REPEAT_SECONDS: Final = {
    FormatName.OPENMETER: openmeter.REPEAT_SECONDS,
    FormatName.STRIPE: stripe.REPEAT_SECONDS,
}


def repeat_seconds(name: FormatName) -> float | None:
    """How long a receiver recognizes a repeated event; None as for Format.repeat_seconds."""
    return _REPEAT_SECONDS.get(name)


def make_format(
    name: FormatName,
    *,
    url: str,
    options: FormatOptions,
    batch_size: int,
    source: str,
    customers: EventCustomers,
) -> Format:
    """The format of an endpoint, for a batch of events.

    ``source``: the URI of the installation. ``customers``: of the events that count, by event_id;
    only metering formats need them.
    """
    match name:
        case FormatName.STANDARD:
            return StandardFormat(url=url, batch_size=batch_size)
        case FormatName.CLOUDEVENTS:
            return CloudEventsFormat(
                url=url, source=source, mode=options.mode, batch_size=batch_size
            )
        case FormatName.OPENMETER:
            return openmeter.OpenMeterFormat(
                url=url,
                source=source,
                options=options,
                customers=customers,
                batch_size=batch_size,
            )
        case FormatName.LAGO:
            return lago.LagoFormat(
                url=url, options=options, customers=customers, batch_size=batch_size
            )
        case FormatName.STRIPE:
            return stripe.StripeFormat(url=url, options=options, customers=customers)
        case _:
            assert_never(name)


def endpoint_url(name: FormatName, url: str) -> str:
    """The URL to send to: that of a metering receiver may be its server's, without a path."""
    parts = urlsplit(url)
    if parts.path in ("", "/") and name in _PATHS:
        return urlunsplit(parts._replace(path=_PATHS[name]))
    return url
