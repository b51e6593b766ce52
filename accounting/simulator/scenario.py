"""What to simulate. Owns the choices and their limits; knows nothing of how they are played."""

from dataclasses import dataclass

from accounting.errors import UsageError
from accounting.simulator.version import VERSIONS, Version

MAX_REALM_BYTES = 127


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A fleet of coturn servers, the lives of its allocations, and the hard cases among them.

    The same scenario gives the same commands, byte for byte. Raises :class:`UsageError` where its
    parts don't fit together. Each switch at the end is a hard case, and says what the rules make
    of it (docs/session-rules.md).
    """

    version: str = "4.6"
    """A name in :data:`VERSIONS`."""
    servers: int = 2
    relay_threads: int = 2
    """Relay threads of each server; each numbers its sessions on its own, from 1."""
    users: int = 20
    """Users over all realms; each uses one server, so that keys collide only where asked for."""
    realms: tuple[str, ...] = ("example.org", "example.net")
    """The same usernames recur in each. An empty name is the realm that has no name."""
    sessions: int = 200
    """Allocations in all, begun evenly over the first four fifths of the run."""
    concurrency: int | None = None
    """Instead of ``sessions``: so many allocations at any time, each replaced when it ends."""
    duration_seconds: float = 25.0
    """Virtual length of the run; what lives at its end closes then."""
    session_seconds: float = 8.0
    """Mean length of a session; lengths are spread from half to one and a half of it."""
    lifetime_seconds: int = 600
    packets_per_second: float = 1000.0
    """Packets relayed for each session, both directions together; 2048 make one interim."""
    packet_bytes: int = 900
    """About the largest payload of a relayed packet."""
    tcp_share: float = 0.2
    """Share of sessions whose client speaks TCP (every second one TLS)."""
    rate: float | None = None
    """None: in real time. Above 0: so many messages a second. 0: as fast as Redis takes them."""
    seed: int = 1
    server_addresses: tuple[str, ...] = ()
    """``ip:port`` of each server, as in ``local=``; from 192.0.2.0/24 when not given."""
    databases: tuple[int, ...] = ()
    """Number of each server's Redis database; the URL's when not given."""

    restart: bool = False
    """The first server is killed halfway: nothing is published, its status keys stay. It starts
    again, deletes every status key, and numbers its sessions from 1; users meet the same ids. A
    killed session is worth the interims published so far, and is a session of its own."""
    stolen: bool = False
    """Traffic that nobody authenticated, under a user's name or under the empty one, about one for
    ten sessions. Never confirmed for: unattributed."""
    wrap: bool = False
    """Every twentieth session relays more than 2^32 bytes, so that its peer total wraps. Peer side
    = sum of the interims; the wrapped total agrees with it modulo 2^32 and changes nothing."""
    lost_totals: bool = False
    """Every fifth session loses its ``deleted``, its totals, or all of them. Worth the interims,
    which are complete, and so is the total where it comes."""
    lost_interims: bool = False
    """Every tenth session loses its first traffic report, both sides. Its totals make it good:
    client side exactly; peer side too, since it stays below 2^32. Estimated (in time)."""
    same_key: bool = False
    """Every twentieth session is two: one user with one allocation id on the first two servers at
    once, told apart by ``local=`` alone. One session, disputed, worth the sum of both. Both always
    close: what a total is worth when the other one never comes could be read in two ways."""
    rest_usernames: bool = False
    """TURN REST: ``<unix time>:<user>``, four times for each user. To bill: the user."""
    rfc6062: bool = False
    """Every tenth session is a TCP allocation that reports nothing until it closes; its data
    connection leaves traffic under an id of its own, which nothing vouches for: unattributed."""
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
        require(self.sessions >= 0, f"sessions is {self.sessions}, less than 0")
        require(self.concurrency is None or self.concurrency > 0, "concurrency is not above 0")
        require(self.duration_seconds > 0, f"duration is {self.duration_seconds} s, not above 0")
        require(
            self.session_seconds > 0, f"session length is {self.session_seconds} s, not above 0"
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
        """Number of a server's database; 0 stands for the URL's when none were given."""
        return self.databases[server] if self.databases else 0
