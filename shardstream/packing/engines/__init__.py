"""Where the tasks of a pack run."""
