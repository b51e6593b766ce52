"""Signs requests as Standard Webhooks says (https://www.standardwebhooks.com).

A secret is ``whsec_`` and 32 random bytes in base64. While a secret is being changed, requests have
a signature of the new one and of the one before.
"""

import base64
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from accounting.errors import ConfigurationError
from accounting.installation import missing_extra

SECRET_PREFIX: Final = "whsec_"  # noqa: S105  # what a secret begins with
SECRET_BYTES: Final = 32
MESSAGE_ID: Final = "webhook-id"


def new_secret() -> str:
    """A secret that nobody has."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def signed_headers(
    secrets: Sequence[str], message_id: str, now: datetime, body: bytes
) -> Mapping[str, str]:
    """The headers that sign a body: ``webhook-id``, ``webhook-timestamp``, ``webhook-signature``.

    ``secrets``: those that are valid, the newest first. ``message_id``: the same at each attempt.
    """
    from standardwebhooks import Webhook  # noqa: PLC0415  # of the extra `webhooks`

    moment = now.astimezone(UTC)  # the library reads the time as if it were UTC
    text = body.decode()
    signatures = (Webhook(secret).sign(message_id, moment, text) for secret in secrets)
    return {
        MESSAGE_ID: message_id,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


def require_libraries() -> None:
    """Raise ConfigurationError where the extra ``webhooks`` is not installed."""
    try:
        import certifi  # noqa: F401, PLC0415
        import httpcore  # noqa: F401, PLC0415
        import standardwebhooks  # noqa: F401, PLC0415
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            missing_extra("webhooks need", str(error.name), "webhooks")
        ) from None
