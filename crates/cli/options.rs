//! The options that every subcommand takes.

use crate::number::count;
#[cfg(feature = "metal")]
use anyhow::Context as _;
use anyhow::{Result, bail};
use candle_core::{DType, Device};
use clap::{ArgAction, Args, ValueEnum};
use std::str::FromStr;
use zoo_trainer::Membership;

/// Options of every subcommand.
#[derive(Debug, Args)]
#[command(next_help_heading = "Common options")]
pub(crate) struct Common {
    /// Where to compute: auto, cpu, cuda, cuda:N or metal; auto takes the best there is
    #[arg(long, global = true, value_name = "DEVICE", default_value = "auto")]
    device: DeviceChoice,
    /// Number type of the feature maps: f32, or bf16 for more speed and less memory; f16 on GPUs
    /// [default: f32]
    #[arg(long, global = true, value_name = "TYPE", hide_possible_values = true)]
    dtype: Option<DTypeChoice>,
    /// CPU threads to use; all cores if not given. The results do not depend on it
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Convolve as exactly as direct sums in f32 do, without Winograd's F(4×4, 3×3); slower
    #[arg(long, global = true)]
    strict_f32: bool,
    /// The number that all random choices come from; the same seed gives the same result [default: 0]
    #[arg(long, global = true, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Print one JSON value on stdout instead of text for people
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// No progress and no notes, only results, warnings and errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// More about what is going on, on stderr
    #[arg(short, long, global = true, action = ArgAction::SetTrue)]
    pub(crate) verbose: bool,
}

/// What `--device` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DeviceChoice {
    Auto,
    Cpu,
    /// With its number, if given.
    Cuda(Option<usize>),
    Metal,
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(None)),
            "metal" => Ok(Self::Metal),
            _ => match text.strip_prefix("cuda:").and_then(|index| index.parse().ok()) {
                Some(index) => Ok(Self::Cuda(Some(index))),
                None => Err("expected auto, cpu, cuda, cuda:N or metal".into()),
            },
        }
    }
}

/// What `--dtype` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DTypeChoice {
    F32,
    Bf16,
    F16,
}

impl Common {
    /// Fixes the number of CPU threads: what the command line says, else `otherwise`, else one for each core.
    /// Must run before the first tensor exists, once, on the thread that will compute.
    ///
    /// # Errors
    /// If the thread pool cannot be built.
    pub(crate) fn apply_threads(&self, otherwise: Option<usize>) -> Result<()> {
        let given = self.threads.map(usize::from).or(otherwise);
        Ok(zoo_ops::set_threads(given.unwrap_or_else(|| self.threads()))?)
    }

    /// Whether `--strict-f32` is given.
    pub(crate) fn strict_f32(&self) -> bool {
        self.strict_f32
    }

    /// The number of CPU threads in use.
    pub(crate) fn threads(&self) -> usize {
        match self.threads {
            Some(threads) => threads.into(),
            None => {
                let all = std::thread::available_parallelism().map_or(1, usize::from);
                // What a launcher says of the processes that share this machine: ours, torchrun.
                let here = std::env::var("LOCAL_WORLD_SIZE").ok().and_then(|n| n.parse().ok());
                (all / here.filter(|&n| n > 0).unwrap_or(1)).max(1)
            }
        }
    }

    /// The number of CPU threads, if given.
    pub(crate) fn threads_given(&self) -> Option<usize> {
        self.threads.map(usize::from)
    }

    /// The seed, 0 unless given.
    pub(crate) fn seed(&self) -> u64 {
        self.seed.unwrap_or(0)
    }

    /// The device to compute on; of several processes on one machine each has its own GPU.
    ///
    /// # Errors
    /// If this build or machine does not have it.
    pub(crate) fn device(&self) -> Result<Device> {
        let own = Membership::from_env()?.map(|membership| membership.local_rank);
        match self.device {
            DeviceChoice::Cpu => Ok(Device::Cpu),
            DeviceChoice::Auto => best_device(own.unwrap_or(0)),
            DeviceChoice::Cuda(Some(_)) if own.is_some() => {
                bail!("several processes cannot share a GPU; --device cuda gives each its own")
            }
            DeviceChoice::Cuda(Some(index)) => cuda(index),
            DeviceChoice::Cuda(None) => own_cuda(own.unwrap_or(0)),
            DeviceChoice::Metal => metal(),
        }
    }

    /// What computes: `cpu, 2 threads`, with more than one process `4 processes, each cpu, 2 threads`.
    pub(crate) fn compute(&self, device: &Device, threads: Option<usize>, processes: usize) -> String {
        let threads = count(threads.unwrap_or_else(|| self.threads()), "thread");
        let one = format!("{}, {threads}", device_name(device));
        if processes > 1 { format!("{processes} processes, each {one}") } else { one }
    }

    /// The element type of feature maps on a device, f32 unless given.
    ///
    /// # Errors
    /// If the device does not compute in it.
    pub(crate) fn dtype(&self, device: &Device) -> Result<DType> {
        let dtype = self.dtype_given().unwrap_or(DType::F32);
        check_dtype(dtype, device)?;
        Ok(dtype)
    }

    /// The element type of feature maps, if given.
    pub(crate) fn dtype_given(&self) -> Option<DType> {
        self.dtype.map(|dtype| match dtype {
            DTypeChoice::F32 => DType::F32,
            DTypeChoice::Bf16 => DType::BF16,
            DTypeChoice::F16 => DType::F16,
        })
    }
}

/// That a device computes in an element type.
///
/// # Errors
/// If it does not.
pub(crate) fn check_dtype(dtype: DType, device: &Device) -> Result<()> {
    if dtype == DType::F16 && device.is_cpu() {
        bail!("f16 is for GPUs; on the CPU use --dtype bf16 or --dtype f32");
    }
    Ok(())
}

/// A GPU, where this machine has one, else the CPU. Only a machine without a driver or a GPU takes the CPU: a GPU that
/// cannot be used is an error, so that nobody waits for a CPU unknowingly.
#[cfg(feature = "cuda")]
fn best_device(local_rank: usize) -> Result<Device> {
    match zoo_ops::cuda::count()? {
        Ok(_) => own_cuda(local_rank),
        Err(reason) => {
            eprintln!("note: computing on the CPU, because {reason}");
            Ok(Device::Cpu)
        }
    }
}

/// The GPU of a process among those of its machine: that of its number, or the only one that its launcher lets it see
/// (Slurm's `--gpus-per-task`).
#[cfg(feature = "cuda")]
fn own_cuda(local_rank: usize) -> Result<Device> {
    let sees_one = zoo_ops::cuda::count()? == Ok(1) && std::env::var_os("CUDA_VISIBLE_DEVICES").is_some();
    cuda(if sees_one { 0 } else { local_rank })
}

#[cfg(not(feature = "cuda"))]
fn own_cuda(local_rank: usize) -> Result<Device> {
    cuda(local_rank)
}

/// A GPU, where this build and machine have one, else the CPU; says why it is the CPU in a build for GPUs.
#[cfg(all(feature = "metal", not(feature = "cuda")))]
fn best_device(_: usize) -> Result<Device> {
    Ok(metal().unwrap_or_else(|error| {
        eprintln!("note: computing on the CPU, because {error:#}");
        Device::Cpu
    }))
}

/// The CPU, as this build has nothing else.
#[cfg(not(any(feature = "metal", feature = "cuda")))]
fn best_device(_: usize) -> Result<Device> {
    Ok(Device::Cpu)
}

#[cfg(feature = "cuda")]
fn cuda(index: usize) -> Result<Device> {
    Ok(zoo_ops::cuda::open(index)?)
}

#[cfg(not(feature = "cuda"))]
fn cuda(_: usize) -> Result<Device> {
    bail!(
        "this build of zoo has no CUDA support, which cargo build --features cuda adds; use --device cpu, or leave \
           --device out"
    )
}

/// The first GPU of a Mac. Where there is none, as in many virtual ones, candle panics.
#[cfg(feature = "metal")]
fn metal() -> Result<Device> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let opened = std::panic::catch_unwind(|| Device::new_metal(0));
    std::panic::set_hook(hook);
    match opened {
        Ok(device) => {
            device.context("the GPU cannot be used through Metal; --device cpu computes without it")
        }
        Err(_) => bail!("this machine has no GPU that Metal could use; --device cpu computes without one"),
    }
}

#[cfg(not(feature = "metal"))]
fn metal() -> Result<Device> {
    bail!(
        "this build of zoo has no Metal support, which cargo build --features metal adds on a Mac; use --device cpu, \
           or leave --device out"
    )
}

/// The kind of a device as `--device` has it.
pub(crate) fn device_name(device: &Device) -> &'static str {
    match device {
        Device::Cpu => "cpu",
        Device::Cuda(_) => "cuda",
        Device::Metal(_) => "metal",
    }
}

/// Parses a whole number of at least 1.
pub(crate) fn non_zero(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(0) | Err(_) => Err("expected a whole number of at least 1".into()),
        Ok(n) => Ok(n),
    }
}

/// Parses a number; whether it makes sense is for its user to say.
pub(crate) fn number(text: &str) -> Result<f64, String> {
    text.parse().map_err(|_| "expected a number, such as 0.1".into())
}
