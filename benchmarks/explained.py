"""Why a bar is not met: by question and by the text of the bar. It is shown only where the bar is not met.

No figures of a run are here, since the next run has others; those of profiles stay with the profiles.
"""

from __future__ import annotations

_TOKENS = "[profile](../benchmarks/results/profiles/tokens.md)"
_SAMPLES = "[profile](../benchmarks/results/profiles/samples.md)"
_REMOTE = "[profile](../benchmarks/results/profiles/remote.md)"

_TOKEN_BARS = {
    "none: at least 0.9 of its floor": (
        "The floor copies with two threads, and knows no order. Our consumer copies a batch when it "
        "asks for it, into memory that is still in the cache. That costs less processor time, but uses "
        "one core. Threads that copy ahead were built: they cost more, and were not faster "
        f"({_TOKENS})."
    ),
    "none: at most 1.15 x the CPU of its floor": (
        "Beside the copies there are the order, the plan, two tensors and some Python for each batch "
        f"({_TOKENS})."
    ),
    "none: at least 6.5 x LitData TokensLoader": (
        "LitData is measured where it is quickest, with no workers, and gives what is stored. Our rows "
        "are widened to int64."
    ),
    "zstd: at least 0.9 of its floor": (
        "The floor mixes the rows of 4 frames, which are still in the cache. We mix those of 256 "
        f"frames, which come from memory: this is the price of the shuffle ({_TOKENS})."
    ),
    "zstd: at most 1.15 x the CPU of its floor": (
        f"Rows of 256 frames come from memory, those of the floor from the cache ({_TOKENS})."
    ),
    "as stored: at least 1.5 x int64": (
        "Widening runs in the cache, and costs little beside the copy from memory. What is left in "
        f"both is Python for each batch and each plan ({_TOKENS})."
    ),
    "zstd: at least 2.5 x LitData uncompressed": ("LitData reads what needs no decompression."),
}
_IMAGE_BARS = {
    "at least 1.2 x the best peer": (
        "Whoever gives an image as bytes copies it once out of the page cache. At this size the copy "
        f'is most of the work, so all that copy once are level ({_SAMPLES}). `decode="view"` does not '
        "copy."
    ),
    "views: at least 1.2 x the best peer": (
        "The consumer hashes every byte, which takes as long for all of them; only the copy goes away."
    ),
}
_DECODE_BARS = {
    "at least 0.8 x libjpeg-turbo alone": (
        "The ceiling decodes and throws the pixels away. We also resize with an antialiased filter, "
        "flip and normalise. A prototype in C does all of it in one pass, reads only the lines of the crop, "
        "and is faster than the ceiling ([compiled code](architecture.md#compiled-code)). It is not built in."
    ),
}

_RESUME_BARS = {
    "at most 50 ms": (
        "Opening the manifest, the indexes of the shards that are open at that place, and their frames: all "
        "of it counts here, also that of the dataset."
    ),
}

WHY: dict[str, dict[str, str]] = {
    "tokens32": _TOKEN_BARS,
    "tokens16": _TOKEN_BARS,
    "documents": {
        "zstd: at least 0.85 of the floor": (
            "The floor cuts documents out of frames that it has just decompressed, from the cache. "
            "Ours were decompressed long before, 256 frames at a time, and come from memory. An epoch "
            "of this small corpus begins with most of its frames to decompress, while the loop waits "
            f"({_SAMPLES})."
        ),
        "uncompressed: at least 1.5 x LitData and HF datasets": (
            f"A third of our time makes `str` of bytes, which each of them has to do, too ({_SAMPLES})."
        ),
    },
    "images40": _IMAGE_BARS,
    "images110": _IMAGE_BARS,
    "decode40": _DECODE_BARS,
    "decode110": _DECODE_BARS,
    "first_batch": {
        "at most 25 ms after construction": (
            "A frame of each of the first shards is opened, with its index. Half of the time is Python that "
            "reads indexes and plans, the other half are threads that start and wait for each other."
        ),
    },
    "resume1": _RESUME_BARS,
    "resume50": _RESUME_BARS,
    "resume99": _RESUME_BARS,
    "remote_first100": {
        "at most 5 round trips of 100 ms, constructing and processor time included": (
            "Four requests wait for each other: a connection, the manifest, the indexes, the frames. "
            "The rest is processor time, of which most goes into receiving the frames of 32 shards "
            f"({_REMOTE})."
        ),
        "at least 5 x as soon as the best peer": (
            "WebDataset's first batch comes out of the first shards, read from their beginning. Ours "
            "is drawn from 32 shards: their indexes have to come first, then a frame of each."
        ),
    },
    "remote_epoch20": {
        "at least 80 % of ranged GETs alone": (
            "Store, proxy and reader share the cores of one machine, so each second of our processor "
            "time is one that the store has not. `remote_link150` limits the link instead, so that "
            "they do not fight."
        ),
    },
    "remote_link150": {
        "RAM only: at most 1.5 x the CPU of the floor": (
            "The floor uses its memory again and keeps nothing. We pay for new memory of the RAM tier, "
            f"for the plan, and for the samples themselves ({_REMOTE})."
        ),
        "RAM only: at least 0.8 of the rate of the floor": (
            "The floor uses its memory again and keeps nothing. We pay for new memory of the RAM tier, "
            f"for the plan, and for the samples themselves ({_REMOTE})."
        ),
        "with an SSD: at least 0.8 of the rate of the floor": (
            f"Each block is also written to the SSD, which takes system time ({_REMOTE})."
        ),
        "RAM only: at most 300 requests (of 1.8 GB)": (
            "Ranges grow only while the link is quick, so that no batch waits for neighbours that are "
            f"needed later ({_REMOTE})."
        ),
        "with an SSD: at most 300 requests (of 1.8 GB)": (
            f"Ranges grow only while the link is quick, so that no batch waits for neighbours ({_REMOTE})."
        ),
    },
    "packing_jsonl": {
        "at least 0.75 of zstd alone": (
            "JSON has to be parsed: the escapes of each text are undone, which takes a third of what "
            "zstd takes. Also a tar has a header for each field, and every shard is checked and "
            "synced."
        ),
        "at least 3.5 x MDSWriter": (
            "The same parsing is in both; MDSWriter writes no checksum of a frame and no index of fields."
        ),
    },
    "packing_parquet": {
        "at least 2 x MDSWriter": (
            "The corpus takes seconds, so that the start of our processes, which load pyarrow in each, "
            "is a large part."
        ),
        "at least 0.8 of pyarrow's scan and zstd": (
            "The same start of processes; and a tar has a header of 512 bytes for each field of rows of 1 KB."
        ),
    },
    "packing_tokens": {
        "at least 0.95 of the tokenizer alone": (
            "Reading, JSON and zstd share the cores with the tokenizer. Measured while other programs "
            "took a part of them."
        ),
    },
    "packing_writer-text": {
        "at least 2 x MDSWriter": ("Most of the time is zstd in both."),
    },
    "packing_writer-jpeg": {
        "at least 2 x both": (
            "Nothing is compressed: all three copy bytes into files, and wait for the disk. The spread "
            "is as large as the difference."
        ),
    },
}
