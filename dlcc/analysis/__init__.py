"""Questions about a graph: verification, reference execution, intervals, costs."""
