# The service for an existing Postgres and Redis (ACCOUNTING_DATABASE_URL, ACCOUNTING_REDIS_URL, or
# the same with _FILE for secrets). It contains no embedded servers: they would double its size, and a
# database inside would share the container's fate, be out of reach of backups, and prevent replacing
# the container while it runs. The page, the API and webhooks (extras web and webhooks) are in it.
#
#   make image      # tags it `turn-accounting`, also with its version
#   docker run -v turn-accounting:/data -e ACCOUNTING_DATABASE_URL=... -e ACCOUNTING_REDIS_URL=... turn-accounting

FROM python:3.12-slim AS build
WORKDIR /src
COPY requirements.lock requirements-build.lock ./
# Two environments: one for building, and one without pip that is shipped.
RUN python -m venv /build \
 && /build/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes \
        --requirement requirements-build.lock \
 && python -m venv --without-pip /venv \
 && /build/bin/pip --python /venv/bin/python install --no-cache-dir --disable-pip-version-check \
        --require-hashes --requirement requirements.lock
# For compiling what runs for every event (hatch_build.py).
RUN apt-get update \
 && apt-get install --yes --no-install-recommends gcc libc6-dev
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY accounting accounting
COPY migrations migrations
RUN ACCOUNTING_COMPILE=1 /build/bin/pip wheel --no-cache-dir --disable-pip-version-check --no-deps \
        --no-build-isolation --wheel-dir /dist . \
 && /build/bin/pip --python /venv/bin/python install --no-cache-dir --disable-pip-version-check \
        --no-deps /dist/*.whl
# What is in the environment, with licences. Stops where one is unknown.
COPY deploy/image/sbom.py deploy/image/sbom.py
RUN mkdir -p /venv/share/turn-accounting \
 && /venv/bin/python deploy/image/sbom.py /venv/lib/python*/site-packages \
        > /venv/share/turn-accounting/sbom.cdx.json

FROM python:3.12-slim
ARG VERSION
LABEL org.opencontainers.image.title=turn-accounting \
      org.opencontainers.image.version=$VERSION
# The group 0 may write there, as any user that OpenShift chooses is of it.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /data --shell /usr/sbin/nologin turn-accounting \
 && install -d -o turn-accounting -g 0 -m 0770 /data
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    ACCOUNTING_DATA_DIR=/data
# Numeric, so that Kubernetes can verify that it is not root.
USER 10001:10001
WORKDIR /data
# The spool: events between Redis and Postgres. Losing it causes a capture gap.
VOLUME /data
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD ["python", "-m", "accounting", "health"]
ENTRYPOINT ["turn-accounting"]
CMD ["up"]
