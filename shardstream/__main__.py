"""`python -m shardstream` is the command `shardstream`."""

from shardstream.cli.app import main

if __name__ == "__main__":
    main()
