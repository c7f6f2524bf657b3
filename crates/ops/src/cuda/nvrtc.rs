//! The kernels, compiled by NVRTC for the GPU at hand and kept on disk.
//!
//! Compiling takes seconds; what came out is read from `$XDG_CACHE_HOME/zoo/kernels` (else `~/.cache/zoo/kernels`) by later
//! processes, under a name made of the source, of NVRTC's version and of the architecture. The folder may be removed at
//! any time, and where it cannot be written the kernels are compiled in every process.

#![expect(unsafe_code, reason = "NVRTC's interface is C")]

use super::source;
use candle_core::cuda_backend::cudarc::driver::{CudaContext, CudaFunction, CudaModule};
use candle_core::cuda_backend::cudarc::nvrtc::{Ptx, result, sys};
use candle_core::cuda_backend::{CudaDevice, DeviceId, WrapErr};
use candle_core::{Result, bail};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The kernels on one device, and those functions of them that were launched.
struct Kernels {
    module: Arc<CudaModule>,
    functions: HashMap<String, CudaFunction>,
}

thread_local! {
    static KERNELS: RefCell<HashMap<DeviceId, Kernels>> = RefCell::new(HashMap::new());
}

/// A kernel on a device. The first call of a thread loads all of them, which compiles them unless they are on disk.
///
/// # Errors
/// If they cannot be compiled or loaded, or there is no such kernel.
pub(super) fn function(device: &CudaDevice, name: &str) -> Result<CudaFunction> {
    KERNELS.with_borrow_mut(|kernels| {
        let kernels = match kernels.entry(device.id()) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(new) => {
                let module = load(device.cuda_stream().context())?;
                new.insert(Kernels { module, functions: HashMap::new() })
            }
        };
        if let Some(function) = kernels.functions.get(name) {
            return Ok(function.clone());
        }
        let function = kernels.module.load_function(name).w()?;
        kernels.functions.insert(name.to_owned(), function.clone());
        Ok(function)
    })
}

/// The kernels for the device of a context: machine code where NVRTC knows its architecture, else PTX, which its driver
/// compiles.
fn load(context: &Arc<CudaContext>) -> Result<Arc<CudaModule>> {
    let (major, minor) = context.compute_capability().w()?;
    let capability = major * 10 + minor;
    let source = source::cuda();
    let file = cached(&source, capability)?;
    if let Some(file) = &file
        && let Ok(image) = std::fs::read(file)
    {
        match context.load_module(Ptx::from_binary(image)) {
            Ok(module) => return Ok(module),
            // A file that is damaged is written anew.
            Err(_) => drop(std::fs::remove_file(file)),
        }
    }
    let image = match compile(&source, &format!("sm_{capability}"))? {
        Compiled::Image(image) => {
            if let Some(file) = &file {
                // The next process compiles again if it cannot be kept.
                let _ = keep(file, &image);
            }
            image
        }
        // NVRTC is older than the GPU.
        Compiled::UnknownArchitecture => {
            let newest = if major >= 9 { "compute_90" } else { "compute_80" };
            match compile(&source, newest)? {
                Compiled::Image(image) => image,
                Compiled::UnknownArchitecture => {
                    bail!("NVRTC is too old for the kernels: it does not know {newest}")
                }
            }
        }
    };
    context.load_module(Ptx::from_binary(image)).w()
}

enum Compiled {
    /// Machine code for `sm_…`, PTX with a zero behind it for `compute_…`.
    Image(Vec<u8>),
    UnknownArchitecture,
}

/// The source's image for an architecture.
fn compile(source: &str, architecture: &str) -> Result<Compiled> {
    let Ok(text) = CString::new(source) else { bail!("a zero in the kernels' source") };
    let failed =
        |what: &str| candle_core::Error::msg(format!("the kernels cannot be compiled by NVRTC: {what}"));
    let program =
        result::create_program(&text, Some(c"zoo.cu")).map_err(|error| failed(&format!("{error:?}")))?;
    let machine_code = architecture.starts_with("sm_");
    // SAFETY: the program was just created and is destroyed below, after its last use; the image has as many bytes as
    // NVRTC says before it writes them.
    let compiled = unsafe {
        let options = [format!("--gpu-architecture={architecture}")];
        match result::compile_program(program, &options) {
            Ok(()) if machine_code => {
                let mut bytes = 0;
                let size = sys::nvrtcGetCUBINSize(program, &raw mut bytes).result();
                let mut image = vec![0u8; bytes];
                size.and_then(|()| sys::nvrtcGetCUBIN(program, image.as_mut_ptr().cast()).result())
                    .map(|()| Compiled::Image(image))
                    .map_err(|error| failed(&format!("{error:?}")))
            }
            Ok(()) => result::get_ptx(program)
                .map(|ptx| Compiled::Image(ptx.into_iter().map(|byte| byte as u8).collect()))
                .map_err(|error| failed(&format!("{error:?}"))),
            Err(error) if error.0 == sys::nvrtcResult::NVRTC_ERROR_INVALID_OPTION => {
                Ok(Compiled::UnknownArchitecture)
            }
            Err(error) => {
                let log = result::get_program_log(program).unwrap_or_default();
                let log: String =
                    log.into_iter().map(|byte| byte as u8 as char).take_while(|&c| c != '\0').collect();
                Err(failed(log.lines().next().unwrap_or(&format!("{error:?}"))))
            }
        }
    };
    // SAFETY: as above.
    let _ = unsafe { result::destroy_program(program) };
    compiled
}

/// The file for the kernels of a source on an architecture; `None` where there is no folder for it.
fn cached(source: &str, capability: i32) -> Result<Option<PathBuf>> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: two numbers are written.
    if let Err(error) = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) }.result() {
        bail!("NVRTC cannot be used: {error:?}");
    }
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let caches = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    let name = format!("{:016x}-nvrtc{major}.{minor}-sm_{capability}.cubin", fnv1a(source.as_bytes()));
    Ok(caches.map(|caches| caches.join("zoo/kernels").join(name)))
}

/// The hash FNV-1a of 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Writes a file that appears whole or not at all.
fn keep(file: &Path, image: &[u8]) -> std::io::Result<()> {
    let Some(folder) = file.parent() else { return Ok(()) };
    std::fs::create_dir_all(folder)?;
    let own = file.with_extension(format!("{}.new", std::process::id()));
    std::fs::write(&own, image)?;
    std::fs::rename(&own, file).inspect_err(|_| drop(std::fs::remove_file(&own)))
}
