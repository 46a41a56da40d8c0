"""PostgreSQL on 127.0.0.1, in a folder of its own; the fixture is `postgres`."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from tests.servers import Server

if TYPE_CHECKING:
    import psycopg  # the environments of frameworks load this file, too, and do not have it

# With the letters that break URLs if nobody escapes them.
USER, PASSWORD = "packer", "p@ss/w:rd%#41"


class Postgres(Server):
    """PostgreSQL. It does not run as root, so that root starts it as the user that Debian has for it."""

    def command(self) -> list[str]:
        data = self.folder / "data"
        if not data.exists():
            data.mkdir(mode=0o700)
            (self.folder / "password").write_text(PASSWORD)
            self.folder.chmod(0o755)
            if os.getuid() == 0:
                shutil.chown(data, "postgres", "postgres")
            made = [_program("initdb"), "-D", str(data), "-U", USER, "--auth-local=reject"]
            made += ["--auth-host=scram-sha-256", f"--pwfile={self.folder / 'password'}", "--no-sync"]
            made += ["-E", "UTF8", "--locale=C.UTF-8"]
            subprocess.run([*_as_user(), *made], check=True, capture_output=True, cwd="/")
        settings = [
            f"port={self.port}", "listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"
        ]  # fmt: skip
        # Whoever changes the user loses the signal that the death of the parent sends, and asks for it again.
        command = [*_as_user(), "setpriv", "--pdeathsig", "KILL", "--", _program("postgres"), "-D", str(data)]
        return command + [word for setting in settings for word in ("-c", setting)]

    def answers(self) -> bool:
        import psycopg

        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def connect(self) -> psycopg.Connection:
        """A connection that commits each statement."""
        import psycopg

        return psycopg.connect(
            host="127.0.0.1", port=self.port, user=USER, password=PASSWORD, dbname="postgres",
            autocommit=True, connect_timeout=5,
        )  # fmt: skip

    def database(self, password: str = PASSWORD, driver: str = "postgresql+psycopg") -> str:
        """The URL of its database."""
        return f"{driver}://{USER}:{quote(password, safe='')}@{self.address}/postgres"


def _program(name: str) -> str:
    """Debian keeps its programs apart, one folder for each version."""
    folders = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)
    return shutil.which(name, path=os.pathsep.join([*folders, os.environ.get("PATH", "")])) or name


def _as_user() -> list[str]:
    if os.getuid() != 0:
        return []
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server
