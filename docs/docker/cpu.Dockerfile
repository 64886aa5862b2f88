# docker build -f docs/docker/cpu.Dockerfile -t slice3d:cpu .
# docker run --rm -v "$PWD:/data" slice3d:cpu segment study --organ liver --out out
FROM python:3.11-slim-bookworm

# Off-screen pictures need an OpenGL library, no display.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libegl1 libgl1 libxrender1 \
    && rm -rf /var/lib/apt/lists/*

# Linux wheels of torch bring CUDA libraries unless a CPU index is named: --build-arg TORCH_INDEX=… (the PyTorch site's
# "Get started" page shows its address).
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
ENV MPLBACKEND=Agg XDG_CACHE_HOME=/tmp/cache NUMBA_CACHE_DIR=/tmp/numba
ENTRYPOINT ["slice3d"]
CMD ["--help"]
