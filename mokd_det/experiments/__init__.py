"""Many trainings as one experiment: a queue of processes, runs that are known again, comparisons of methods."""
