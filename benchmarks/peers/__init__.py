"""One file per contender: how it writes a corpus, and how its own documentation says to read it."""
