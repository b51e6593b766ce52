"""The server in the address that coturn reports: usage is summed by it.

The function ``accounting.server_host`` of the database has the same rule.
"""


def server_host(server_address: str | None) -> str:
    """An address without its port, and an IPv6 one without brackets; empty if it is unknown.

    coturn listens on several ports, and reports ``192.0.2.1:3478`` or ``[2001:db8::1]:3478``.
    """
    address = server_address or ""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    host, _, rest = address.partition(":")
    return address if ":" in rest else host
