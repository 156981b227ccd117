"""Offline training: features from files, two autoencoders in sequence, thresholds, artifact."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.autoencoder import TwoStageDetector

__all__ = ["TwoStageDetector"]


def __getattr__(name: str) -> object:
    """Import the estimator when it is asked for: every `tapewatch` command imports this package."""
    if name == "TwoStageDetector":
        from training.autoencoder import TwoStageDetector  # noqa: PLC0415

        return TwoStageDetector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
