"""The tapewatch runtime: ticks in, windowed features, two-stage scoring, anomaly events out."""

__version__ = "0.1.0"
