"""The stages in order, the checks before them, and the plan."""
