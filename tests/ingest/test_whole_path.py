"""The whole pipeline on small inputs: from messages in a spool to usage by month."""

from tests.support.books import Books, channel, status_payload, traffic_payload


def receive_call(
    books: Books, at: float = 0.0, *, user: str = "alice", allocation: int = 1
) -> None:
    """An allocation of 30 seconds, from its start to its end, in coturn's order."""

    def receive(seconds: float, suffix: str, payload: bytes) -> None:
        books.receive(at + seconds, channel(suffix, user=user, allocation=allocation), payload)

    receive(0, "status", status_payload("new"))
    receive(10, "traffic", traffic_payload(2000, 200_000, 48, 4_800))
    receive(10, "traffic/peer", traffic_payload(40, 4_000, 2008, 201_000))
    receive(29, "status", status_payload("refreshed", 0))
    receive(30, "traffic", traffic_payload(10, 1_000, 2, 200))
    receive(30, "traffic/peer", traffic_payload(1, 100, 9, 900))
    receive(30, "status", status_payload("deleted"))
    receive(30, "total_traffic", traffic_payload(2010, 201_000, 50, 5_000))
    receive(30, "total_traffic/peer", traffic_payload(41, 4_100, 2017, 201_900))


def test_a_call_is_one_session_and_its_usage(books: Books) -> None:
    receive_call(books)
    books.advance_clock(31)
    books.run_jobs()
    (session,) = books.rows("sessions")
    assert session["end_cause"] == "deleted"
    assert (session["ended_at"] - session["started_at"]).total_seconds() == 30
    assert session["total_reported"]
    assert not session["estimated"]
    assert not session["disputed"]
    assert (session["received_bytes"], session["peer_sent_bytes"]) == (201_000, 201_900)
    (month,) = books.rows("user_usage_monthly")
    assert (month["user_id"], month["sessions_started"], month["sessions_ended"]) == ("alice", 1, 1)
    assert month["session_seconds"] == 30
    (realm,) = books.rows("realm_usage_hourly")
    assert realm["peak_sessions"] == 1
    books.assert_conserved()


def test_every_job_run_twice_equals_once(books: Books) -> None:
    receive_call(books)
    receive_call(books, 5, user="bob", allocation=2)
    books.advance_clock(40)
    books.run_jobs()
    before = [books.rows(view) for view in ("sessions", "user_usage_hourly", "realm_usage_monthly")]
    books.run_jobs()
    assert [
        books.rows(view) for view in ("sessions", "user_usage_hourly", "realm_usage_monthly")
    ] == before
