# MinIO no longer publishes images; this one is built from the same pinned source that the tests use.
FROM golang:1.25 AS build
RUN CGO_ENABLED=0 go install github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c

FROM gcr.io/distroless/static
COPY --from=build /go/bin/minio /minio
EXPOSE 9000 9001
ENTRYPOINT ["/minio"]
