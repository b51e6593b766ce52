"""Certificates of a test's own authority, which may expire within seconds."""

import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

_CONFIGURATION: Final = """
[ca]
default_ca = authority
[authority]
dir = {directory}
database = $dir/index
serial = $dir/serial
new_certs_dir = $dir
certificate = $dir/authority.pem
private_key = $dir/authority.key
default_md = sha256
policy = any
unique_subject = no
[any]
commonName = supplied
[server]
subjectAltName = {names}
"""


def can_issue() -> bool:
    """Whether the program ``openssl`` is installed."""
    return shutil.which("openssl") is not None


class CertificateAuthority:
    """Issues certificates for one key of one server."""

    def __init__(self, directory: Path, *, hosts: list[str], addresses: list[str]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._issued = 0
        self.certificate = directory / "authority.pem"
        self.key = directory / "server.key"
        names = [*(f"DNS:{host}" for host in hosts), *(f"IP:{each}" for each in addresses)]
        (directory / "index").touch()
        (directory / "authority.cnf").write_text(
            _CONFIGURATION.format(directory=directory, names=",".join(names))
        )
        new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        authority = ["-keyout", "authority.key", "-out", "authority.pem", "-subj", "/CN=authority"]
        self._openssl("req", "-x509", "-days", "2", *new_key, *authority)
        request = ["-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=server"]
        self._openssl("req", "-new", *new_key, *request)

    def issue(self, valid_for: timedelta) -> Path:
        """A certificate that is valid from a day ago until then, in whole seconds."""
        self._issued += 1
        path = self._directory / f"server-{self._issued}.pem"
        now = datetime.now(UTC)
        begins, ends = (
            f"{moment:%Y%m%d%H%M%SZ}" for moment in (now - timedelta(days=1), now + valid_for)
        )
        times = ["-startdate", begins, "-enddate", ends]
        files = ["-config", "authority.cnf", "-in", "server.csr", "-out", str(path)]
        options = ["-batch", "-notext", "-rand_serial", "-extensions", "server"]
        self._openssl("ca", *options, *files, *times)
        return path

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self._directory, check=True, capture_output=True)
