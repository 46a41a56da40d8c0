"""Makes a JSONL corpus of the C files of the Linux kernel: python -m benchmarks.corpus_linux OUT.jsonl

Reads the archive of Debian's package linux-source (apt-get install linux-source), or the one given.
"""

from __future__ import annotations

import glob
import json
import sys
import tarfile


def main(out: str, archive: str | None = None) -> int:
    """Write one line per file: id (its path), text, bytes; returns how many."""
    if archive is None:
        found = sorted(glob.glob("/usr/src/linux-source-*.tar.xz"))
        if not found:
            sys.exit("no /usr/src/linux-source-*.tar.xz: apt-get install linux-source")
        archive = found[-1]
    count = 0
    with tarfile.open(archive) as tar, open(out, "w", encoding="utf-8") as file:
        for member in tar:
            content = tar.extractfile(member) if member.isfile() and member.name.endswith(".c") else None
            if content is None:
                continue
            try:
                text = content.read().decode()
            except UnicodeDecodeError:
                continue
            row = {"id": member.name, "text": text, "bytes": len(text)}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


if __name__ == "__main__":
    print(main(*sys.argv[1:]), "files")
