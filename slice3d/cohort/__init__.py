"""Many studies on Dask: every case a transaction, failures as rows, runs that can be killed and started again."""

from slice3d.cohort.cases import Case, find_cases
from slice3d.cohort.job import Job, pipeline_job
from slice3d.cohort.run import CohortResult, run_cohort
from slice3d.cohort.settings import CohortSettings
from slice3d.cohort.watch import WatchSettings, watch

__all__ = [
    "Case",
    "CohortResult",
    "CohortSettings",
    "Job",
    "WatchSettings",
    "find_cases",
    "pipeline_job",
    "run_cohort",
    "watch",
]
