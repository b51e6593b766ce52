"""The user to bill (docs/session-rules.md#user-id); a test for each sentence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounting.domain.identity import UsernameRule, billed_user, pseudonym

AUTO, REST, PLAIN = UsernameRule.AUTO, UsernameRule.REST, UsernameRule.PLAIN


@pytest.mark.parametrize("rule", [AUTO, REST])
@pytest.mark.parametrize(
    ("username", "user"),
    [
        (b"1999999999:alice", b"alice"),
        (b"alice:1999999999", b"alice"),
        (b"1999999999:", b""),
        (b":1999999999", b""),
        (b"1:\xff\xfe", b"\xff\xfe"),
    ],
)
def test_when_exactly_one_side_is_all_digits_the_user_is_the_other(
    username: bytes, user: bytes, rule: UsernameRule
) -> None:
    assert billed_user(username, rule, b":") == user


@pytest.mark.parametrize(
    ("username", "user"),
    [
        (b"1999999999:alice:7", b"alice:7"),
        (b"1999999999:7:alice", b"7:alice"),
        (b"1999999999::alice", b":alice"),
        (b"alice:7:1999999999", b"alice:7:1999999999"),  # "7:1999999999" is not all digits
    ],
)
def test_only_the_first_separator_counts(username: bytes, user: bytes) -> None:
    assert billed_user(username, AUTO, b":") == user


@pytest.mark.parametrize("rule", [AUTO, REST])
@pytest.mark.parametrize(
    "username",
    [b"", b"alice", b":", b"alice:bob", b"12:34", b"12a:bob", b"-1:bob", b"1 :bob", b"alice@1"],
)
def test_otherwise_the_user_is_the_whole_username(username: bytes, rule: UsernameRule) -> None:
    assert billed_user(username, rule, b":") == username


def test_a_username_that_is_all_digits_has_no_user_only_in_a_realm_declared_rest() -> None:
    assert billed_user(b"1999999999", REST, b":") == b""
    assert billed_user(b"1999999999", AUTO, b":") == b"1999999999"
    assert billed_user(b"1999999999", PLAIN, b":") == b"1999999999"


def test_only_ascii_digits_are_digits() -> None:
    for digits in ("١٢٣", "²", "१"):
        username = digits.encode() + b":alice"
        assert billed_user(username, AUTO, b":") == username
        assert billed_user(digits.encode(), REST, b":") == digits.encode()


@given(st.binary(max_size=30))
def test_in_a_plain_realm_the_user_is_always_the_whole_username(username: bytes) -> None:
    assert billed_user(username, PLAIN, b":") == username


@pytest.mark.parametrize("separator", [b"|", b"::", "·".encode()])
def test_a_realm_has_its_own_separator(separator: bytes) -> None:
    assert billed_user(b"1999999999" + separator + b"alice", AUTO, separator) == b"alice"
    assert billed_user(b"1999999999:alice", AUTO, separator) == b"1999999999:alice"


@given(st.binary(max_size=30), st.integers(0, 10**12))
def test_a_rest_username_names_its_user_whatever_the_time(user: bytes, time: int) -> None:
    if user.isdigit():
        return
    assert billed_user(b"%d:%b" % (time, user), AUTO, b":") == user
    if b":" not in user:
        assert billed_user(b"%b:%d" % (user, time), AUTO, b":") == user


@given(st.binary(max_size=12), st.binary(max_size=12), st.binary(max_size=12), st.data())
def test_keys_differ_where_realm_or_name_differ(
    realm: bytes, name: bytes, other: bytes, data: st.DataObject
) -> None:
    """Also if realm and name, concatenated, are the same bytes."""
    key = bytes(32)
    together = realm + name
    at = data.draw(st.integers(0, len(together)))
    moved = together[:at], together[at:]
    assert (pseudonym(key, realm, name) == pseudonym(key, *moved)) == (moved == (realm, name))
    assert (pseudonym(key, realm, name) == pseudonym(key, realm, other)) == (name == other)


def test_keys_differ_between_installations() -> None:
    keys = {pseudonym(bytes([number]) * 32, b"example.org", b"alice") for number in range(3)}
    assert len(keys) == 3
    assert {len(key) for key in keys} == {16}
