"""Offline training: features from files, two autoencoders in sequence, thresholds, artifact."""
