"""Says what is stored of clients' addresses: by the setting, and by realms that store less."""

from collections.abc import Mapping
from typing import Final

from accounting.db.engine import Engine, lost_connections
from accounting.domain.client_addresses import ClientAddresses, stricter
from accounting.identities import realm_queries
from accounting.ops.doctor.findings import Finding, listed_names, ok

COMPONENT: Final = "addresses"
_STORED: Final[Mapping[ClientAddresses, str]] = {
    ClientAddresses.KEEP: "address and port",
    ClientAddresses.NETWORK: "the network",
    ClientAddresses.DROP: "nothing",
}


def check_client_addresses(engine: Engine, setting: ClientAddresses) -> Finding:
    """What holds now. Raises ConnectionLost, NotAllowed."""
    with lost_connections(), engine.connect() as connection:
        names = realm_queries.names_by_id(connection)
        rules = realm_queries.all_rules(connection)
    holds: dict[ClientAddresses, list[str]] = {}
    for realm_id, of_realm in rules.items():
        choice = stricter(setting, of_realm.client_addresses)
        if choice is not setting:
            holds.setdefault(choice, []).append(names[realm_id])
    less = "".join(
        f"; of {listed_names(holds[choice])} {_STORED[choice]}"
        for choice in ClientAddresses
        if choice in holds
    )
    observed = f"of each client {_STORED[setting]} (ACCOUNTING_CLIENT_ADDRESSES={setting}){less}"
    return ok(COMPONENT, "stored", observed)
