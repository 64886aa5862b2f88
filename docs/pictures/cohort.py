"""Draws docs/pictures/cohort-memory.png from benchmarks/results/cohort.json: python docs/pictures/cohort.py."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
soak = json.loads((HERE.parents[1] / "benchmarks" / "results" / "cohort.json").read_text())["soak"]

figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
for n, worker in enumerate(soak["workers"], start=1):
    axes.plot(worker["MiB_before_each_case"], linewidth=1, label=f"worker {n}")
axes.set(xlabel="cases done by this worker", ylabel="resident before each case, MiB", xlim=(0, None), ylim=(0, None))
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
figure.savefig(HERE / "cohort-memory.png", dpi=110)
