//! Ranks with a GPU each: NCCL for what is on the GPUs, TCP for the rest, which also notices that a rank has ended.

use super::tcp::Tcp;
use crate::Result;
use candle_core::{Device, Tensor};
use zoo_ops::cuda::{Nccl, NcclId};
use zoo_ops::ranks::{Communicator, PendingSum, check_sum};

#[derive(Debug)]
pub(super) struct Gpus {
    tcp: Tcp,
    nccl: Nccl,
}

impl Gpus {
    /// Hands on to the other ranks what the first one has drawn for NCCL.
    pub(super) fn join(device: &Device, tcp: Tcp) -> Result<Self> {
        let (rank, size) = (tcp.rank(), tcp.size());
        let drawn = if rank == 0 { Nccl::id()? } else { [0; size_of::<NcclId>()] };
        let numbers: Vec<f32> = drawn.iter().map(|&byte| byte.into()).collect();
        let numbers = tcp.sum(&Tensor::new(numbers, &Device::Cpu)?)?.to_vec1::<f32>()?;
        let mut id: NcclId = [0; size_of::<NcclId>()];
        for (byte, number) in id.iter_mut().zip(numbers) {
            *byte = number as u8;
        }
        let nccl = Nccl::join(device, rank, size, &id)?;
        Ok(Self { tcp, nccl })
    }
}

impl Communicator for Gpus {
    fn rank(&self) -> usize {
        self.tcp.rank()
    }

    fn size(&self) -> usize {
        self.tcp.size()
    }

    fn sum(&self, xs: &Tensor) -> candle_core::Result<Tensor> {
        check_sum(xs)?;
        match xs.device() {
            Device::Cpu => self.tcp.sum(xs),
            _ => self.nccl.begin_sum(xs)?(),
        }
    }

    fn begin_sum(&self, xs: &Tensor) -> candle_core::Result<PendingSum> {
        check_sum(xs)?;
        match xs.device() {
            Device::Cpu => self.tcp.begin_sum(xs),
            _ => self.nccl.begin_sum(xs),
        }
    }
}
