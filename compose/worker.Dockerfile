# The worker image. Build it from the root of the repository.
FROM python:3.12-slim
WORKDIR /app
COPY requirements.lock pyproject.toml README.md ./
RUN pip install --no-cache-dir uv==0.13.9 && uv pip install --system --no-cache --require-hashes -r requirements.lock
COPY zimage_stream zimage_stream
COPY producers producers
COPY consumers consumers
COPY schemas schemas
RUN uv pip install --system --no-deps --no-build-isolation . && useradd --create-home zimage \
    && mkdir /models && chown zimage /models
USER zimage
EXPOSE 9464
ENTRYPOINT ["zimage"]
# One container, one GPU: the container runtime is the supervisor.
CMD ["worker", "--no-supervise"]
