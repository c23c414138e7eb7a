# fl-lightning on the torch of an official image, for GPUs and CPUs alike:
#
#   docker build -t fl-lightning .
#   docker run --rm --gpus all --ipc host -v "$PWD/runs:/home/fl/runs" fl-lightning fit --config configs/quickstart.yaml
#
# All GPUs of a node: add `--entrypoint launch/torchrun.sh` before the image's name. The mounted folder must be writable for
# the user in the image, number 1000 unless built with --build-arg USER_ID="$(id -u)".
ARG BASE=pytorch/pytorch:2.11.0-cuda13.0-cudnn9-runtime
FROM ${BASE}

# pip may write to a system's Python in this image; there is nothing else on it.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 \
    PYTHONUNBUFFERED=1 \
    OMP_NUM_THREADS=1

COPY pyproject.toml README.md LICENSE /src/
COPY fl_lightning /src/fl_lightning
# What the package's links point at: it ships them.
COPY configs /src/configs
COPY launch /src/launch
# The image's torch is kept: pip stops if the package's range does not hold it.
RUN python3 -c 'import torch; print(f"torch=={torch.__version__}")' > /tmp/torch.txt \
    && python3 -m pip install --no-cache-dir --constraint /tmp/torch.txt /src \
    && rm -rf /src /tmp/torch.txt

# Some base images have a user of that number already, which will do.
ARG USER_ID=1000
RUN (id -u "${USER_ID}" || useradd --no-create-home --uid "${USER_ID}" fl) \
    && mkdir -p /home/fl/runs \
    && chown -R "${USER_ID}" /home/fl
ENV HOME=/home/fl
WORKDIR /home/fl
COPY configs configs
COPY launch launch

USER ${USER_ID}
ENTRYPOINT ["fl-lightning"]
CMD ["--help"]
