# The relay as an image: `docker build -t sse-relay .`; docs/deploy.md says how to run it.
# Nothing is fetched but the two images below and what requirements/ pins by hash.

# The Python that the tests run on. What takes another one has to be tested with it.
ARG PYTHON=3.11

# `all` adds what the extras need: traces (docs/tracing.md).
ARG REQUIREMENTS=core

# The large variant, for `strip`: some wheels carry 24 MB of symbols. Of this stage only /opt/sse-relay goes on.
FROM python:${PYTHON}-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src

# Without a pip of its own: this stage's installs into it, and the image's environment has none.
RUN python -m venv --without-pip /opt/sse-relay
ENV PATH=/opt/sse-relay/bin:$PATH

# First what seldom changes. Wheels alone: a source package would run its own code here, and want a compiler.
ARG REQUIREMENTS
COPY requirements/core.txt requirements/all.txt requirements/
RUN /usr/local/bin/pip --python /opt/sse-relay/bin/python install --no-compile --only-binary :all: \
        --require-hashes -r requirements/${REQUIREMENTS}.txt \
    && find /opt/sse-relay -name '*.so*' -type f -exec strip --strip-unneeded {} +

# setuptools is in the lock to build this one wheel; then it goes.
COPY pyproject.toml README.md LICENSE ./
COPY app app
RUN /usr/local/bin/pip --python /opt/sse-relay/bin/python install --no-compile --no-deps \
        --no-build-isolation . \
    && /usr/local/bin/pip --python /opt/sse-relay/bin/python uninstall --yes setuptools


# The image's tree. An image whose relay cannot answer is not built; and what is imported here is thereby compiled, the
# standard library too, which comes without bytecode. On a read-only root it could not be later (a probe would take four
# times as long), and all modules of all packages would be twice as much. Then goes what could install or compile.
FROM python:${PYTHON}-slim-bookworm AS tree
ARG PYTHON
COPY --from=build /opt/sse-relay /opt/sse-relay
RUN /opt/sse-relay/bin/sse-relay demo --once \
    && /opt/sse-relay/bin/python -c \
        'import app.elsewhere, app.log.sharing, app.quotas.server, http.client, uvicorn.main' \
    && cd /usr/local/lib/python${PYTHON} \
    && rm -rf /usr/local/bin/pip* /usr/local/include site-packages/* ensurepip idlelib lib2to3 pydoc_data turtledemo


# From nothing, with that tree as the one layer: what was removed takes no room, and nobody finds it in a layer below.
FROM scratch
LABEL org.opencontainers.image.title="sse-relay" \
      org.opencontainers.image.description="Relays OpenAI-compatible chat streams as server-sent events" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT"

COPY --from=tree / /
ENV PATH=/opt/sse-relay/bin:/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

# In a container loopback reaches nobody. The relay refuses to listen here until callers have keys (relay.toml), or
# RELAY_ALLOW_ANONYMOUS=true says that they need none.
ENV RELAY_HOST=0.0.0.0

# relay.toml is read here. Nothing is ever written: the root may be read-only.
WORKDIR /srv

# A number, which Kubernetes can tell from root; there is no such user, and nothing belongs to it.
USER 10001:10001
EXPOSE 8000

# Not with urllib, which would ask the proxy of HTTP_PROXY.
HEALTHCHECK --interval=5s --timeout=4s --start-period=30s --retries=3 CMD ["python", "-c", "\
import http.client, os; \
relay = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('RELAY_PORT') or 8000), timeout=3); \
relay.request('GET', '/healthz'); \
raise SystemExit(relay.getresponse().status != 200)"]

# Without a shell in between, so that SIGTERM reaches the relay, which then drains.
STOPSIGNAL SIGTERM
ENTRYPOINT ["sse-relay"]
CMD ["serve"]
