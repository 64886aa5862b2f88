# docker build -f docs/docker/gpu.Dockerfile -t slice3d:gpu .
# docker run --rm --gpus all -v "$PWD:/data" slice3d:gpu segment study --organ liver --out out
FROM python:3.11-slim-bookworm

# Off-screen pictures need an OpenGL library, no display.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libegl1 libgl1 libxrender1 \
    && rm -rf /var/lib/apt/lists/*

# The Linux wheels of torch bring their own CUDA libraries; the host brings the driver and the NVIDIA container toolkit.
# Another CUDA version: --build-arg TORCH_INDEX=… (the PyTorch site's "Get started" page shows the addresses).
ARG TORCH_INDEX=""
COPY constraints.txt /build/
RUN pip install --no-cache-dir --constraint /build/constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch

COPY pyproject.toml README.md LICENSE /build/
COPY slice3d /build/slice3d
RUN pip install --no-cache-dir --constraint /build/constraints.txt /build \
    && rm -rf /build

# Results belong to whoever owns this number; run with --user "$(id -u):$(id -g)" to own them yourself.
RUN useradd --create-home --uid 1000 slice3d
USER slice3d
WORKDIR /data
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENV MPLBACKEND=Agg XDG_CACHE_HOME=/tmp/cache NUMBA_CACHE_DIR=/tmp/numba
ENTRYPOINT ["slice3d"]
CMD ["--help"]
