"""What frameworks need beyond a plain iterable; one file each, imported by their users alone."""
