"""What to simulate: the parameters of a scenario, and their limits."""

from dataclasses import dataclass

from accounting.errors import UsageError
from accounting.simulator.version import VERSIONS, Version

MAX_REALM_BYTES = 127
MAX_SESSIONS = 10_000_000
"""Also of users. As many as a large fleet has in a month; a slip of the pen has more."""
MAX_SECONDS = 366 * 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A fleet of coturn servers, its sessions, and the hard cases among them.

    The same scenario gives the same commands, byte for byte. Raises :class:`UsageError` if its
    parameters contradict each other. Each switch at the end is a hard case; its text says how the
    rules bill it (docs/session-rules.md).
    """

    version: str = "4.6"
    """A name in :data:`VERSIONS`."""
    servers: int = 2
    relay_threads: int = 2
    """Relay threads of each server; each numbers its sessions on its own, from 1."""
    users: int = 20
    """Users of all realms; each uses one server, so that only ``same_key`` makes keys collide."""
    realms: tuple[str, ...] = ("example.org", "example.net")
    """Each has the same usernames. An empty name is the realm without a name."""
    sessions: int = 200
    """The number of sessions; they start evenly over the first four fifths of the run."""
    concurrency: int | None = None
    """Instead of ``sessions``: the number of sessions at any time; each is replaced at its end."""
    duration_seconds: float = 25.0
    """Virtual length of the run; all sessions close at its end."""
    session_seconds: float = 8.0
    """Mean length of a session; lengths are uniform between half and one and a half of it."""
    lifetime_seconds: int = 600
    packets_per_second: float = 1000.0
    """Packets relayed for each session, in both directions together; 2048 cause an interim."""
    packet_bytes: int = 900
    """About the largest payload of a relayed packet."""
    tcp_share: float = 0.2
    """Share of sessions whose client uses TCP (half of them TLS)."""
    rate: float | None = None
    """None: in real time. Above 0: messages per second. 0: as fast as Redis accepts them."""
    seed: int = 1
    server_addresses: tuple[str, ...] = ()
    """``ip:port`` of each server, as in ``local=``; from 192.0.2.0/24 when not given."""
    databases: tuple[int, ...] = ()
    """Number of each server's Redis database; the URL's when not given."""

    restart: bool = False
    """The first server is killed halfway: it publishes nothing, and its status keys stay. It starts
    again, deletes every status key, and numbers its sessions from 1, so that users get the same ids
    again. A killed session is billed by its interims, apart from the next one with its id."""
    stolen: bool = False
    """Unauthenticated traffic, under a user's name or the empty one, once for ten sessions.
    Nothing confirms it: unattributed."""
    wrap: bool = False
    """Every twentieth session relays more than 2^32 bytes, so that its peer total wraps. The peer
    side is the sum of the interims, which equals the wrapped total modulo 2^32."""
    lost_totals: bool = False
    """Every fifth session loses its ``deleted``, its totals, or both. It is billed by its interims,
    which are complete; a total that is published equals them."""
    lost_interims: bool = False
    """Every tenth session loses its first interim, on both sides. Its totals replace it exactly on
    the client side; also on the peer side, which stays below 2^32. Estimated: its hour may differ.
    """
    same_key: bool = False
    """Every twentieth session is two: one user with one allocation id on the first two servers at
    the same time, which only ``local=`` distinguishes. It is one disputed session, billed by the
    sum of both. Both always close, because with only one of the totals the sum is ambiguous."""
    rest_usernames: bool = False
    """TURN REST usernames, ``<unix time>:<user>``, four for each user. The user is billed."""
    rfc6062: bool = False
    """Every tenth session is a TCP allocation that reports nothing until it closes. The traffic of
    its data connection is published under another id, which nothing confirms: unattributed."""
    hostile_usernames: bool = False
    """Usernames made of separators, patterns, control bytes and invalid UTF-8
    (docs/coturn.md#hostile-usernames)."""

    def __post_init__(self) -> None:
        def require(condition: bool, problem: str) -> None:
            if not condition:
                raise UsageError(f"can't simulate: {problem}")

        require(
            self.version in VERSIONS,
            f"version {self.version!r} is not one of {', '.join(VERSIONS)}",
        )
        require(1 <= self.servers <= 200, f"servers is {self.servers}, not 1 to 200")
        require(
            1 <= self.relay_threads <= 128, f"relay_threads is {self.relay_threads}, not 1 to 128"
        )
        require(self.users >= self.servers, f"users is {self.users}, fewer than the servers")
        require(bool(self.realms), "realms is empty; name one, or '' for the realm without a name")
        require(len(set(self.realms)) == len(self.realms), "realms names one twice")
        for realm in self.realms:
            fits = len(realm.encode()) <= MAX_REALM_BYTES and "/user/" not in realm
            require(fits, f"realm {realm!r} is longer than 127 bytes or holds '/user/'")
        fits = self.users <= MAX_SESSIONS
        require(fits, f"users is {self.users}, more than {MAX_SESSIONS}")
        fits = 0 <= self.sessions <= MAX_SESSIONS
        require(fits, f"sessions is {self.sessions}, not 0 to {MAX_SESSIONS}")
        fits = 0 < self.duration_seconds <= MAX_SECONDS
        require(fits, f"duration is {self.duration_seconds} s, not above 0 and up to {MAX_SECONDS}")
        require(
            self.session_seconds > 0, f"session length is {self.session_seconds} s, not above 0"
        )
        if self.concurrency is not None:
            require(self.concurrency > 0, "concurrency is not above 0")
            turns = self.duration_seconds / self.session_seconds + 1
            require(
                self.concurrency * turns <= MAX_SESSIONS,
                f"concurrency is {self.concurrency}, and {self.duration_seconds:g} s of sessions "
                f"of {self.session_seconds:g} s make more than {MAX_SESSIONS}",
            )
        require(self.lifetime_seconds >= 2, f"lifetime is {self.lifetime_seconds} s, less than 2")
        fits = 0 <= self.packets_per_second <= 1_000_000
        require(fits, f"packets per second is {self.packets_per_second}, not 0 to 1000000")
        require(
            1 <= self.packet_bytes <= 50_000, f"packet_bytes is {self.packet_bytes}, not 1 to 50000"
        )
        require(0 <= self.tcp_share <= 1, f"tcp_share is {self.tcp_share}, not 0 to 1")
        require(self.rate is None or self.rate >= 0, f"rate is {self.rate}, less than 0")
        for name, given in (
            ("server_addresses", self.server_addresses),
            ("databases", self.databases),
        ):
            require(
                len(given) in {0, self.servers},
                f"{name} has {len(given)} entries for {self.servers} servers",
            )
        if self.same_key:
            require(self.servers >= 2, "same_key needs two servers")
            require(
                self.release.status_addresses,
                f"same_key needs local= in the status, which {self.version} does not write",
            )
            require(self.address(0) != self.address(1), "same_key needs two different addresses")
            require(
                self.database(0) == self.database(1),
                "same_key needs the first two servers in one database: in two, the keys differ",
            )

    @property
    def release(self) -> Version:
        return VERSIONS[self.version]

    def address(self, server: int) -> str:
        """``ip:port`` of a server, as in ``local=``."""
        if self.server_addresses:
            return self.server_addresses[server]
        return f"192.0.2.{server + 1}:3478"

    def database(self, server: int) -> int:
        """The number of a server's database; 0, if none were given, means that of the URL."""
        return self.databases[server] if self.databases else 0
