"""Effects to estimates, intervals, tests and corrections; numpy and scipy, knows nothing of models."""
