# gradsieve in a container.
#   docker build -t gradsieve:cpu .
#   docker build -t gradsieve:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .
#   docker run --rm -v "$PWD:/work" gradsieve:cpu run recipe.yaml --out runs/first     (--gpus all for CUDA)
ARG PYTHON=3.12
FROM python:${PYTHON}-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Triton compiles its launcher with a C compiler.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir --index-url ${TORCH_INDEX} torch
COPY pyproject.toml README.md LICENSE /src/
COPY src /src/src
RUN pip install --no-cache-dir '/src[baselines,evaluate]'
RUN useradd --create-home user
USER user
WORKDIR /work
ENTRYPOINT ["gradsieve"]
