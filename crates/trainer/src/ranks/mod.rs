//! The processes of a run: how they find one another, and what they exchange.
//!
//! Each rank computes the gradients of its share of a batch; their sum over the ranks is the gradient of the whole, and
//! every rank takes the same step with it. All draw the same initial values, and the shares of a batch are cut from the
//! same order, which they do as long as all have the same settings and data: that is compared before the first step.

mod agreement;
mod background;
mod buckets;
mod environment;
mod meeting;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
mod tcp;
mod torch_store;

pub(crate) use agreement::Facts;
pub(crate) use buckets::Buckets;
pub use environment::Membership;

use crate::{Error, Result};
use background::InBackground;
use candle_core::{Device, Tensor, Var};
use std::sync::Arc;
use std::time::Duration;
use zoo_ops::ranks::{Alone, Communicator};

/// How long a rank waits for another one unless `ZOO_RANK_TIMEOUT_SECONDS` says otherwise.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Where a run computes: on which device, and with which other processes.
#[derive(Debug, Clone)]
pub struct Place {
    /// The device.
    pub device: Device,
    /// The processes.
    pub ranks: Arc<dyn Communicator>,
}

impl From<&Device> for Place {
    /// A run of one process.
    fn from(device: &Device) -> Self {
        Self { device: device.clone(), ranks: Arc::new(Alone) }
    }
}

impl Place {
    /// On a device with the other processes that were started with this one: by Open MPI (`mpirun`, where the feature
    /// `mpi` is there), or as the environment says (see [`Membership::from_env`]). Waits for them.
    ///
    /// # Errors
    /// If the environment makes no sense, one of them does not come in time, or runs another version of this program or
    /// computes on a device of another kind.
    pub fn join(device: &Device) -> Result<Self> {
        let timeout = timeout()?;
        #[cfg(feature = "mpi")]
        if let Some(ranks) = mpi::Mpi::join()? {
            agreement::agree(&ranks, &Facts::of_program(device), true)?;
            return Ok(Self { device: device.clone(), ranks: in_background(ranks)? });
        }
        let ranks: Arc<dyn Communicator> = match Membership::from_env()? {
            Some(membership) => connect(device, &membership, timeout)?,
            None => Arc::new(Alone),
        };
        Ok(Self { device: device.clone(), ranks })
    }

    /// Whether this process writes the files of the run and tells how it goes on.
    pub fn is_first(&self) -> bool {
        self.ranks.rank() == 0
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.ranks.size() > 1
    }

    /// That batch `number`, where `expected` is due, is one that all ranks take part in.
    pub(crate) fn check_in_step(&self, number: usize, expected: usize) -> Result<()> {
        if self.is_shared() && number != expected {
            let rank = self.ranks.rank();
            let problem = format!("rank {rank} can read none of its images of batch {}", expected + 1);
            return Err(Error::Ranks(format!("{problem}; remove or mend them, or train with one process")));
        }
        Ok(())
    }

    /// A number that every rank has measured, as the first one has it: processors may differ in rounding, and what it
    /// decides must be the same on all.
    pub(crate) fn of_first(&self, number: f64) -> Result<f64> {
        if !self.is_shared() {
            return Ok(number);
        }
        let own = if self.is_first() { number } else { 0.0 };
        let sum = self.ranks.sum(&Tensor::new(&[own], &Device::Cpu)?)?;
        Ok(sum.to_vec1::<f64>()?[0])
    }

    /// Gives variables the values that the first rank has.
    pub(crate) fn take_from_first(&self, variables: &[(String, Var)]) -> Result<()> {
        if !self.is_shared() {
            return Ok(());
        }
        let own = |var: &Var| var.as_detached_tensor().flatten_all();
        let values = variables.iter().map(|(_, var)| own(var)).collect::<candle_core::Result<Vec<_>>>()?;
        let Some(mut all) = concat(&values)? else { return Ok(()) };
        if !self.is_first() {
            all = all.zeros_like()?;
        }
        let all = self.ranks.sum(&all)?;
        for ((_, var), values) in variables.iter().zip(split(&all, &values)?) {
            var.set(&values.reshape(var.shape())?.contiguous()?)?;
        }
        Ok(())
    }
}

/// Tensors \[n\] one after the other, if there are any.
pub(crate) fn concat(tensors: &[Tensor]) -> candle_core::Result<Option<Tensor>> {
    if tensors.is_empty() { Ok(None) } else { Tensor::cat(tensors, 0).map(Some) }
}

/// Undoes [`concat`]: parts of `all` as long as `like`.
pub(crate) fn split(all: &Tensor, like: &[Tensor]) -> candle_core::Result<Vec<Tensor>> {
    let mut start = 0;
    let part = |tensor: &Tensor| {
        let len = tensor.elem_count();
        start += len;
        all.narrow(0, start - len, len)
    };
    like.iter().map(part).collect()
}

fn connect(device: &Device, membership: &Membership, timeout: Duration) -> Result<Arc<dyn Communicator>> {
    if !(device.is_cpu() || cfg!(feature = "nccl") && device.is_cuda()) {
        return Err(Error::Ranks(
            "this build of zoo trains on one GPU only; cargo build --features nccl adds more".into(),
        ));
    }
    let ranks = tcp::Tcp::connect(membership, timeout)?;
    agreement::agree(&ranks, &Facts::of_program(device), true)?;
    #[cfg(feature = "nccl")]
    if device.is_cuda() {
        return Ok(Arc::new(nccl::Gpus::join(device, ranks)?));
    }
    in_background(ranks)
}

fn in_background(ranks: impl Communicator + 'static) -> Result<Arc<dyn Communicator>> {
    match InBackground::new(ranks) {
        Ok(ranks) => Ok(Arc::new(ranks)),
        Err(error) => {
            Err(Error::Ranks(format!("cannot start the thread that talks to other ranks: {error}")))
        }
    }
}

fn timeout() -> Result<Duration> {
    const NAME: &str = "ZOO_RANK_TIMEOUT_SECONDS";
    let Some(text) = std::env::var_os(NAME) else { return Ok(TIMEOUT) };
    let seconds = text.to_str().and_then(|text| text.parse::<u32>().ok()).filter(|&seconds| seconds > 0);
    match seconds {
        Some(seconds) => Ok(Duration::from_secs(seconds.into())),
        None => Err(Error::Ranks(format!("{NAME} must be a whole number of at least 1, found {text:?}"))),
    }
}
