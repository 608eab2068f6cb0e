# syntax=docker/dockerfile:1
# vit-audit in a container. `docker build --target cpu .` or `--target cuda .`; docs/how-to/container.md.

ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY audit audit
COPY vit_audit vit_audit
COPY templates templates
COPY datasets datasets
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# What both have in common. WeasyPrint prints the PDF with Pango, which pip cannot install.
FROM python:${PYTHON}-slim-bookworm AS base
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        libpango-1.0-0 libpangoft2-1.0-0 libharfbuzz-subset0 fonts-dejavu-core \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 10001 auditor && install --directory --owner auditor /audits /var/cache/vit-audit
COPY --from=wheel /wheels /wheels
ENV PYTHONUNBUFFERED=1 VIT_AUDIT_CACHE=/var/cache/vit-audit
WORKDIR /audits
ENTRYPOINT ["vit-audit"]
CMD ["--help"]
# The demonstration's card: its faces are drawn, counted and split, and nothing is trained.
HEALTHCHECK --interval=5m --timeout=2m --start-period=1m --retries=2 \
    CMD vit-audit check synthetic-expressions

FROM base AS cpu
ARG EXTRAS=hf,onnx,excel,sign
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "torch>=2.6" "torchvision>=0.21"
RUN pip install --no-cache-dir "$(echo /wheels/vit_audit-*.whl)[${EXTRAS}]"
USER auditor

# Torch's own wheels bring CUDA's libraries; the machine brings the driver and the NVIDIA container toolkit.
FROM base AS cuda
ARG EXTRAS=hf,onnx,excel,sign
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN pip install --no-cache-dir "$(echo /wheels/vit_audit-*.whl)[${EXTRAS}]"
USER auditor
