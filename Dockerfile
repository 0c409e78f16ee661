# GPU image: NVIDIA's PyTorch container with this package on top.
#
#   docker build -t pretrain-phd .
#   docker run --gpus all --ipc=host --ulimit memlock=-1 -it --user "$(id -u):$(id -g)" --env HOME=/tmp \
#     -v "$PWD/runs:/home/phd/runs" pretrain-phd
#
# --user: so that what a run writes into a mounted folder can be written, and is yours. Hence the open home below.
#
# 26.06 has Python 3.12, CUDA 13.3, torch 2.13 and Transformer Engine 2.16, built for each other (the package's own "gpu" extra is for machines without the image); another base
# needs Python 3.12+ and torch 2.11+:  docker build --build-arg BASE=nvcr.io/nvidia/pytorch:26.05-py3 .
#
# A base without NVIDIA's apex works: Megatron takes the fused Adam of Transformer Engine first, then apex's,
# then torch's AdamW. Only apex's weight-gradient kernel has no stand-in: without it pretrain_phd.py adds
# gradients up in a step of its own (the start-up line says so).
# Never `pip install apex`: the package index has another project under that name.
ARG BASE=nvcr.io/nvidia/pytorch:26.06-py3
FROM ${BASE}

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# The base's own constraints pin every package it holds, also older versions of what we depend on. These take
# their place and pin only what was compiled against the base's CUDA and torch. (`pip list`, because `pip freeze`
# names a package that was built in the image by its file instead of its version.)
ENV PIP_CONSTRAINT=/opt/base-constraints.txt \
    PIP_BREAK_SYSTEM_PACKAGES=1
RUN PIP_CONSTRAINT='' pip list --format=freeze \
    | grep -iE '^(torch|torchvision|(pytorch-)?triton|transformer.engine.*|apex|flash.attn|numpy|nvidia-.*)==' \
    | tee /opt/base-constraints.txt

WORKDIR /opt/pretrain-phd
# What it depends on first: a change of the code does not download it again. The last line fails the build if the
# installation has replaced anything of the base.
COPY pyproject.toml README.md LICENSE ./
RUN pip install --no-cache-dir -e '.[dev]' \
    && pip list --format=freeze | grep -Fxf /opt/base-constraints.txt | diff - /opt/base-constraints.txt
COPY . .
RUN pip install --no-cache-dir --no-deps -e . \
    && useradd --create-home --uid 10001 phd \
    && chmod 755 /home/phd
# A number, so that a cluster can tell that it is not root.
USER 10001
WORKDIR /home/phd
# Needed by Megatron for overlapping communication with tensor parallelism on GPUs before Blackwell.
ENV CUDA_DEVICE_MAX_CONNECTIONS=1
# torch names this folder after the user. Over one whom the image does not know (--user) 2.11 fails.
ENV TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor
CMD ["bash"]
