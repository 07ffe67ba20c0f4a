# The service, small and without root: docker build -t etcd-actions .
#
# Where nothing can be reached while it is built, wheels come from the context:
#   pip wheel --wheel-dir build/wheels --constraint constraints.txt '.[blobs,cli,gateway,oidc,server,telemetry]'
#   docker build --build-arg PIP_NO_INDEX=1 --build-arg PIP_FIND_LINKS=/src/build/wheels .
# What reaches a store of blobs is chosen: docker build --build-arg PACKAGES=s3fs -t etcd-actions .
ARG PYTHON=python:3.13-slim

FROM ${PYTHON} AS build
ARG PIP_NO_INDEX=
ARG PIP_FIND_LINKS=
ARG PACKAGES=
COPY . /src
RUN python3 -m venv /opt/etcd-actions \
    && /opt/etcd-actions/bin/pip install --no-cache-dir --disable-pip-version-check \
        --constraint /src/constraints.txt '/src[blobs,cli,gateway,oidc,server,telemetry]' ${PACKAGES} \
    && /opt/etcd-actions/bin/pip uninstall --yes pip

FROM ${PYTHON}
COPY --from=build /opt/etcd-actions /opt/etcd-actions
# What is mounted here belongs to the user below: a folder for blobs, for instance.
RUN install --directory --owner=65532 --group=65532 /var/lib/etcd-actions
ENV PATH=/opt/etcd-actions/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    ETCD_ACTIONS_LISTEN=0.0.0.0:8091 \
    ETCD_ACTIONS_MONITORING_LISTEN=0.0.0.0:8092
USER 65532:65532
EXPOSE 8091 8092
HEALTHCHECK --interval=5s --timeout=4s --start-period=30s --retries=3 \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8092/readyz', timeout=3)"]
# As process 1 the command reaps what it adopts, and hands signals on: no init is needed.
STOPSIGNAL SIGTERM
ENTRYPOINT ["etcd-actions"]
CMD ["run"]
