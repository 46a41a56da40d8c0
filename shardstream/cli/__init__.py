"""The command line: one file for each command. Slow imports are in the commands, so that --help is fast."""
