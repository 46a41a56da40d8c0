"""What does our source cost inside DALI, beside DALI's own readers?"""

from __future__ import annotations

from benchmarks.question import Bar, Contender, Question

OURS, FILES, TARS = "shardstream, DaliLoader", "DALI, file reader", "DALI, webdataset reader"

QUESTIONS = (
    Question(
        "dali",
        "JPEG of about 40 KB decoded by DALI on the CPU to 224 x 224, normalised, batches of 32, shuffled",
        # So few that rounds are whole epochs: an epoch that is cut short has decoded batches for nothing.
        lambda maker, size: maker.images(min(size.images, 480), 40 << 10),
        (
            Contender(OURS, "dali_source", "ours", {"reader": "shardstream"}, dataset="dali"),
            Contender(FILES, "dali_source", "ceiling", {"reader": "file"}, dataset="dali-files"),
            Contender(TARS, "dali_source", "ceiling", {"reader": "webdataset"}, dataset="dali"),
        ),
        (Bar("at least 0.95 x the best of DALI's own readers", 0.95, OURS, (FILES, TARS)),),
        batch=32,
        notes="The same pipeline in all of them, so that what differs is the reader. DALI's readers shuffle "
        "in a buffer, shardstream over the whole corpus. Epochs start and end with empty queues. Pixels and "
        "classes are compared before.",
    ),
)
