"""What `tapewatch evaluate` is made of: rows, detectors, rankings, episodes, budgets, the page."""
