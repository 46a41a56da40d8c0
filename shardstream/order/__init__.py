"""Which sample comes when, and on which rank: pure arithmetic over the manifest, numpy only."""
