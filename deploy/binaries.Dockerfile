# Builds the binaries of the images where Docker is and Go is not. `make image`
# takes them from /out for deploy/Dockerfile; the rest of this one is thrown away.
ARG GO_IMAGE=golang:1.26
FROM ${GO_IMAGE}
WORKDIR /src
COPY . .
RUN GOFLAGS=-buildvcs=false ./deploy/binaries /out
