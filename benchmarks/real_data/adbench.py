"""Six labelled tabular sets: the same estimator, as it comes, beside three standard detectors.

Fitted on a random half of the normal rows, tested on the others and all anomalies, standard scaling
for the others (the two-stage detector scales by itself).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from benchmarks.real_data.panels import kept
from benchmarks.real_data.report import spread, table
from training import TwoStageDetector
from training.evaluation.two_stage import TWO_STAGE

TITLE: Final = "Six tabular sets"
SETS: Final = (
    "6_cardio",
    "23_mammography",
    "28_pendigits",
    "30_satellite",
    "32_shuttle",
    "38_thyroid",
)
SEEDS: Final = (0, 1, 2)

Float64 = npt.NDArray[np.float64]
Fit = Callable[[Float64, int], Callable[[Float64], Float64]]


def _two_stage(rows: Float64, seed: int) -> Callable[[Float64], Float64]:
    detector = TwoStageDetector(random_state=seed).fit(rows)
    return lambda x: -detector.score_samples(x)


def _forest(rows: Float64, seed: int) -> Callable[[Float64], Float64]:
    forest = IsolationForest(n_estimators=200, random_state=seed).fit(rows)
    return lambda x: -np.asarray(forest.score_samples(x), np.float64)


def _neighbours(rows: Float64, seed: int) -> Callable[[Float64], Float64]:  # noqa: ARG001
    near = NearestNeighbors(n_neighbors=5).fit(rows)
    return lambda x: np.asarray(near.kneighbors(x)[0].mean(axis=1), np.float64)


def _pca(rows: Float64, seed: int) -> Callable[[Float64], Float64]:
    pca = PCA(0.9, random_state=seed).fit(rows)
    return lambda x: np.square(x - pca.inverse_transform(pca.transform(x))).sum(axis=1)


DETECTORS: Final[dict[str, Fit]] = {
    TWO_STAGE: _two_stage,
    "IsolationForest": _forest,
    "5-NN": _neighbours,
    "PCA residual": _pca,
}


def measure(data: Path, folder: Path, bootstrap: str | None) -> dict[str, Any]:  # noqa: ARG001
    """Run the scenario; the facts for JSON."""
    runs: list[dict[str, Any]] = []
    for name in SETS:
        runs += kept(folder, name, partial(_set, data, name))["runs"]
    return {"runs": runs, "parameters": TwoStageDetector().get_params()}


def _set(data: Path, name: str) -> dict[str, Any]:
    with np.load(data / "adbench" / f"{name}.npz") as stored:
        x, y = np.asarray(stored["X"], np.float64), np.asarray(stored["y"]).ravel().astype(int)
    runs: list[dict[str, Any]] = []
    for seed in SEEDS:
        normal = np.random.default_rng(seed).permutation(np.flatnonzero(y == 0))
        half = len(normal) // 2
        rest = np.concatenate([normal[half:], np.flatnonzero(y == 1)])
        scaler = StandardScaler().fit(x[normal[:half]])
        fitted, test = scaler.transform(x[normal[:half]]), scaler.transform(x[rest])
        for detector, fit in DETECTORS.items():
            score = fit(fitted, seed)(test)
            runs.append(
                {
                    "set": name,
                    "seed": seed,
                    "detector": detector,
                    "auroc": float(roc_auc_score(y[rest], score)),
                    "ap": float(average_precision_score(y[rest], score)),
                }
            )
    return {"runs": runs}


def mean_auroc(runs: list[dict[str, Any]], detector: str) -> list[float]:
    """Mean over the sets, seed by seed."""
    return [
        float(
            np.mean([r["auroc"] for r in runs if r["detector"] == detector and r["seed"] == seed])
        )
        for seed in SEEDS
    ]


def section(facts: dict[str, Any]) -> str:
    """Say what was found, in Markdown."""
    runs: list[dict[str, Any]] = facts["runs"]
    rows = []
    for name in SETS:
        cells = [name.split("_", 1)[1]]
        for detector in DETECTORS:
            mine = [r for r in runs if r["set"] == name and r["detector"] == detector]
            cells.append(
                f"{spread([r['auroc'] for r in mine])} / {spread([r['ap'] for r in mine])}"
            )
        rows.append(cells)
    rows.append(["mean AUROC", *(spread(mean_auroc(runs, detector)) for detector in DETECTORS)])
    return f"""
ADBench's cardio, mammography, pendigits, satellite, shuttle and thyroid, {len(SEEDS)}
seeds: fitted on a random half of the normal rows, tested on the others and all anomalies, all
columns scaled to the fitted rows. `TwoStageDetector()` with its default parameters, the same for
all sets; AUROC / average precision, mean ± standard deviation over the seeds, which draw the half,
too. 5-NN is the mean distance to five neighbours among all fitted rows.

{table(("set", *DETECTORS), rows)}
""".strip()
