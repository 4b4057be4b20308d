# The image of the service: `docker build -t innerloop .`, then
# `docker run -p 127.0.0.1:8000:8000 -v innerloop-data:/data innerloop`.
# One container keeps its sessions in a SQLite file in /data; docker-compose.yml runs it on PostgreSQL.
#
# The builder and the image start from the same base: a virtual environment only works with the
# interpreter that made it.
ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS builder
# One more package index for pip. PyPI's torch brings CUDA along, several gigabytes that a machine
# without a GPU can do without: give the address of PyTorch's index of CPU wheels here.
# A mirror, or an index that asks for a password, goes in by `--secret id=pip,src=pip.conf`: a build
# argument can be read in the build's history, a secret cannot.
ARG PIP_EXTRA_INDEX_URL
WORKDIR /build
RUN python -m venv /opt/innerloop
ENV PATH=/opt/innerloop/bin:$PATH

# The dependencies alone, so that a change of the code leaves this layer, by far the largest, as it is.
COPY pyproject.toml constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip,target=/root/.config/pip/pip.conf \
    python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > requirements.txt \
    && pip install -c constraints.txt -r requirements.txt

COPY README.md LICENSE ./
COPY app app
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=secret,id=pip,target=/root/.config/pip/pip.conf \
    pip wheel --no-deps --wheel-dir /wheels .

# Readable for the service's user whatever the checkout's umask, and writable for root alone.
COPY models /models
RUN chmod -R u=rwX,go=rX /models


FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="Innerloop" \
      org.opencontainers.image.description="Turns a handful of labelled examples into a personal model in milliseconds" \
      org.opencontainers.image.licenses="Apache-2.0"

# A fixed number, so that a volume or a bind mount can be given to this user from outside.
RUN groupadd --gid 10001 innerloop \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin innerloop \
    && install --directory --owner=innerloop --group=innerloop /data

COPY --from=builder /opt/innerloop /opt/innerloop
RUN --mount=type=bind,from=builder,source=/wheels,target=/mnt \
    /opt/innerloop/bin/pip install --no-cache-dir --no-index --no-deps /mnt/*.whl
COPY --from=builder /models /srv/innerloop/models

ENV PATH=/opt/innerloop/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    INNERLOOP_HOST=0.0.0.0 \
    INNERLOOP_DATA_DIR=/data \
    INNERLOOP_MODELS_DIR=/srv/innerloop/models

WORKDIR /srv/innerloop
USER 10001:10001
VOLUME /data
EXPOSE 8000
# The service drains on SIGTERM, for INNERLOOP_DRAIN_SECONDS: `docker stop` must wait longer than that.
STOPSIGNAL SIGTERM

# http.client, since urllib would ask a proxy of the environment even for this very container.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('INNERLOOP_PORT') or 8000), timeout=4); c.request('GET', '/health/ready'); sys.exit(c.getresponse().status != 200)"]

ENTRYPOINT ["innerloop"]
CMD ["serve"]
