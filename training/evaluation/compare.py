"""When is one detector ahead of another? Paired differences over seeds against their spread.

For each seed the difference of a figure, ours less theirs, both on the same rows. *Ahead*: the mean
of the differences is above their standard deviation (n - 1). *Behind*: it is below minus that.
Anything else is *level*; one seed alone has no spread and no verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Run = Mapping[str, Any]
"""One detector with one seed: `detector`, `seed` and figures."""

FIGURES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("causal AUROC", ("ranking", "causal", "all", "auroc")),
    ("causal AP", ("ranking", "causal", "all", "ap")),
    ("delayed AUROC", ("ranking", "delayed", "all", "auroc")),
    ("delayed AP", ("ranking", "delayed", "all", "ap")),
    ("recall at 6 an hour, frozen", ("episodes", "6 an hour, frozen", "mean_recall_over_types")),
    (
        "recall at 6 an hour, adaptive",
        ("episodes", "6 an hour, adaptive", "mean_recall_over_types"),
    ),
)
"""What is compared, and where it stands in a run."""


def figure(run: Run, path: Sequence[str]) -> float | None:
    """Return a figure of a run, or None where the run does not have it."""
    found: Any = run
    for name in path:
        if not isinstance(found, Mapping) or found.get(name) is None:
            return None
        found = found[name]
    return float(found)


def paired(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Hold paired figures against each other, as JSON types."""
    differences = np.subtract(ours, theirs)
    mean, n = float(np.mean(differences)), len(differences)
    if n < 2:
        return {"mean": mean, "sd": None, "seeds": n, "verdict": None}
    sd = float(np.std(differences, ddof=1))
    verdict = "ahead" if mean > sd else "behind" if mean < -sd else "level"
    return {"mean": mean, "sd": sd, "seeds": n, "verdict": verdict}


def comparison(runs: Sequence[Run], ours: str) -> dict[str, dict[str, Any]]:
    """Hold one detector against all others, figure by figure.

    Parameters
    ----------
    runs
        Of all detectors and seeds.
    ours
        Name of the one.

    Returns
    -------
    dict
        By other detector, then by figure, what `paired` gives; figures that a seed lacks are left
        out.
    """
    by_name: dict[str, dict[int, Run]] = {}
    for run in runs:
        by_name.setdefault(run["detector"], {})[run["seed"]] = run
    found: dict[str, dict[str, Any]] = {}
    for name, seeds in by_name.items():
        if name == ours:
            continue
        found[name] = {}
        both = [seed for seed in by_name[ours] if seed in seeds]
        for title, path in FIGURES:
            mine = [figure(by_name[ours][seed], path) for seed in both]
            other = [figure(seeds[seed], path) for seed in both]
            pairs = [(a, b) for a, b in zip(mine, other, strict=True) if None not in (a, b)]
            if pairs and len(pairs) == len(both):
                found[name][title] = paired(*zip(*pairs, strict=True))
    return found
