# Everything a developer or a user types. `make` builds, lints and tests; `make help` lists the rest.

SHELL := /bin/bash
GO ?= go
# The race detector needs a C compiler; without one the tests still run.
RACE ?= $(shell command -v gcc >/dev/null 2>&1 && echo -race)
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X github.com/heddle-mesh/heddle/internal/life.version=$(VERSION)
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

.PHONY: all help build test test-root h2spec lint images kubehost kube-up kube-down kubeconfig e2e-images kube-load test-e2e lint-e2e demo bench microbench fuzz clean

all: build lint test ## build, lint and test

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build bin/heddle, bin/heddled, bin/heddle-proxy and the demo services
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/... ./examples/...

test: ## run all tests that need nothing but Go and this checkout
	$(GO) test $(RACE) ./...

test-root: build ## run the tests that need root: namespaces, redirection, the local mesh
	$(GO) test $(RACE) -count=1 -p 1 -timeout 15m -tags heddle_root ./internal/redirect/... ./internal/lab/... ./test/...

h2spec: ## run the HTTP/2 conformance suite against the codec
	cd test/h2spec && $(GO) test ./...

lint: ## check format, vet and staticcheck
	@out=$$(gofmt -l cmd internal test tools bench examples api 2>/dev/null); if [ -n "$$out" ]; then echo "not gofmt-ed:"; echo "$$out"; exit 1; fi
	$(GO) vet -tags heddle_root ./...
	$(GO) run $(STATICCHECK) -tags heddle_root ./...

images: ## write OCI archives of heddled and heddle-proxy into bin/images, for amd64 and arm64
	cd tools/images && $(GO) build -trimpath -o ../../bin/tool-images .
	bin/tool-images -o bin/images -version $(VERSION)

# A real Kubernetes on this machine, as root; docs/kubernetes-tests.md.
CLUSTER ?= e2e
KUBE_UP_FLAGS ?=
KUBEHOST := bin/kubehost

kubehost:
	@cd test/e2e/host && $(GO) build -trimpath -o ../../../$(KUBEHOST) .

kube-up: kubehost ## bring up the Kubernetes cluster named CLUSTER (KUBE_UP_FLAGS: -nodes 2 -dual ...)
	@$(KUBEHOST) up -name $(CLUSTER) $(KUBE_UP_FLAGS)

kube-down: kubehost ## end the cluster CLUSTER and remove all of it but its logs
	@$(KUBEHOST) down -name $(CLUSTER)

kubeconfig: kubehost ## print the path of CLUSTER's kubeconfig
	@$(KUBEHOST) kubeconfig -name $(CLUSTER)

e2e-images:
	@cd tools/images && $(GO) build -trimpath -o ../../bin/tool-images .
	@bin/tool-images -o bin/load -tests -arch $$($(GO) env GOARCH) -version $(VERSION)

kube-load: kubehost e2e-images ## build all images for this machine and load them into CLUSTER
	@$(KUBEHOST) load -name $(CLUSTER) bin/load/*.tar

test-e2e: build kubehost e2e-images ## run the tests on real Kubernetes clusters, as root
	cd tools/images && $(GO) test ./...
	cd test/e2e/host && $(GO) test ./...
	$(KUBEHOST) build
	cd test/e2e && $(GO) test -count=1 -timeout 30m -tags heddle_e2e ./...

lint-e2e: ## vet and staticcheck the modules beside the main one that test-e2e is made of
	@set -e; for m in tools/images test/e2e test/e2e/host; do echo $$m; (cd $$m && \
	  $(GO) vet -tags heddle_e2e ./... && $(GO) run $(STATICCHECK) -tags heddle_e2e ./...); done

demo: build ## run the bookstore mesh on this machine; Ctrl-C ends it
	@PATH="$(CURDIR)/bin:$$PATH" bin/heddle up examples/bookstore

bench: build ## measure the data plane beside HAProxy and nginx, about 15 minutes
	$(GO) run ./bench/compare -bin bin

microbench: ## run the Go benchmarks; compare with benchstat
	$(GO) test -run '^$$' -bench . -benchmem ./bench/... ./internal/...

FUZZTIME ?= 20s
fuzz: ## run every fuzz target for FUZZTIME each
	@set -e; for pkg in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "$$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$pkg; \
	  done; done

clean: ## remove what build made
	rm -rf bin
