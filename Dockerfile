# The server of Plait on a CPU: docker run -p 8000:8000 -e PLAIT_API_KEY=... plait --embed nano
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY src ./src
# the CPU build of torch: the default one brings several GB of CUDA
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python -m venv /opt/plait \
    && /opt/plait/bin/pip install --no-cache-dir --extra-index-url "${TORCH_INDEX}" ".[serve,media,search,chat]"

FROM python:3.12-slim
COPY --from=build /opt/plait /opt/plait
# no rights of root, and one place that is written: models and known vectors
RUN useradd --create-home --uid 10001 plait && mkdir /models && chown plait /models
USER plait
ENV PATH=/opt/plait/bin:$PATH PLAIT_CACHE=/models PYTHONUNBUFFERED=1
WORKDIR /models
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# SIGTERM lets what runs finish
ENTRYPOINT ["plait", "serve", "--host", "0.0.0.0", "--port", "8000"]
