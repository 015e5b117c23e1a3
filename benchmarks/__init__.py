"""minigan measured beside other frameworks: `python -m benchmarks --help`."""
