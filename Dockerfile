# The program for a CPU, or with --build-arg JAX=cuda12 for NVIDIA GPUs:
#
#   docker build -t micdiffrep .
#   docker run --rm -v "$PWD":/runs micdiffrep --config=quickstart
#
# Runs, data sets and caches go to the current folder, mounted at /runs.
FROM python:3.11-slim

ARG JAX=cpu
WORKDIR /opt/micdiffrep_jax
COPY pyproject.toml setup.py README.md LICENSE constraints.txt requirements*.txt ./
COPY configs configs
COPY micdiffrep_jax micdiffrep_jax
RUN if [ "$JAX" = cpu ]; then extra=medical; else extra="medical,$JAX"; fi && \
  pip install --no-cache-dir -c constraints.txt ".[$extra]"

WORKDIR /runs
ENV XDG_CACHE_HOME=/runs/.cache
ENTRYPOINT ["python", "-m", "micdiffrep_jax.main"]
