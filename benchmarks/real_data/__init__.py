"""What the product does on real data, each scenario by one command; `docs/evaluation.md` states it.

`python -m benchmarks.real_data SCENARIO` runs the commands a user would type: `tapewatch train`,
`topics create`, `run`, `replay`, `events` and `score`, each a process of its own, on a real Kafka.
"""
