"""Stores to export to, on this machine: S3, Google Cloud Storage, Azure Blob Storage and SFTP."""

import getpass
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

from accounting.export.object_store import ObjectStore
from accounting.export.place import Place
from accounting.export.place_address import open_place
from tests.support.servers import ADDRESS, Server, free_port
from tests.support.system_postgres import program_path

BUCKET: Final = "exports"
_AZURITE_KEY: Final = (  # the one that Azurite has built in
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)


class StoreServer(Server):
    """A store. ``variables``: what its library reads from the environment."""

    scheme: str
    variables: dict[str, str]

    def __init__(self) -> None:
        super().__init__()
        self.port = free_port()
        self._place: Place | None = None

    def is_ready(self) -> bool:
        try:
            socket.create_connection((ADDRESS, self.port)).close()
        except OSError:
            return False
        return True

    @property
    def url(self) -> str:
        return f"{self.scheme}://{BUCKET}"

    def place(self, directory: str = "") -> Place:
        """A place that connects by the variables of now."""
        return open_place(f"{self.url}/{directory}" if directory else self.url)

    @property
    def root(self) -> Place:
        """The place that connected first: to the server itself."""
        if self._place is None:
            self._place = self.place()
        return self._place

    def start(self) -> None:
        super().start()
        self.make_bucket()

    def make_bucket(self) -> None:
        """Make the bucket."""

    def names(self) -> list[str]:
        """The names of all files that are there."""
        assert isinstance(self.root, ObjectStore)
        found: list[str] = self.root._filesystem().find(BUCKET)
        return sorted(name.removeprefix(f"{BUCKET}/") for name in found)

    def read(self, name: str) -> bytes:
        return b"".join(self.root.chunks(name))

    def write(self, name: str, content: bytes) -> None:
        with self.root.draft(name) as draft:
            draft.write(content)
            draft.finish()
            draft.publish()


class S3Server(StoreServer):
    """moto's server."""

    scheme = "s3"

    def __init__(self) -> None:
        super().__init__()
        self.variables = {
            "AWS_ENDPOINT_URL": f"http://{ADDRESS}:{self.port}",
            "AWS_ACCESS_KEY_ID": "exporter",
            "AWS_SECRET_ACCESS_KEY": "exporter's secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
        }

    def command(self) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", ADDRESS, "-p", str(self.port)]

    def make_bucket(self) -> None:
        request(self.port, "PUT", f"/{BUCKET}")


_EMULATOR: Final = """
from http import HTTPStatus
from gcp_storage_emulator import server
from gcp_storage_emulator.__main__ import main

def cancel_upload(request, response, storage):
    response.status = HTTPStatus.NO_CONTENT

for _, methods in server.HANDLERS:
    if "PUT" in methods and "POST" in methods:
        methods["DELETE"] = cancel_upload
main()
"""


class GoogleServer(StoreServer):
    """gcp-storage-emulator, which does not know of itself that an upload can be cancelled."""

    scheme = "gs"

    def __init__(self) -> None:
        super().__init__()
        self.variables = {
            "STORAGE_EMULATOR_HOST": f"http://{ADDRESS}:{self.port}",
            "NO_GCE_CHECK": "true",  # no search for a server that has the machine's credentials
        }

    def command(self) -> list[str]:
        options = ["--host", ADDRESS, "--port", str(self.port), "--in-memory"]
        return [
            sys.executable, "-c", _EMULATOR, "start", *options, "--default-bucket", BUCKET,
        ]  # fmt: skip


class AzureServer(StoreServer):
    """Azurite."""

    scheme = "az"

    def __init__(self) -> None:
        super().__init__()
        endpoint = f"http://{ADDRESS}:{self.port}/devstoreaccount1"
        self.variables = {
            "AZURE_STORAGE_CONNECTION_STRING": (
                "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;"
                f"AccountKey={_AZURITE_KEY};BlobEndpoint={endpoint};"
            )
        }

    def command(self) -> list[str]:
        return [
            program_path("azurite-blob"), "--blobHost", ADDRESS, "--blobPort", str(self.port),
            "--inMemoryPersistence", "--silent", "--disableTelemetry", "--skipApiVersionCheck",
        ]  # fmt: skip

    def make_bucket(self) -> None:
        from azure.storage.blob import ContainerClient  # noqa: PLC0415  # an extra of few tests

        with ContainerClient.from_connection_string(
            self.variables["AZURE_STORAGE_CONNECTION_STRING"], BUCKET
        ) as container:
            container.create_container()


class SftpServer(StoreServer):
    """OpenSSH's sshd, with a home directory whose ``.ssh`` names it ``books``."""

    scheme = "sftp"

    def __init__(self) -> None:
        super().__init__()
        self.home = self.directory / "home"
        self.files = self.directory / "files"
        (self.home / ".ssh").mkdir(parents=True)
        self.files.mkdir()
        self.variables = {"HOME": str(self.home)}
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        for key in (self.directory / "host_key", self.home / ".ssh" / "id_ed25519"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True
            )
        (self.home / ".ssh" / "config").write_text(
            f"Host books\n  HostName {ADDRESS}\n  Port {self.port}\n  User {getpass.getuser()}\n"
        )
        host_key = (self.directory / "host_key.pub").read_text()
        (self.home / ".ssh" / "known_hosts").write_text(f"[{ADDRESS}]:{self.port} {host_key}")

    def command(self) -> list[str]:
        options = {
            "ListenAddress": ADDRESS,
            "Port": str(self.port),
            "HostKey": str(self.directory / "host_key"),
            "AuthorizedKeysFile": str(self.home / ".ssh" / "id_ed25519.pub"),
            "PermitRootLogin": "prohibit-password",
            "StrictModes": "no",
            "UsePAM": "no",
            "PidFile": "none",
            "Subsystem": "sftp internal-sftp",
        }
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return [program_path("sshd"), "-D", "-e", "-f", "/dev/null", *words]

    @property
    def url(self) -> str:
        return f"sftp://books{self.files}"

    def names(self) -> list[str]:
        paths = (path for path in self.files.rglob("*") if path.is_file())
        return sorted(str(path.relative_to(self.files)) for path in paths)

    def read(self, name: str) -> bytes:
        return (self.files / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        (self.files / name).write_bytes(content)


def request(port: int, method: str, path: str) -> None:
    """An HTTP request that must succeed."""
    connection = HTTPConnection(ADDRESS, port, timeout=20)
    connection.request(method, path)
    assert connection.getresponse().status < 300
    connection.close()


class HttpProxy:
    """Passes requests to an HTTP server, unless ``fault`` says otherwise of a request.

    ``fault`` gets the number, the method and the path of a request, and returns None to pass it,
    a status to answer, or "cut" to close the connection. It may also kill a process.
    """

    def __init__(self, server: S3Server) -> None:
        self.fault: Callable[[int, str, str], int | str | None] = lambda *_: None
        self.count = 0
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                self.raw_requestline = self.rfile.readline()
                if self.raw_requestline and self.parse_request():
                    proxy.answer(self, server.port)
                else:
                    self.close_connection = True

            def log_message(self, *_: Any) -> None:
                """Write nothing to standard error."""

        self._server = ThreadingHTTPServer((ADDRESS, 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.variables = server.variables | {
            "AWS_ENDPOINT_URL": f"http://{ADDRESS}:{self._server.server_port}"
        }

    def answer(self, handler: BaseHTTPRequestHandler, port: int) -> None:
        length = int(handler.headers.get("Content-Length", 0))
        self.count += 1
        fault = self.fault(self.count, handler.command, urlsplit(handler.path).path)
        # The half of a body that was on its way when the connection broke.
        body = handler.rfile.read(length if fault != "cut" else length // 2)
        if fault == "cut":
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        if isinstance(fault, int):
            status, headers, content = fault, [("Content-Type", "text/plain")], b"out of order"
        else:
            connection = HTTPConnection(ADDRESS, port, timeout=20)
            connection.putrequest(
                handler.command, handler.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in handler.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            content = response.read()
            status, headers = response.status, response.getheaders()
            connection.close()
        handler.send_response(status)
        for name, value in headers:
            if name.lower() not in {"content-length", "connection", "transfer-encoding"}:
                handler.send_header(name, value)
        is_head = handler.command == "HEAD"
        size = dict(headers).get("Content-Length") if is_head else str(len(content))
        handler.send_header("Content-Length", size or "0")
        handler.end_headers()
        if not is_head:
            handler.wfile.write(content)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def kill(pid: int) -> None:
    """SIGKILL."""
    os.kill(pid, signal.SIGKILL)
