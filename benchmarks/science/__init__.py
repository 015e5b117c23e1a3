"""Studies that reproduce published results, and minigan's own, with seeds and intervals."""
