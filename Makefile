# Two commands to know: `make demo` and `make test`. Each does the set-up that it needs.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
CARGO ?= cargo
# What packages.sh gets without root.
export PATH := $(CURDIR)/.tools/usr/bin:$(PATH)
DATA ?=
PARTS ?=

.PHONY: help deps plan-demo plan-test libtorch python build test test-cluster test-wheel wheel release lint lint-code \
  lint-tools oldest-rust licences spelling demo clean-demo gpu-bundle gpu-dataset gpu-check

help: ## Print this
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

demo: plan-demo libtorch ## From images to a kNN score and a page; DATA=/path/to/imagefolder takes your own
	$(CARGO) build
	@jobs/demo.sh $(if $(DATA),"$(DATA)")

test: plan-test libtorch ## Build and run all tests
	$(CARGO) test

deps: ## Get the compilers and tools that are missing: by apt as root, else into .tools
	@jobs/setup/packages.sh get

libtorch: deps ## Fetch libtorch 2.11.0 into .venv, unless LIBTORCH names one
	@jobs/setup/libtorch.sh

python: deps ## Make .venv-python, with which tests compare against PyTorch, pyarrow and others
	@jobs/setup/python.sh
	@jobs/setup/browser.sh

build: libtorch ## Build target/release/instdisc
	$(CARGO) build --release

test-cluster: deps libtorch ## Test on a real SLURM, real S3 servers, faults, Kubernetes pods (as root)
	$(if $(INSTDISC),,$(CARGO) build && jobs/wheel/build.sh dev)
	tests/cluster/run.py $(PARTS)

wheel: libtorch ## Build the wheel, target/wheels/release/instdisc-*.whl
	@jobs/wheel/build.sh

release: libtorch ## Make what a release publishes: wheel, context of the images, changes, checksums
	@wheel=$$(jobs/wheel/build.sh) && jobs/release.sh "$$wheel"

test-wheel: libtorch ## Build a wheel of the tests' programs and use it in a fresh environment
	@wheel=$$(jobs/wheel/build.sh dev) && jobs/wheel/test.sh "$$wheel"

lint: spelling lint-code oldest-rust licences ## Check spelling, format, lints, documentation, the oldest Rust, licences

lint-tools: ## Install what lint needs: the oldest Rust that Cargo.toml promises, cargo-deny, typos
	@jobs/setup/lint-tools.sh install

lint-code: libtorch
	$(CARGO) fmt --all --check
	$(CARGO) clippy --all-targets -- -D warnings
	$(CARGO) clippy --no-default-features --lib --bins -- -D warnings
	$(CARGO) clippy --package instdisc-fuzz --no-default-features -- -D warnings
	RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --no-deps --document-private-items

oldest-rust: deps
	@jobs/setup/lint-tools.sh oldest-rust

licences:
	@jobs/setup/lint-tools.sh licences

spelling:
	@jobs/setup/lint-tools.sh spelling

plan-demo plan-test: plan-%:
	@jobs/setup/plan.sh $*

clean-demo: ## Remove what the demo made, also of your own images
	rm -rf demo demo-own

gpu-bundle: wheel ## Pack program and checks for a machine with a GPU: target/gpu/gpu-bundle.tar.xz
	@jobs/gpu/bundle.sh

gpu-dataset: ## Pack DATA=/path/to/dataset for a command of its own: target/gpu/gpu-dataset.tar.xz
	@jobs/gpu/dataset.sh $(if $(DATA),"$(DATA)")

gpu-check: gpu-bundle ## Here, as there: PARTS='agree bench ranks train'; DEVICE=cpu tries it; PYTHON has torch
	cd target/gpu && for file in *.tar.xz; do python3 -m tarfile -e $$file; done && gpu-bundle/check.sh $(PARTS)
