"""Picture archives over DICOMweb (PS3.18): find studies, fetch them, push results back."""

from slice3d.pacs.address import Address, Auth, credentials, is_address
from slice3d.pacs.archive import fetched, find_studies, push, study_identity

__all__ = ["Address", "Auth", "credentials", "fetched", "find_studies", "is_address", "push", "study_identity"]
