"""How fast obstore alone reads ranges at each concurrency: no code of the package."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = ["own_sweep"]


def own_sweep(url: str, options: dict[str, Any], objects: list[tuple[str, int]]) -> dict[int, float]:
    """Bytes per second of 1 MiB ranges at each concurrency, by obstore alone: no code of the package."""
    import obstore
    from obstore.store import S3Store

    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    store = S3Store(
        bucket, prefix=prefix, endpoint=options["endpoint_url"], access_key_id=options["key"],
        secret_access_key=options["secret"], client_options={"allow_http": True}, region="us-east-1",
        virtual_hosted_style_request=False,
    )  # fmt: skip
    found = {}
    for power in range(7):
        workers = 2**power
        count = max(24, 4 * workers)
        wanted = [(objects[n % len(objects)], n // len(objects)) for n in range(count)]
        with ThreadPoolExecutor(workers) as pool:
            began = time.perf_counter()
            sizes = pool.map(
                lambda one: len(
                    obstore.get_range(
                        store, one[0][0], start=(one[1] << 20) % (one[0][1] - (1 << 20)), length=1 << 20
                    )
                ),
                wanted,
            )
            total = sum(sizes)
            found[workers] = total / (time.perf_counter() - began)
    return found
