# A worker: the service's image with the executor, and Flyte's SDK with what tasks import.
#
#   docker build -t etcd-actions .
#   docker build -t etcd-actions-worker --build-arg SDK="flyte torch" -f docs/deploy/worker.Dockerfile .
#
# The SDK is in an environment of its own: it needs an older connectrpc than the service.
FROM etcd-actions:latest
ARG SDK=flyte
USER root
RUN python3 -m venv /opt/sdk \
    && /opt/sdk/bin/pip install --no-cache-dir --disable-pip-version-check ${SDK} \
    && /opt/sdk/bin/pip --python /opt/etcd-actions/bin/python3 install --no-cache-dir \
        --disable-pip-version-check 'psutil>=7'
ENV ETCD_ACTIONS_PYTHON=/opt/sdk/bin/python
USER 65532:65532
CMD ["worker"]
