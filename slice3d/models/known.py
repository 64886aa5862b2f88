"""Public models that `slice3d models add NAME` can fetch: address, hash where published, licence, structures.

None of them ships with slice3d. Addresses and licences are those their publishers state; no publisher listed here
gives a SHA-256 of the archive, so what is downloaded is hashed on arrival and that hash is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class KnownModel:
    """A published model. sha256: "" where the publisher gives none. orientation: axes its network was trained on."""

    name: str
    url: str
    licence: str
    summary: str
    structures: tuple[str, ...]
    modality: tuple[str, ...] = ("CT",)
    sha256: str = ""
    orientation: str = ""
    source: str = ""


# class numbers 1…117 of TotalSegmentator v2 (Wasserthal et al. 2023, doi:10.1148/ryai.230024), in order
_TOTAL = (
    "spleen", "kidney_right", "kidney_left", "gallbladder", "liver", "stomach", "pancreas", "adrenal_gland_right",
    "adrenal_gland_left", "lung_upper_lobe_left", "lung_lower_lobe_left", "lung_upper_lobe_right",
    "lung_middle_lobe_right", "lung_lower_lobe_right", "esophagus", "trachea", "thyroid_gland", "small_bowel",
    "duodenum", "colon", "urinary_bladder", "prostate", "kidney_cyst_left", "kidney_cyst_right", "sacrum",
    "vertebrae_S1", "vertebrae_L5", "vertebrae_L4", "vertebrae_L3", "vertebrae_L2", "vertebrae_L1",
    "vertebrae_T12", "vertebrae_T11", "vertebrae_T10", "vertebrae_T9", "vertebrae_T8", "vertebrae_T7",
    "vertebrae_T6", "vertebrae_T5", "vertebrae_T4", "vertebrae_T3", "vertebrae_T2", "vertebrae_T1",
    "vertebrae_C7", "vertebrae_C6", "vertebrae_C5", "vertebrae_C4", "vertebrae_C3", "vertebrae_C2",
    "vertebrae_C1", "heart", "aorta", "pulmonary_vein", "brachiocephalic_trunk", "subclavian_artery_right",
    "subclavian_artery_left", "common_carotid_artery_right", "common_carotid_artery_left",
    "brachiocephalic_vein_left", "brachiocephalic_vein_right", "atrial_appendage_left", "superior_vena_cava",
    "inferior_vena_cava", "portal_vein_and_splenic_vein", "iliac_artery_left", "iliac_artery_right",
    "iliac_vena_left", "iliac_vena_right", "humerus_left", "humerus_right", "scapula_left", "scapula_right",
    "clavicula_left", "clavicula_right", "femur_left", "femur_right", "hip_left", "hip_right", "spinal_cord",
    "gluteus_maximus_left", "gluteus_maximus_right", "gluteus_medius_left", "gluteus_medius_right",
    "gluteus_minimus_left", "gluteus_minimus_right", "autochthon_left", "autochthon_right", "iliopsoas_left",
    "iliopsoas_right", "brain", "skull", "rib_left_1", "rib_left_2", "rib_left_3", "rib_left_4", "rib_left_5",
    "rib_left_6", "rib_left_7", "rib_left_8", "rib_left_9", "rib_left_10", "rib_left_11", "rib_left_12",
    "rib_right_1", "rib_right_2", "rib_right_3", "rib_right_4", "rib_right_5", "rib_right_6", "rib_right_7",
    "rib_right_8", "rib_right_9", "rib_right_10", "rib_right_11", "rib_right_12", "sternum", "costal_cartilages",
)  # fmt: skip

_TS = "https://github.com/wasserth/TotalSegmentator/releases/download"
_TS_LICENCE = "Apache-2.0"
_TS_SOURCE = "TotalSegmentator v2, doi:10.1148/ryai.230024"
_ZOO = "https://github.com/Project-MONAI/model-zoo/releases/download/hosting_storage_v1"


def _total(name: str, path: str, summary: str, structures: tuple[str, ...]) -> KnownModel:
    return KnownModel(name, f"{_TS}/{path}.zip", _TS_LICENCE, summary, structures, orientation="SAR", source=_TS_SOURCE)


_TABLE = (
    _total(
        "totalsegmentator-fast",
        "v2.0.0-weights/Dataset297_TotalSegmentator_total_3mm_1559subj",
        "117 structures at 3 mm",
        _TOTAL,
    ),
    _total(
        "totalsegmentator-fastest",
        "v2.0.0-weights/Dataset298_TotalSegmentator_total_6mm_1559subj",
        "117 structures at 6 mm",
        _TOTAL,
    ),
    _total(
        "totalsegmentator-organs",
        "v2.0.0-weights/Dataset291_TotalSegmentator_part1_organs_1559subj",
        "24 organs at 1.5 mm",
        _TOTAL[:24],
    ),
    _total(
        "totalsegmentator-vertebrae",
        "v2.0.0-weights/Dataset292_TotalSegmentator_part2_vertebrae_1532subj",
        "26 vertebrae at 1.5 mm",
        _TOTAL[24:50],
    ),
    _total(
        "totalsegmentator-cardiac",
        "v2.0.0-weights/Dataset293_TotalSegmentator_part3_cardiac_1559subj",
        "heart and 17 vessels at 1.5 mm",
        _TOTAL[50:68],
    ),
    _total(
        "totalsegmentator-muscles",
        "v2.0.0-weights/Dataset294_TotalSegmentator_part4_muscles_1559subj",
        "23 muscles and limb bones at 1.5 mm",
        _TOTAL[68:91],
    ),
    _total(
        "totalsegmentator-ribs",
        "v2.0.0-weights/Dataset295_TotalSegmentator_part5_ribs_1559subj",
        "26 ribs, sternum and cartilages at 1.5 mm",
        _TOTAL[91:],
    ),
    _total(
        "totalsegmentator-body",
        "v2.0.0-weights/Dataset299_body_1559subj",
        "trunk and extremities at 1.5 mm",
        ("body_trunc", "body_extremities"),
    ),
    _total(
        "totalsegmentator-lung-vessels",
        "v2.0.0-weights/Dataset258_lung_vessels_248subj",
        "lung vessels and airways",
        ("lung_vessels", "lung_trachea_bronchia"),
    ),
    KnownModel(
        "monai-spleen",
        f"{_ZOO}/spleen_ct_segmentation_v0.3.7.zip",
        "Apache-2.0",
        "spleen (MONAI model zoo, trained on MSD task 9)",
        ("spleen",),
        source="MONAI model zoo, spleen_ct_segmentation",
    ),
)

KNOWN: Mapping[str, KnownModel] = MappingProxyType({model.name: model for model in _TABLE})
