//! Builds the shims over libtorch, and adds libtorch's folder to the binary's run path, so that
//! `LD_LIBRARY_PATH` is not needed.
//!
//! The files in `src/distributed/shim` that need only libtorch_cpu become a static library. The CUDA part
//! (NCCL, CUDA graphs) becomes a shared library that is embedded in the program and loaded on use, so the
//! program starts without CUDA.

use std::path::{Path, PathBuf};
use std::process::Command;

const SHIM: &str = "src/distributed/shim";
/// Shim for functions of libtorch that tch does not expose.
const MODEL_SHIM: &str = "src/model/libtorch/shim";
/// Headers that ProcessGroupNCCL.hpp needs, searched in the folders of NVIDIA's wheels.
const CUDA_HEADERS: [&str; 4] = ["nccl.h", "cuda_runtime.h", "crt/host_config.h", "nv/target"];

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-changed={SHIM}");
    println!("cargo:rerun-if-changed={MODEL_SHIM}");
    if std::env::var_os("CARGO_FEATURE_TORCH").is_none() {
        return;
    }
    for folder in run_path() {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
    }
    // Our objects contain libtorch's inline functions. Exported, they would keep `instdisc` from being linked
    // without libtorch.
    println!("cargo:rustc-link-arg-bin=instdisc=-Wl,--exclude-libs,ALL");
    let lib = std::env::var_os("DEP_TCH_LIBTORCH_LIB").expect("torch-sys tells where libtorch is");
    let lib = std::fs::canonicalize(lib).expect("libtorch is there");
    println!("cargo:rustc-env=INSTDISC_TORCH_VERSION={}", version(&lib));
    let cuda = std::env::var_os("CARGO_FEATURE_NCCL").map(|_| cuda_compiler(&lib));
    compiler(&lib)
        .file(format!("{SHIM}/store.cpp"))
        .file(format!("{SHIM}/gloo.cpp"))
        .file(format!("{SHIM}/group.cpp"))
        .file(format!("{SHIM}/reducer.cpp"))
        .file(format!("{SHIM}/batch_norm.cpp"))
        .file(format!("{SHIM}/emulated.cpp"))
        .compile("instdisc_c10d");
    compiler(&lib)
        .file(format!("{MODEL_SHIM}/operators.cpp"))
        .file(format!("{MODEL_SHIM}/lists.cpp"))
        .file(format!("{MODEL_SHIM}/transfer.cpp"))
        .compile("instdisc_model");
    if let Some(cuda) = cuda {
        build_cuda_part(&lib, cuda);
    }
}

/// Returns the version of libtorch according to its headers; empty if they lack it.
fn version(lib: &Path) -> String {
    let header = lib.with_file_name("include/torch/headeronly/version.h");
    println!("cargo:rerun-if-changed={}", header.display());
    let text = std::fs::read_to_string(header).unwrap_or_default();
    let number = |part: &str| {
        let name = format!("#define TORCH_VERSION_{part} ");
        text.lines().find_map(|line| line.strip_prefix(&name)).map(str::trim)
    };
    let parts = ["MAJOR", "MINOR", "PATCH"].map(number);
    parts.into_iter().collect::<Option<Vec<_>>>().map(|parts| parts.join(".")).unwrap_or_default()
}

/// Returns the folders in which a program looks for libtorch: the torch package of the environment that it is
/// installed into (venv, conda, `pip install --user`, Debian's pip), then those of INSTDISC_RUN_PATH,
/// separated by colons, or LIBTORCH's.
fn run_path() -> Vec<String> {
    println!("cargo:rerun-if-env-changed=INSTDISC_RUN_PATH");
    let packages = ["site-packages", "dist-packages"];
    let mut folders: Vec<String> = (10..=14)
        .flat_map(|minor| packages.map(|name| format!("$ORIGIN/../lib/python3.{minor}/{name}/torch/lib")))
        .collect();
    if let Ok(others) = std::env::var("INSTDISC_RUN_PATH") {
        folders.extend(others.split(':').filter(|folder| !folder.is_empty()).map(str::to_owned));
        return folders;
    }
    let Ok(libtorch) = std::env::var("LIBTORCH") else { return folders };
    let place = |name: &str| PathBuf::from(std::env::var_os(name).expect("cargo sets it"));
    let root = place("CARGO_MANIFEST_DIR");
    if Path::new(&libtorch) == root.join(".libtorch") && place("OUT_DIR").starts_with(root.join("target")) {
        // Relative to the checkout, so that no path of this machine is in a wheel; tests are one folder deeper.
        folders.extend(["$ORIGIN/../../.libtorch/lib", "$ORIGIN/../../../.libtorch/lib"].map(str::to_owned));
    } else {
        folders.push(Path::new(&libtorch).join("lib").display().to_string());
    }
    folders
}

fn compiler(lib: &Path) -> cc::Build {
    let include = lib.with_file_name("include");
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").pic(true).debug(false).opt_level(2).flag("-fvisibility=hidden");
    build.include(format!("{SHIM}/stand_in"));
    for folder in [include.join("torch/csrc/api/include"), include] {
        build.flag("-isystem").flag(&folder);
    }
    build
}

/// Fails if something is missing: a program without NCCL would only fail on the cluster.
fn cuda_compiler(lib: &Path) -> cc::Build {
    let folders = cuda_folders(lib);
    let headers =
        CUDA_HEADERS.map(|header| (header, folders.iter().any(|folder| folder.join(header).exists())));
    let missing = headers.into_iter().find(|(_, found)| !found).map(|(header, _)| header);
    let missing = missing.or((!lib.join("libtorch_cuda.so").exists()).then_some("libtorch_cuda.so"));
    if let Some(missing) = missing {
        panic!(
            "feature nccl: {missing} is neither in {} nor in {folders:?}. `make libtorch` fetches it, unless \
             LIBTORCH names another libtorch; NCCL_HOME and CUDA_HOME name other places of headers. Without \
             GPUs: --no-default-features --features torch",
            lib.display()
        );
    }
    let mut build = compiler(lib);
    for folder in &folders {
        build.flag("-isystem").flag(folder);
    }
    // Last, so that real headers win: ATen's headers need only a few names of cuBLAS, cuSPARSE and cuSOLVER.
    build.flag("-isystem").flag(format!("{SHIM}/stand_in/cuda"));
    build
}

fn build_cuda_part(lib: &Path, mut build: cc::Build) {
    let objects = build.file(format!("{SHIM}/cuda.cpp")).compile_intermediates();
    let part = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it")).join("libinstdisc_cuda.so");
    let mut link = build.get_compiler().to_command();
    link.args(["-shared", "-s", "-Wl,--no-as-needed", "-o"]).arg(&part).args(&objects);
    link.arg("-L").arg(lib).args(["-ltorch_cuda", "-lc10_cuda", "-ltorch_cpu", "-lc10"]);
    run(&mut link);
    println!("cargo:rustc-env=INSTDISC_CUDA_PART={}", part.display());
}

/// Returns folders that may contain the headers of NCCL and CUDA.
fn cuda_folders(lib: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for home in ["NCCL_HOME", "CUDA_HOME"] {
        println!("cargo:rerun-if-env-changed={home}");
        folders.extend(std::env::var_os(home).map(|home| Path::new(&home).join("include")));
    }
    // In wheels, site-packages/torch/lib is beside site-packages/nvidia.
    if let Some(packages) = lib.parent().and_then(Path::parent) {
        folders.extend(["nvidia/nccl/include", "nvidia/cu13/include"].map(|folder| packages.join(folder)));
    }
    folders.retain(|folder| folder.is_dir());
    folders
}

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}
