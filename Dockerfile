# An image for packing jobs (Kubernetes, Ray, batch queues): the command, and what reads and writes most inputs.
#   docker build --tag shardstream .
#   docker run --rm --volume "$PWD:/data" shardstream pack /data/corpus.jsonl /data/packed --compression zstd
FROM python:3.11-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY tools/readme_hook.py tools/
COPY shardstream shardstream
RUN python -m venv /opt/shardstream \
    && /opt/shardstream/bin/pip install --no-cache-dir --constraint constraints.txt '.[s3,gcs,azure,fast,tokenize,images,audio,arrow,lz4]'

FROM python:3.11-slim
COPY --from=build /opt/shardstream /opt/shardstream
ENV PATH=/opt/shardstream/bin:$PATH \
    PYTHONUNBUFFERED=1
RUN useradd --create-home --uid 1000 packer
USER 1000
WORKDIR /home/packer
ENTRYPOINT ["shardstream"]
CMD ["--help"]
