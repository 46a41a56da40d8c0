"""What packing has to reach, and results of `benchmarks.packing` as answers like those of the harness.

Documents, Parquet and tokens are of the whole machine; a writer is one process.
"""

from __future__ import annotations

from typing import Any

from benchmarks.question import Bar, Question

OURS = "shardstream"
MDS, WDS, LITDATA = "MDSWriter, zstd", "wds.ShardWriter, zstd", "litdata.optimize, zstd"
CEILINGS = ("zstd alone", "pyarrow's scan and zstd", "the tokenizer alone")


def _question(name: str, title: str, *bars: Bar) -> Question:
    def corpus(*_: Any) -> Any:
        raise NotImplementedError("python -m benchmarks.packing measures it")

    return Question(f"packing_{name}", title, corpus, (), bars, unit="MB/s")


PACKING = {
    question.name: question
    for question in (
        _question(
            "jsonl",
            "Packing JSON Lines with zstd level 3, as many processes as cores",
            Bar("at least 0.75 of zstd alone", 0.75, OURS, ("zstd alone",)),
            Bar("at least 3.5 x MDSWriter", 3.5, OURS, (MDS,)),
        ),
        _question(
            "parquet",
            "Packing Parquet with zstd level 3, as many processes as cores",
            Bar("at least 2 x MDSWriter", 2, OURS, (MDS,)),
            Bar("at least 2 x litdata.optimize", 2, OURS, (LITDATA,)),
            Bar("at least 0.8 of pyarrow's scan and zstd", 0.8, OURS, ("pyarrow's scan and zstd",)),
        ),
        _question(
            "tokens",
            "Packing JSON Lines into tokens, as many processes as cores",
            Bar("at least 0.95 of the tokenizer alone", 0.95, OURS, ("the tokenizer alone",)),
        ),
        _question(
            "writer-text",
            "One process that writes documents from memory with `ss.Writer`",
            Bar("at least 2 x ShardWriter", 2, OURS, ("wds.ShardWriter",)),
            Bar("at least 2 x MDSWriter", 2, OURS, ("MDSWriter",)),
        ),
        _question(
            "writer-jpeg",
            "One process that writes JPEGs from memory with `ss.Writer`",
            Bar("at least 2 x both", 2, OURS, ("MDSWriter", "wds.ShardWriter")),
        ),
    )
}


def answers(facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Results of `benchmarks.packing` in the form that the harness gives its own; rates in MB/s."""
    found = {}
    for name, taken in facts["seconds"].items():
        question = PACKING.get(f"packing_{name}")
        if question is None:  # a plan has no bytes
            continue
        size = facts.get("bytes", {}).get(name, facts["corpus_bytes"])
        rows = {}
        for contender, rounds in taken.items():
            role = "ours" if contender == OURS else "ceiling" if contender in CEILINGS else "peer"
            each = [
                {"samples": size / 1e6, "seconds": seconds, "cpu": cpu, "cpu_bytes": size}
                for seconds, cpu in rounds
            ]
            rows[contender] = {"role": role, "rounds": each}
        # The number of samples is that of the text; images are others.
        count = None if name == "writer-jpeg" else facts.get("corpus_samples")
        corpus = {"count": count, "bytes": size}
        found[question.name] = {
            "title": question.title, "measure": "rate", "unit": "MB/s", "notes": "", "corpus": corpus,
            "contenders": rows,
        }  # fmt: skip
    return found
