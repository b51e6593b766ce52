"""Two examples for each command, as its help shows them. A test runs every one.

They are of books with the realms ``example.org`` and ``example.net``, from the sources
``default`` and ``berlin``.
"""

from collections.abc import Mapping
from typing import Final

EXAMPLES: Final[Mapping[str, tuple[str, str]]] = {
    "": (
        "turn-accounting usage --top 10 --since 2026-11",
        "turn-accounting doctor",
    ),
    "up": (
        "turn-accounting up",
        "ACCOUNTING_REDIS_URL=redis://127.0.0.1:6379/0 turn-accounting up",
    ),
    "collect": (
        "ACCOUNTING_REDIS_URL=redis://127.0.0.1:6379/0 turn-accounting collect",
        "ACCOUNTING_SOURCE=hamburg turn-accounting collect",
    ),
    "schedule": (
        "turn-accounting schedule",
        "ACCOUNTING_LOG_FORMAT=json turn-accounting schedule",
    ),
    "serve": (
        "turn-accounting serve",
        "turn-accounting serve --listen 127.0.0.1:8401 --root-path /turn",
    ),
    "simulate": (
        "turn-accounting simulate --users 5 --sessions 20 --rate 0",
        "turn-accounting simulate --history 3months --realms 2 --users 50 --seed 7",
    ),
    "demo": (
        "turn-accounting demo --seconds 3",
        "turn-accounting demo --directory demo-books --seconds 2",
    ),
    "usage": (
        "turn-accounting usage --top 10 --since 2026-11",
        "turn-accounting usage --realm example.org --since 7d --per day --json",
    ),
    "sessions": (
        "turn-accounting sessions --live --sort -started",
        "turn-accounting sessions --user alice --since 2026-11 --csv",
    ),
    "top": (
        "turn-accounting top --by session --sort bytes",
        "turn-accounting top --once --json",
    ),
    "rates": (
        "turn-accounting rates",
        "turn-accounting rates --realm example.org --top 3 --json",
    ),
    "export usage": (
        "turn-accounting export usage --since 2026-11 --per hour --format jsonl",
        "turn-accounting export usage --realm example.org --period 2026-10-01 --output exports",
    ),
    "export sessions": (
        "turn-accounting export sessions --since 2026-10 --until 2026-11",
        "turn-accounting export sessions --realm example.org --period 2026-10-01 --output exports",
    ),
    "export statements": (
        "turn-accounting export statements --period 2026-10-01",
        "turn-accounting export statements --realm example.org --period 2026-10-01 --format jsonl",
    ),
    "export adjustments": (
        "turn-accounting export adjustments --since 2026-10 --until 2026-11",
        "turn-accounting export adjustments --realm example.org --period 2026-10-01",
    ),
    "export focus": (
        "turn-accounting export focus --realm example.org --period 2026-10-01",
        "turn-accounting export focus --period 2026-10-01 --price-per-gb 0.045 --currency EUR",
    ),
    "export reports": (
        "turn-accounting export reports --day 2026-10-31 --output archive",
        "turn-accounting export reports --day 2026-11-01 -o archive",
    ),
    "export check": (
        "turn-accounting export check exports/*.manifest.json",
        "turn-accounting export check exports/usage-*.manifest.json",
    ),
    "period list": (
        "turn-accounting period list",
        "turn-accounting period list example.org --sort -ends --csv",
    ),
    "period close": (
        "turn-accounting period close example.org 2026-11-01 --dry-run",
        "turn-accounting period close example.org 2026-11-01 --without berlin",
    ),
    "statement": (
        "turn-accounting statement example.org 2026-10-01",
        "turn-accounting statement example.org 2026-11-01 --preview --user alice",
    ),
    "adjust": (
        (
            "turn-accounting adjust example.org 2026-10-01 alice --sent-bytes -5000"
            " --reason 'a test call of ours' --author carol"
        ),
        (
            "turn-accounting adjust example.org 2026-10-01 alice --session-seconds -90"
            " --reason 'outage of 3 October' --author carol"
        ),
    ),
    "limit set": (
        (
            "turn-accounting limit set --realm example.org --every-user --bytes 100GB --per month"
            " --warn 50,80,95"
        ),
        "turn-accounting limit set --realm example.org --user alice --sessions 20 --per day",
    ),
    "limit list": (
        "turn-accounting limit list",
        "turn-accounting limit list --realm example.org --json",
    ),
    "limit status": (
        "turn-accounting limit status",
        "turn-accounting limit status --realm example.org --top 10",
    ),
    "limit remove": (
        "turn-accounting limit remove 1",
        "turn-accounting limit remove 2",
    ),
    "feed": (
        "turn-accounting feed --after 3",
        "turn-accounting feed --consumer invoicer --json",
    ),
    "webhook add": (
        (
            "turn-accounting webhook add https://billing.example.org/turn"
            " --types period.closed,adjustment.posted"
        ),
        (
            "turn-accounting webhook add https://api.getlago.com --format lago"
            " --key-file lago.key --customers customers.csv --since 2026-11"
        ),
    ),
    "webhook list": (
        "turn-accounting webhook list",
        "turn-accounting webhook list --json",
    ),
    "webhook test": (
        "turn-accounting webhook test 1",
        "ACCOUNTING_WEBHOOK_PRIVATE_ADDRESSES=true turn-accounting webhook test 1",
    ),
    "webhook deliveries": (
        "turn-accounting webhook deliveries 1 --failed",
        "turn-accounting webhook deliveries --refused --csv",
    ),
    "webhook replay": (
        "turn-accounting webhook replay 1 --since 2026-11-02",
        "turn-accounting webhook replay 2 --after 3",
    ),
    "webhook customers": (
        "turn-accounting webhook customers 2",
        "turn-accounting webhook customers 2 customers.csv",
    ),
    "webhook rotate": (
        "turn-accounting webhook rotate 1",
        "turn-accounting webhook rotate 2 --key-file lago.key",
    ),
    "webhook enable": (
        "turn-accounting webhook enable 1",
        "turn-accounting webhook enable 2",
    ),
    "webhook remove": (
        "turn-accounting webhook remove 1",
        "turn-accounting webhook remove 2",
    ),
    "gaps": (
        "turn-accounting gaps --since 7d",
        "turn-accounting gaps --source default --since 2026-11 --top 3",
    ),
    "verify": (
        "turn-accounting verify",
        "turn-accounting verify --realm example.org --period 2026-10-01",
    ),
    "reconcile": (
        "turn-accounting reconcile turn_*.log",
        "turn-accounting reconcile --json turn_2026-11-04.log",
    ),
    "trace": (
        "turn-accounting trace example.org 2026-10-01 --user alice",
        "turn-accounting trace --session 37a9-1-5",
    ),
    "rebuild": (
        "turn-accounting rebuild --reason 'a lost disk' --dry-run",
        "turn-accounting rebuild --reason 'a lost disk' --realm example.org",
    ),
    "doctor": (
        "turn-accounting doctor",
        "turn-accounting doctor --json",
    ),
    "health": (
        "turn-accounting health",
        "ACCOUNTING_SOURCE=berlin turn-accounting health",
    ),
    "realm list": (
        "turn-accounting realm list",
        "turn-accounting realm list example.org --json",
    ),
    "realm set": (
        "turn-accounting realm set example.com --time-zone Europe/Berlin --anchor-day 15",
        "turn-accounting realm set example.com --username-rule rest --separator :",
    ),
    "realm remove": (
        "turn-accounting realm remove exmaple.org",
        "turn-accounting realm remove 'my test'",
    ),
    "source list": (
        "turn-accounting source list",
        "turn-accounting source list --json",
    ),
    "source retire": (
        "turn-accounting source retire berlin",
        "turn-accounting source retire default",
    ),
    "source reopen": (
        "turn-accounting source reopen berlin",
        "turn-accounting source reopen default",
    ),
    "source rename": (
        "turn-accounting source rename berlin frankfurt",
        "turn-accounting source rename default munich",
    ),
    "config": (
        "turn-accounting config",
        "turn-accounting config --json",
    ),
    "token create": (
        "turn-accounting token create --realm example.org --label 'example.org, their page'",
        "turn-accounting token create --realm example.org --user alice --expires 30d",
    ),
    "token list": (
        "turn-accounting token list",
        "turn-accounting token list --sort -created --json",
    ),
    "token revoke": (
        "turn-accounting token revoke 1",
        "turn-accounting token revoke 2",
    ),
    "erase": (
        "turn-accounting erase example.net carol --dry-run",
        "turn-accounting erase example.net carol",
    ),
    "front init": (
        "turn-accounting front init",
        "ACCOUNTING_DATABASE_URL_FILE=front-url turn-accounting front init",
    ),
    "front join": (
        "turn-accounting front join north postgresql://front@db.north.example.org/accounting",
        "turn-accounting front join south postgresql://front@db2/accounting --password-file secret",
    ),
    "front list": (
        "turn-accounting front list",
        "turn-accounting front list --json",
    ),
    "front leave": (
        "turn-accounting front leave south",
        "turn-accounting front leave north --without-its-usage",
    ),
    "db upgrade": (
        "turn-accounting db upgrade",
        "ACCOUNTING_DATABASE_URL_FILE=database-url turn-accounting db upgrade",
    ),
    "db current": (
        "turn-accounting db current",
        "ACCOUNTING_DATABASE_URL_FILE=database-url turn-accounting db current",
    ),
    "job run": (
        "turn-accounting job run settle",
        "turn-accounting job run retain --dry-run",
    ),
}
