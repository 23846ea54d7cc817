"""Which heads and neurons go: statistics, criteria, plans, surgery, compensation."""
