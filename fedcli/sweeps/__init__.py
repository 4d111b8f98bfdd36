"""Studies of many runs: a study file, its runs in worker processes, the best runs, the tables."""
