from dataclasses import dataclass
from typing import Any
@dataclass
class Drawn:
    stream: Any
    test: Any
    held_out: Any
    calibration: Any
    scores: Any
    held_out_scores: Any
    operated: Any
    shipped: Any
    as_shipped: Any
    model: Any
    artifact: Any
    summary: Any
def draw(d): return d
def write_page(m, d):
    import pickle, os
    return "x"
