"""Parts of the ``factorize`` pass: forms, decompositions, rank rules, costs, statistics of data."""
