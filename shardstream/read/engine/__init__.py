"""The read engine: units of work in, batches out, in order."""
