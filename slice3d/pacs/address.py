"""`dicomweb://` addresses and the credentials that go with them."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

from slice3d.errors import InputError

# PS3.5 section 9.1: digits and dots, 64 characters at most
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_SCHEMES = {"dicomweb": "https", "dicomweb+https": "https", "dicomweb+http": "http"}


@dataclass(frozen=True)
class Address:
    """Where an archive is, and what of it is meant. url: of the service; filters: QIDO attributes of a query.

    Written `dicomweb://host[:port]/root[/studies/UID[/series/UID]][?Attribute=value&…]`; `dicomweb+http://` is accepted
    for this machine alone, since studies and passwords do not travel in clear text.
    """

    url: str
    study: str = ""
    series: str = ""
    filters: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Address:
        """Raises `InputError` for an address that is not one, holds a password, or would go out unencrypted."""
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise InputError(f"the archive's address is not usable; expected {_EXAMPLE}") from error
        if parts.scheme not in _SCHEMES or not parts.hostname:
            raise InputError(f"the archive's address is not usable; expected {_EXAMPLE}")
        if parts.username or parts.password:
            raise InputError(
                "the archive's address holds a user name or password; put it into the environment instead: "
                "SLICE3D_DICOMWEB_TOKEN, or SLICE3D_DICOMWEB_USER and SLICE3D_DICOMWEB_PASSWORD"
            )
        scheme = _SCHEMES[parts.scheme]
        if scheme == "http" and not _is_loopback(parts.hostname):
            raise InputError("dicomweb+http:// is for this machine alone; use dicomweb:// (TLS) for any other")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        root, study, series = _split(parts.path)
        url = f"{scheme}://{host}{f':{port}' if port else ''}{root}"
        return cls(url, study, series, dict(parse_qsl(parts.query)))

    def of_study(self, uid: str) -> str:
        """The address of one study of this archive, as text."""
        scheme, _, rest = self.url.partition("://")
        return f"{'dicomweb' if scheme == 'https' else 'dicomweb+http'}://{rest}/studies/{check_uid(uid)}"


def is_address(text: str) -> bool:
    """Whether a text means an archive, and not a file or folder."""
    return text.partition("://")[0] in _SCHEMES and "://" in text


_EXAMPLE = "e.g. dicomweb://host/dicom-web/studies/1.2.3"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _split(path: str) -> tuple[str, str, str]:
    found = re.fullmatch(r"(.*?)(?:/studies/([^/]+)(?:/series/([^/]+))?)?/?", path)
    if found is None:
        raise InputError(f"the archive's address is not usable; expected {_EXAMPLE}")
    root, study, series = found.groups(default="")
    return root.rstrip("/"), check_uid(study) if study else "", check_uid(series) if series else ""


def check_uid(uid: str) -> str:
    """The UID itself. Raises `InputError` for anything else: it becomes part of addresses."""
    if not _UID.fullmatch(uid) or len(uid) > 64:
        raise InputError("a UID in the archive's address or answer is not one; expected digits and dots, 64 at most")
    return uid


@dataclass(frozen=True, repr=False)
class Auth:
    """A bearer token, or a user and password; the representation shows neither."""

    token: str = ""
    user: str = ""
    password: str = ""

    def __repr__(self) -> str:
        return "Auth(token)" if self.token else f"Auth({'basic' if self.user else 'none'})"


def credentials(environ: Mapping[str, str]) -> Auth:
    """Credentials from `SLICE3D_DICOMWEB_TOKEN`, or `SLICE3D_DICOMWEB_USER` and `SLICE3D_DICOMWEB_PASSWORD`."""
    return Auth(
        environ.get("SLICE3D_DICOMWEB_TOKEN", ""),
        environ.get("SLICE3D_DICOMWEB_USER", ""),
        environ.get("SLICE3D_DICOMWEB_PASSWORD", ""),
    )
