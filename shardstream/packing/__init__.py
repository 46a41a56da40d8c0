"""The write path: sources to samples to frames to shards to the manifest, which commits."""
