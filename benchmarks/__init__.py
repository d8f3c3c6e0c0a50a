"""What relaying a stream costs, as ratios between servers measured in one run on one machine.

`python -m benchmarks.run` compares the relay with the code everybody copies, with Python's floor and with nginx;
`python -m benchmarks.fairness` floods it; `python -m benchmarks.leak` looks for what departures leave behind.
"""
