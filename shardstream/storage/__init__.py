"""Where bytes live: local files and every other store that fsspec reaches."""
