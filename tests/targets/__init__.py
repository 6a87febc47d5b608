"""Small programs with one known fault each; ``faults`` is the registry, ``contexts`` where they happen."""
