# syntax=docker/dockerfile:1.10
# What stages run in on Vertex AI: this package's rooms below the backends and what they need, without Airflow, in the
# versions of requirements.lock. Built from the repository: docker build -f docker/stage.Dockerfile .
# A team's own libraries: --build-arg REQUIREMENTS=FILE, a file of the build's context.
ARG PYTHON=3.12.13

FROM python:${PYTHON}-slim-bookworm AS build
ENV UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy
RUN pip install --no-cache-dir uv==0.13.9 && uv venv /opt/venv
WORKDIR /src
# The libraries change seldom and are a layer of their own.
COPY pyproject.toml requirements.lock docker/stage_requirements.py ./
RUN python stage_requirements.py > needed.txt \
    && uv pip install --no-cache --python /opt/venv/bin/python --compile-bytecode --no-build \
        --requirements needed.txt --constraints requirements.lock
# Resolved together with what the stages need, as in a runtime; an empty file changes nothing.
ARG REQUIREMENTS=docker/stage_requirements.txt
COPY ${REQUIREMENTS} team.txt
RUN uv pip install --no-cache --python /opt/venv/bin/python --compile-bytecode \
        --requirements team.txt --requirements needed.txt
COPY README.md LICENSE ./
COPY airflow_mlops airflow_mlops
# The command line needs what the workers have.
RUN uv pip install --no-cache --python /opt/venv/bin/python --compile-bytecode \
        --no-deps --build-constraints requirements.lock . \
    && rm /opt/venv/bin/airflow-mlops

FROM python:${PYTHON}-slim-bookworm
# Trials of a search report to a file below /var/hypertune.
RUN useradd --uid 50000 --gid 0 --create-home --home-dir /home/stage --shell /usr/sbin/nologin stage \
    && install --directory --owner 50000 --group 0 --mode 0775 /var/hypertune
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONSAFEPATH=1 \
    MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR=false
USER 50000:0
WORKDIR /home/stage
ENTRYPOINT ["python", "-m", "airflow_mlops.google.job"]
