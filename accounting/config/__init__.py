"""The settings: what an operator may choose, where a value may come from, and what is refused.

`settings` has their names, defaults and checks, `spelling` what their texts mean, `loading` where
they come from. Must not connect to anything, start anything or log; the one thing it reads from
disk are the files that the operator named. `cli` makes one frozen `Settings` with `load_settings()`
and passes it down; nothing else reads the environment.
"""

from accounting.config.loading import load_settings
from accounting.config.parsing import mask_url, parse_listen_address
from accounting.config.settings import SECRETS, Settings, default_data_dir, environment_variable

__all__ = [
    "SECRETS",
    "Settings",
    "default_data_dir",
    "environment_variable",
    "load_settings",
    "mask_url",
    "parse_listen_address",
]
