# The same lock files and commands as `make setup` and `bapo serve`; hardly a line of its own.
#   docker build -t bapo-server .                        CPU
#   docker build --build-arg DEVICE=gpu -t bapo-server . CUDA (run with --gpus all)
#   docker run -p 8000:8000 -v bapo:/data bapo-server
FROM python:3.11-slim

ARG DEVICE=cpu
# vLLM's CPU build is linked with libnuma, and compiles a few kernels at first use.
RUN apt-get update && apt-get install -y --no-install-recommends g++ libnuma1 && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY requirements requirements
COPY pyproject.toml README.md bapo.py ./
COPY adapters adapters
COPY server server
COPY training training
COPY models models
RUN PIP_NO_CACHE_DIR=1 requirements/install.sh "$DEVICE"

RUN useradd --create-home --uid 10001 bapo && mkdir /data && chown bapo /data
USER bapo
ENV BAPO_HOST=0.0.0.0 BAPO_PORT=8000 BAPO_DATA_DIR=/data
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s \
    CMD python -c "import os, urllib.request as u; u.urlopen(f'http://127.0.0.1:{os.environ[\"BAPO_PORT\"]}/health/ready')"
ENTRYPOINT ["bapo"]
CMD ["serve"]
