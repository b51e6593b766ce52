"""The settings of the service.

In: arguments, environment, secret files and a TOML file. Out: one frozen `Settings`, which `cli`
loads and passes down. Invariant: nothing else reads the environment, and every value was checked.

- ``settings``: names, defaults and checks; ``parsing``: sizes, addresses and URLs.
- ``loading``: reads the values, in order of precedence.
"""

from accounting.config.loading import load_settings, reload_secret
from accounting.config.parsing import (
    UNIX_PREFIX,
    check_source_name,
    is_loopback,
    mask_url,
    parse_listen_address,
)
from accounting.config.settings import SECRETS, Settings, default_data_dir, environment_variable

__all__ = [
    "SECRETS",
    "UNIX_PREFIX",
    "Settings",
    "check_source_name",
    "default_data_dir",
    "environment_variable",
    "is_loopback",
    "load_settings",
    "mask_url",
    "parse_listen_address",
    "reload_secret",
]
