"""One script per claim, run as `python -m benchmarks.NAME`; the last line of stdout is one JSON object."""
