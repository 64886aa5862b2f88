"""Addresses: what is taken, what is refused, and that nothing secret shows."""

from __future__ import annotations

import pytest

from slice3d.errors import InputError
from slice3d.pacs import Address, Auth, credentials


def test_parts() -> None:
    where = Address.parse("dicomweb://pacs.example:8443/a/dicom-web/studies/1.2.3/series/1.2.3.4?Modality=CT&x=1")
    assert where.url == "https://pacs.example:8443/a/dicom-web"
    assert (where.study, where.series) == ("1.2.3", "1.2.3.4")
    assert dict(where.filters) == {"Modality": "CT", "x": "1"}
    assert where.of_study("1.9") == "dicomweb://pacs.example:8443/a/dicom-web/studies/1.9"
    assert Address.parse("dicomweb+http://[::1]:80/x").url == "http://[::1]:80/x"
    assert Address.parse("dicomweb+http://localhost/x/").url == "http://localhost/x"
    assert Address.parse(Address.parse("dicomweb+http://127.0.0.1:1/x").of_study("2.5")).study == "2.5"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("https://host/x", "not usable"),
        ("dicomweb://", "not usable"),
        ("dicomweb://host:notaport/x", "not usable"),
        ("dicomweb://user:pw@host/x", "SLICE3D_DICOMWEB_TOKEN"),
        ("dicomweb+http://pacs.example/x", "this machine alone"),
        ("dicomweb+http://127.0.0.1.evil.example/x", "this machine alone"),
        ("dicomweb://host/x/studies/..", "UID"),
        ("dicomweb://host/x/studies/1.2%2F..", "UID"),
        ("dicomweb://host/x/studies/" + "1" * 65, "UID"),
    ],
)
def test_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        Address.parse(text)
    assert "pw" not in str(caught.value)


def test_credentials_do_not_show() -> None:
    auth = credentials({"SLICE3D_DICOMWEB_TOKEN": "s3cret", "SLICE3D_DICOMWEB_USER": "u"})
    assert auth.token == "s3cret"
    assert "s3cret" not in repr(auth)
    assert "pass" not in repr(Auth(user="u", password="pass"))
    assert credentials({}) == Auth()
