"""What happens now, read once for all who ask."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID

from accounting.reporting.live import LivePart, LiveReader
from accounting.reporting.reader import DatabaseReader
from accounting.web.api.live import LiveStates, live_fields
from tests.support.api_site import Site
from tests.support.books import READER, Books
from tests.support.coturn_messages import FakeAllocation


def fill(books: Books) -> None:
    for number, (realm, user) in enumerate((("r0", "alice"), ("r0", "bob"), ("r1", "carol"))):
        allocation = FakeAllocation(books, realm=realm, user=user, allocation=number)
        allocation.new(0)
        allocation.interim(1, 1, 1_200 * (number + 1), 1, 0)
    books.advance_clock(2)
    books.run_jobs()


def test_the_state_is_that_of_top(site: Site) -> None:
    fill(site.books)
    state = site.page("live")
    assert state["everything"] == {
        "live": 3,
        "short": {"received": 720.0, "sent": 0.0},
        "long": {"received": 60.0, "sent": 0.0},
    }
    assert {realm["realm"]: realm["live"] for realm in state["realms"]} == {"r0": 2, "r1": 1}
    assert {user["user_id"]: user["long"]["received"] for user in state["users"]} == {
        "alice": 10.0,
        "bob": 20.0,
        "carol": 30.0,
    }
    assert {session["user_key"] for session in state["sessions"]} == {
        user["user_key"] for user in state["users"]
    }
    assert [source["source"] for source in state["sources"]] == ["default"]


def test_rates_of_long_ago_are_not_those_of_now(site: Site) -> None:
    fill(site.books)
    reader = DatabaseReader(site.books.url(READER))
    try:
        until = LiveReader(reader).read().loaded_until
        assert until is not None
        site.books.set_database_clock(until + timedelta(seconds=61))
        fields = live_fields(LiveReader(reader).read())
    finally:
        reader.close()
    assert fields["loaded_until"] == until
    assert fields["everything"] == {"live": 3, "short": None, "long": None}
    for kind in ("realms", "users", "sessions"):
        assert {(row["short"], row["long"]) for row in fields[kind]} == {(None, None)}


def test_a_part_has_nothing_of_others(site: Site) -> None:
    fill(site.books)
    reader = DatabaseReader(site.books.url(READER))
    try:
        live = LiveReader(reader)
        alice = next(user for user in live.read().users if user.row["user_id"] == "alice")
        key: UUID = alice.row["user_key"]
        realm = live.read(LivePart(realm="r0"))
        user = live.read(LivePart(realm="r0", user_key=key))
    finally:
        reader.close()
    assert (realm.live, realm.everything.long.received) == (2, 30)
    assert {activity.row["user_id"] for activity in realm.users} == {"alice", "bob"}
    assert {activity.row["realm"] for activity in (*realm.realms, *realm.sessions)} == {"r0"}
    assert (user.live, user.everything.long.received) == (1, 10)
    assert [activity.row["user_id"] for activity in (*user.users, *user.sessions)] == [
        "alice",
        "alice",
    ]
    assert not [*user.realms, *user.sources, *user.gaps, *realm.sources, *realm.gaps]


def test_all_who_ask_at_about_the_same_time_cost_as_one(site: Site) -> None:
    reader = DatabaseReader(site.books.url(READER))
    try:
        states = LiveStates(LiveReader(reader))
        with ThreadPoolExecutor(8) as pool:
            read = {id(state) for state in pool.map(states.state, [LivePart()] * 8)}
        assert len(read) == 1
    finally:
        reader.close()
