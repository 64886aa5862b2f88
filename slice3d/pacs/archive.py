"""QIDO-RS, WADO-RS and STOW-RS (PS3.18) through dicomweb-client; TLS certificates are always verified."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slice3d.errors import InputError, MissingExtraError, Slice3DError
from slice3d.output import private_folder
from slice3d.pacs.address import Address, Auth, check_uid

_TIMEOUT_S = (10, 300)
# answers are asked for in pages, so that a query for everything does not become one answer
_PAGE = 500
_KEYWORD = {"StudyInstanceUID": "0020000D", "SOPInstanceUID": "00080018"}


def find_studies(address: str, *, auth: Auth | None = None, limit: int = 1_000_000) -> tuple[str, ...]:
    """Addresses of the studies that match a query (`dicomweb://host/root?ModalitiesInStudy=CT&StudyDate=2020…`).

    An address that names a study gives that one alone. Raises `InputError` when the archive cannot be reached, refuses,
    or gives more than `limit`.
    """
    where = Address.parse(address)
    if where.study:
        return (address,)
    uids: list[str] = []
    with _session(where, auth) as client:
        while True:
            page = client.search_for_studies(
                search_filters=dict(where.filters), limit=_PAGE, offset=len(uids), fields=["StudyInstanceUID"]
            )
            new = [uid for uid in _values(page, "StudyInstanceUID") if uid not in set(uids)]
            uids += new
            if len(uids) > limit:
                raise InputError(f"the query matches more than {limit} studies; narrow it, e.g. ?StudyDate=20240101-")
            if not new or len(page) < _PAGE:
                break
    if not uids:
        raise InputError("no study in the archive matches the query; loosen it")
    return tuple(where.of_study(uid) for uid in sorted(uids))


def _values(page: Iterable[dict[str, Any]], keyword: str) -> list[str]:
    tag = _KEYWORD[keyword]
    return [check_uid(str(item[tag]["Value"][0])) for item in page if item.get(tag, {}).get("Value")]


def study_identity(address: str, *, auth: Auth | None = None) -> str:
    """SHA-256 over the UIDs of a study's instances: known without fetching it, and new when an instance is added.

    A UID names one content for ever (PS3.5 section 9), so equal UIDs are equal images.
    """
    where = _one_study(address)
    with _session(where, auth) as client:
        return hashlib.sha256("\n".join(sorted(_instances(client, where))).encode()).hexdigest()


def _instances(client: Any, where: Address) -> list[str]:
    uids: list[str] = []
    while True:
        page = client.search_for_instances(
            study_instance_uid=where.study, series_instance_uid=where.series or None, limit=_PAGE, offset=len(uids)
        )
        new = _values(page, "SOPInstanceUID")
        uids += new
        if len(page) < _PAGE or not new:
            break
    if not uids:
        raise InputError("the archive does not hold that study, or nothing of it; check its UID")
    return uids


@contextmanager
def fetched(address: str, *, auth: Auth | None = None, max_bytes: int = 32 * 2**30) -> Iterator[Path]:
    """A study (or series) as files in a private temporary folder, removed at the end; files carry numbers, not names.

    Raises `InputError` when it is not there, larger than `max_bytes`, or did not arrive whole.
    """
    where = _one_study(address)
    with private_folder(Path(tempfile.gettempdir()), "slice3d-fetched-") as folder:
        with _session(where, auth) as client:
            expected = set(_instances(client, where))
            received = _receive(client, where, folder, max_bytes)
        missing = len(expected - received)
        if missing:
            text = f"{missing} of {len(expected)} images of the study did not arrive; try again"
            raise InputError(text) from ConnectionError("incomplete transfer")
        yield folder


def _receive(client: Any, where: Address, folder: Path, max_bytes: int) -> set[str]:
    # "*": as stored, so that the archive does not decompress and compress again
    media = (("application/dicom", "*"),)
    if where.series:
        stream = client.iter_series(where.study, where.series, media_types=media)
    else:
        stream = client.iter_study(where.study, media_types=media)
    received: set[str] = set()
    total = 0
    for number, dataset in enumerate(stream, start=1):
        path = folder / f"{number:06d}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        total += path.stat().st_size
        if total > max_bytes:
            raise InputError(f"the study is larger than {max_bytes / 2**30:.1f} GiB; raise max_study_gib")
        received.add(str(dataset.SOPInstanceUID))
    return received


def push(files: Iterable[str | Path], address: str, *, auth: Auth | None = None) -> int:
    """Store DICOM files (SEG, encapsulated STL) in an archive; how many it took.

    Raises `InputError` when a file is not DICOM, or the archive refuses one.
    """
    import pydicom

    where = Address.parse(address)
    paths = [Path(file) for file in files]
    if not paths:
        raise InputError("nothing to push; expected DICOM files, as `segment --dicom-seg --dicom-stl` writes them")
    with _session(where, auth) as client:
        for path in paths:
            try:
                dataset = pydicom.dcmread(path)
            except (pydicom.errors.InvalidDicomError, OSError) as error:
                raise InputError(f"{path.name} is not a DICOM file; expected a SEG or encapsulated STL") from error
            answer = client.store_instances([dataset])
            refused = getattr(answer, "FailedSOPSequence", None)
            if refused:
                code = getattr(refused[0], "FailureReason", 0)
                raise InputError(
                    f"the archive refuses {path.name} (reason {code:#06x}, PS3.18 table I.2-2); see its log"
                )
    return len(paths)


def _one_study(address: str) -> Address:
    where = Address.parse(address)
    if not where.study:
        raise InputError("the address names no study; expected dicomweb://host/root/studies/UID")
    return where


@contextmanager
def _session(where: Address, auth: Auth | None) -> Iterator[Any]:
    """A client whose failures are ours, without the address and what it answered: both can hold identifiers."""
    try:
        import requests
        from dicomweb_client.api import DICOMwebClient
    except ImportError as error:
        raise MissingExtraError("DICOMweb needs dicomweb-client; run `pip install 'slice3d[cluster]'`") from error
    session = requests.Session()
    session.verify = True
    patient = _patient_adapter()
    session.mount("https://", patient)
    session.mount("http://", patient)
    if auth is not None and auth.token:
        session.headers["Authorization"] = f"Bearer {auth.token}"
    elif auth is not None and auth.user:
        session.auth = (auth.user, auth.password)
    try:
        client = DICOMwebClient(where.url, session=session, timeout=_TIMEOUT_S)
        client.set_http_retry_params(retry=False)
        yield client
    except Slice3DError:
        raise
    except requests.exceptions.SSLError as error:
        raise InputError(
            "the archive's certificate cannot be verified; point REQUESTS_CA_BUNDLE at your authority's certificate"
        ) from error
    except requests.HTTPError as error:
        raise _refusal(getattr(error.response, "status_code", 0)) from error
    except (requests.RequestException, OSError) as error:
        if isinstance(error, OSError) and not isinstance(error, requests.RequestException) and error.errno is not None:
            raise  # a full disk, for example
        raise InputError("the archive does not answer; check its address and the network") from ConnectionError(
            type(error).__name__
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        kind = type(error).__name__
        raise InputError(f"the archive's answer is not DICOMweb ({kind}); check the address's path") from error
    finally:
        session.close()


def _patient_adapter() -> Any:
    """Asks up to three times. The libraries' own retries log addresses, in which queries name patients."""
    import requests
    from requests.adapters import HTTPAdapter

    class Patient(HTTPAdapter):
        def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
            for pause in (0.5, 2.0):
                try:
                    return super().send(request, *args, **kwargs)
                except requests.exceptions.SSLError:
                    raise
                except requests.ConnectionError:
                    if request.method != "GET":
                        raise
                    time.sleep(pause)
            return super().send(request, *args, **kwargs)

    return Patient()


def _refusal(status: int) -> InputError:
    if status in (401, 403):
        return InputError(
            f"the archive refuses access (HTTP {status}); set SLICE3D_DICOMWEB_TOKEN, or SLICE3D_DICOMWEB_USER and "
            "SLICE3D_DICOMWEB_PASSWORD"
        )
    if status == 404:
        return InputError("the archive does not hold that study, or has no DICOMweb at this path (HTTP 404)")
    error = InputError(f"the archive failed (HTTP {status}); try again or ask its administrator")
    if status >= 500 or status == 429:
        error.__cause__ = ConnectionError(f"HTTP {status}")
    return error
