//! Ranks over MPI.

use crate::{Error, Result};
use candle_core::{DType, Tensor, bail};
use mpi::Threading;
use mpi::collective::SystemOperation;
use mpi::environment::Universe;
use mpi::topology::{Communicator as _, SimpleCommunicator};
use mpi::traits::CommunicatorCollectives as _;
use std::mem::ManuallyDrop;
use std::sync::{Mutex, PoisonError};
use zoo_ops::ranks::{Communicator, check_sum};

/// Variables that launchers of MPI set: Open MPI, and those with a process manager of MPICH's kind.
const LAUNCHED: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK"];

/// The processes that `mpirun` has started.
pub(super) struct Mpi {
    rank: usize,
    size: usize,
    /// What ends MPI when it is dropped, which waits for the other ranks to do so, too: not what a rank should do that
    /// has failed. One that just ends makes `mpirun` name it and end the others.
    universe: Mutex<Option<ManuallyDrop<Universe>>>,
}

impl std::fmt::Debug for Mpi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mpi").field("rank", &self.rank).field("size", &self.size).finish_non_exhaustive()
    }
}

impl Mpi {
    /// Where a launcher of MPI has started this process, with others.
    pub(super) fn join() -> Result<Option<Self>> {
        if LAUNCHED.iter().all(|name| std::env::var_os(name).is_none()) {
            return Ok(None);
        }
        // One thread at a time calls: that which forms sums, and in the end this one.
        let Some((universe, threading)) = mpi::initialize_with_threading(Threading::Serialized) else {
            return Err(Error::Ranks("MPI has been started twice in one process".into()));
        };
        if threading < Threading::Serialized {
            return Err(Error::Ranks(format!("this MPI offers threads at level {threading:?} only")));
        }
        let world = SimpleCommunicator::world();
        let (rank, size) = (world.rank() as usize, world.size() as usize);
        Ok(Some(Self { rank, size, universe: Mutex::new(Some(ManuallyDrop::new(universe))) }))
    }
}

impl Communicator for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn sum(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        macro_rules! sum {
            ($type:ty) => {{
                let own = xs.to_vec1::<$type>()?;
                let mut sums = vec![0 as $type; own.len()];
                SimpleCommunicator::world().all_reduce_into(&own[..], &mut sums[..], SystemOperation::sum());
                Tensor::from_vec(sums, xs.shape(), xs.device())
            }};
        }
        check_sum(xs)?;
        match xs.dtype() {
            DType::F32 => sum!(f32),
            DType::F64 => sum!(f64),
            dtype => bail!("ranks do not add up {dtype:?}"),
        }
    }

    fn leave(&self) {
        let universe = self.universe.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(universe.map(ManuallyDrop::into_inner));
    }
}
