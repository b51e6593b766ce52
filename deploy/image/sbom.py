"""Writes what an environment contains, with licences: CycloneDX 1.6, or a table in Markdown.

    python deploy/image/sbom.py /venv/lib/python3.12/site-packages > sbom.cdx.json
    python deploy/image/sbom.py --table SITE-PACKAGES

Exit code 1: the licence of something is unknown. It uses the standard library alone, because it
runs in the image's environment, which has no tools.
"""

import argparse
import json
import re
import sys
from collections.abc import Collection, Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any, Final, NamedTuple

CLASSIFIERS: Final = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
"""Of packages without an SPDX expression. The BSD ones that we ship have three clauses."""
IDENTIFIERS: Final = {*CLASSIFIERS.values(), "BSD-2-Clause", "LGPL-3.0-only", "PostgreSQL"}
BUNDLED: Final = {
    "libpq": "PostgreSQL",
    "libssl": "Apache-2.0",
    "libcrypto": "Apache-2.0",
    "libkrb5": "MIT",
    "libkrb5support": "MIT",
    "libk5crypto": "MIT",
    "libgssapi_krb5": "MIT",
    "libcom_err": "MIT",
    "libldap": "OLDAP-2.8",
    "liblber": "OLDAP-2.8",
    "libsasl2": "BSD-Attribution-HPND-disclaimer",
    "libkeyutils": "LGPL-2.1-or-later",
    "libselinux": "libselinux-1.0",
    "libpcre": "BSD-3-Clause",
    "libpcre2-8": "BSD-3-Clause",
    "libcrypt": "LGPL-2.1-or-later",
}
"""The libraries in a wheel's directory ``NAME.libs``, by the beginning of their names."""


class Component(NamedTuple):
    """A package, or a library in one: ``inside`` is then its directory."""

    name: str
    version: str
    licence: str
    inside: str = ""

    def as_json(self) -> dict[str, Any]:
        purl = f"pkg:pypi/{self.name}@{self.version}"
        if self.inside:
            purl = f"pkg:generic/{self.name}?file_name={self.version}"
        component: dict[str, Any] = {
            "type": "library",
            "bom-ref": purl,
            "name": self.name,
            "licenses": [{"expression": self.licence}],
            "purl": purl,
        }
        if self.inside:
            component["description"] = f"{self.inside}/{self.version}"
        else:
            component["version"] = self.version
        return component


def components(packages: Path, names: Collection[str] | None = None) -> Iterator[Component]:
    """The packages of a directory, or those of these names, and the libraries in them."""
    for distribution in distributions(path=[str(packages)]):
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        if names is None or name in names:
            yield Component(name, distribution.version, licence_of(distribution))
            inside = f"{name.replace('-', '_')}.libs"
            for path in sorted((packages / inside).glob("*.so*")):
                stem = re.sub(r"(-[0-9a-f]{6,})?\.so.*|-[0-9.]+$", "", path.name)
                stem = re.sub(r"-[0-9.]+$", "", stem)
                yield Component(stem, path.name, BUNDLED.get(stem, ""), inside)


def licence_of(distribution: Distribution) -> str:
    """The SPDX expression of a package's licence; empty if it is unknown."""
    metadata = distribution.metadata
    if expression := metadata.get("License-Expression"):
        return expression
    classifiers = [
        CLASSIFIERS.get(text.rpartition(" :: ")[2], "")
        for text in metadata.get_all("Classifier", [])
        if text.startswith("License :: OSI Approved :: ")
    ]
    if classifiers and all(classifiers):
        return " OR ".join(sorted(set(classifiers)))
    named = metadata.get("License") or ""
    return named if named in IDENTIFIERS else ""


def as_bom(found: Collection[Component]) -> dict[str, Any]:
    """The bill of materials, without a time or number: equal contents give equal bytes."""
    [own] = [component for component in found if component.name == "turn-accounting"]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {**own.as_json(), "type": "application"}},
        "components": [component.as_json() for component in found if component != own],
    }


def as_table(found: Collection[Component]) -> str:
    """The names and licences, which change only with what is shipped."""
    rows = sorted({(one.inside or one.name, one.name, one.licence) for one in found})
    lines = [
        f"| {f'{name}, in {inside}' if name != inside else name} | {licence} |"
        for inside, name, licence in rows
    ]
    return "\n".join(["| package | licence |", "|---|---|", *lines]) + "\n"


def main() -> None:
    """Write what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("packages", type=Path)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    found = sorted(components(arguments.packages))
    if unknown := [one.name for one in found if not one.licence]:
        sys.exit(f"no known licence: {', '.join(unknown)}")
    if arguments.table:
        sys.stdout.write(as_table(found))
    else:
        json.dump(as_bom(found), sys.stdout, indent=2)


if __name__ == "__main__":
    main()
