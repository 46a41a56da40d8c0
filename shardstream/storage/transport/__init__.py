"""One request to a remote store: how it is made, tried again, measured, and what its failure means."""
