# One image for both words of SageMaker: `docker run IMAGE serve` and `docker run IMAGE train`.
# Good for BuildKit and for the classic builder. docs/image.md has the options, and what each part weighs.
ARG BASE=debian:trixie-slim

FROM ${BASE} AS builder
RUN apt-get update \
 && apt-get install -y --no-install-recommends binutils gcc libc6-dev python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*
# An index of your own is given by --build-arg; what is not given is not set.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/venv/bin:$PATH
COPY requirements /tmp/requirements
# pip compiles the bytecode. gunicorn's parser in C exists as source only and is built with the setuptools of the lock.
RUN python3 -m venv /opt/venv \
 && pip install --require-hashes --only-binary :all: -r /tmp/requirements/serve.txt \
 && pip install --require-hashes --no-build-isolation -r /tmp/requirements/image.txt
# A pretrained spaCy pipeline, for example en_core_web_sm.
ARG SPACY_MODEL=
RUN if [ -n "$SPACY_MODEL" ]; then python3 -m spacy download "$SPACY_MODEL" --no-deps; fi
# Debugging symbols, the libraries' own tests and the sources of compiled modules are 257 of 676 MB. Libraries in *.libs have been rewritten by the
# wheels' makers in a way that strip does not survive.
RUN cd /opt/venv/lib/python3*/site-packages \
 && find . -type d -name tests -prune -exec rm -rf {} + \
 && find . -type f '(' -name '*.pyx' -o -name '*.pxd' -o -name '*.c' -o -name '*.cpp' -o -name '*.h' -o -name '*.hpp' -o -name '*.pyi' ')' -delete \
 && find . -type f -name '*.so' ! -path '*.libs/*' -exec strip --strip-unneeded {} +
COPY . /opt/program
# Readable by any user, however the checkout's files were.
RUN rm -rf /opt/program/requirements \
 && chmod -R a+rX,go-w /opt/program /opt/venv \
 && python3 -m compileall -q /opt/program

FROM ${BASE} AS server
RUN apt-get update \
 && apt-get install -y --no-install-recommends nginx python3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/apt /var/log/dpkg.log
COPY --from=builder /opt/venv /opt/venv
COPY --from=builder /opt/program /opt/program
ENV PATH=/opt/program:/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /opt/program
EXPOSE 8080
LABEL com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true \
      com.amazonaws.sagemaker.capabilities.multi-models=true \
      org.opencontainers.image.title=berth \
      org.opencontainers.image.description="A bring-your-own-container model server for Amazon SageMaker" \
      org.opencontainers.image.licenses=Apache-2.0
# Exec form: the program itself is process 1 and gets the signals.
ENTRYPOINT ["python3", "-m", "container"]
CMD ["serve"]

# Beside what `server` has, a JRE and Multi Model Server. The same two words; any other is run as a command.
FROM server AS mms
RUN apt-get update \
 && apt-get install -y --no-install-recommends openjdk-21-jre-headless \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/apt /var/log/dpkg.log
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
COPY requirements/mms.txt /tmp/requirements/mms.txt
RUN export PYTHONDONTWRITEBYTECODE= PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
 && pip install --require-hashes --no-build-isolation -r /tmp/requirements/mms.txt \
 && rm -r /tmp/requirements
# Java would unpack Netty's library for unix sockets into /tmp, where it may not be loaded from if /tmp is mounted noexec.
RUN mkdir -p /usr/lib/jni \
 && python3 -c "import mms, pathlib, zipfile; \
      jar = zipfile.ZipFile(pathlib.Path(mms.__file__).parent / 'frontend' / 'model-server.jar'); \
      [pathlib.Path('/usr/lib/jni', pathlib.Path(name).name).write_bytes(jar.read(name)) for name in jar.namelist() if name.endswith('.so')]"
ENTRYPOINT ["python3", "-m", "container.dockerd_entrypoint"]
CMD ["serve"]

# What is built where no target is named.
FROM server
