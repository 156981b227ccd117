"""Offline training: features from files, two autoencoders in sequence, thresholds, artifact."""

from training.autoencoder import TwoStageDetector

__all__ = ["TwoStageDetector"]
