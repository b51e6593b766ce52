"""The logs of embedded servers stay bounded while the servers run."""

from pathlib import Path

from accounting.embedded.child import limit_log, open_log


def test_a_long_log_is_moved_aside_and_written_on(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    with open_log(path) as output:
        for turn in range(10):
            output.write(b"%d" % turn * 1000)
            limit_log(path, 1500)
            assert path.stat().st_size <= 1500
        output.write(b"end")
    assert path.read_bytes() == b"end"
    assert path.with_name("server.log.1").read_bytes() == b"8" * 1000 + b"9" * 1000


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """The server's user could put one there, and this process may be root."""
    target, path = tmp_path / "target", tmp_path / "server.log"
    target.write_bytes(b"x" * 2000)
    path.symlink_to(target)
    limit_log(path, 1500)
    assert target.stat().st_size == 2000
    path.unlink()
    path.write_bytes(b"y" * 2000)
    path.with_name("server.log.1").symlink_to(target)
    limit_log(path, 1500)
    assert target.read_bytes() == b"x" * 2000
    assert path.stat().st_size == 0
