"""The image: every stage of the Dockerfile is run, and its result as an engine would run it."""

import importlib.util
import json
import os
import re
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest

from tests.support import dockerfile
from tests.support.books import WRITER, Books
from tests.support.container import CHECKOUT_ENVIRONMENT, Container
from tests.support.deployments import DEPLOY
from tests.support.servers import ValkeyServer, free_port, wait_until

PAGE: Final = DEPLOY / "image" / "licences.md"
MAX_BYTES: Final = 130_000_000
"""Of the environment, without the base image."""


@pytest.fixture(scope="module")
def sbom() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sbom", DEPLOY / "image" / "sbom.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sbom"] = module
    spec.loader.exec_module(module)
    return module


def locked_names() -> set[str]:
    """What the image contains, by requirements.lock."""
    lock = (DEPLOY.parent / "requirements.lock").read_text()
    return {*re.findall(r"^([a-z0-9-]+)==", lock, re.MULTILINE), "turn-accounting"}


def test_the_page_of_licences_has_everything_that_is_shipped(sbom: ModuleType) -> None:
    """And no licence is unknown. To write it again: `sbom.py --table`, see docs/deployment.md."""
    packages = Path(sysconfig.get_path("purelib"))
    found = list(sbom.components(packages, locked_names()))
    assert [one.name for one in found if not one.licence] == []
    assert PAGE.read_text().split("\n\n", 1)[1] == sbom.as_table(found)
    installed = {one.name for one in found if not one.inside}
    assert locked_names() - installed <= {"async-timeout", "colorama"}  # not on this Python


def test_an_unknown_licence_stops_the_build(
    sbom: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, licence in (
        ("turn-accounting", "License-Expression: MIT"),
        ("strange", "License: X"),
    ):
        information = tmp_path / f"{name.replace('-', '_')}-1.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n{licence}\n"
        )
    monkeypatch.setattr(sys, "argv", ["sbom.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="no known licence: strange"):
        sbom.main()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> dockerfile.Stage:
    return dockerfile.build(tmp_path_factory.mktemp("image"))


@pytest.mark.long
@pytest.mark.needs_root
@pytest.mark.needs_compiler
@pytest.mark.timeout(900)
def test_every_stage_of_the_dockerfile_runs(
    image: dockerfile.Stage, open_books: Books, tmp_path: Path
) -> None:
    """Its result runs with a read-only root, as its user and as any other, until SIGTERM."""
    venv = image.upper / "venv"
    files = [path for path in venv.rglob("*") if path.is_file() and not path.is_symlink()]
    size = sum(path.stat().st_size for path in files)
    print(f"{size} bytes")  # noqa: T201  # stated in docs/deployment.md
    assert size < MAX_BYTES
    [package] = venv.glob("lib/python*/site-packages/accounting")
    assert len(list(package.parent.rglob("*.so"))) > len(
        list(Path(sysconfig.get_path("purelib")).rglob("hiredis/*.so"))
    )
    assert list(package.glob("domain/session_fold*.so")), "it is not compiled"
    assert not (venv / "bin" / "pip").exists()
    bom = json.loads((venv / "share" / "turn-accounting" / "sbom.cdx.json").read_text())
    assert (bom["bomFormat"], bom["metadata"]["component"]["name"]) == (
        "CycloneDX",
        "turn-accounting",
    )
    named = {one["name"] for one in bom["components"] if "version" in one}
    assert named <= locked_names()
    data = (image.upper / "data").stat()
    assert (data.st_uid, data.st_gid, data.st_mode & 0o777) == (10001, 0, 0o770)
    assert image.settings["USER"] == "10001:10001"
    command = json.loads(image.settings["ENTRYPOINT"]) + json.loads(image.settings["CMD"])
    sockets = open_books.server.running.socket_dir
    for directory in (image.directory, *image.directory.parents[:3], tmp_path):
        directory.chmod(directory.stat().st_mode | 0o011)
    for user, group in ((10001, 10001), (1_000_660_000, 0)):
        volume = tmp_path / str(user)
        volume.mkdir()
        os.chown(volume, data.st_uid, data.st_gid)
        volume.chmod(0o770)
        with (
            ValkeyServer() as valkey,
            Container(
                command=command,
                arguments=[],
                image={"/opt/python": Path(sys.base_prefix), "/venv": venv},
                image_environment={
                    "LD_LIBRARY_PATH": CHECKOUT_ENVIRONMENT["LD_LIBRARY_PATH"],
                    **image.environment,
                },
                environment={
                    "ACCOUNTING_DATABASE_URL": open_books.url(WRITER),
                    "ACCOUNTING_REDIS_URL": valkey.url,
                    "ACCOUNTING_SOURCE": f"of-{user}",
                    "ACCOUNTING_WEB_LISTEN": f"127.0.0.1:{free_port()}",
                },
                volumes={"/data": volume},
                files={str(sockets): sockets},
                user=user,
                group=group,
            ) as container,
        ):
            try:
                wait_until(lambda c=container: "redis-statsdb=" in c.log_text(), 60)  # type: ignore[misc]
            except AssertionError as error:
                raise AssertionError(container.log_text()) from error
            probe = container.execute(*json.loads(image.settings["HEALTHCHECK"].split(" CMD ")[1]))
            assert probe.returncode == 0, probe.stderr
            assert container.stop() == 0, container.log_text()
