//! Ranks with a GPU each: NCCL for what is on the GPUs, TCP for the rest, which also notices that a rank has ended.

use super::Membership;
use super::tcp::Tcp;
use crate::Result;
use candle_core::{Device, Tensor};
use std::time::Duration;
use zoo_ops::cuda::{Nccl, NcclId};
use zoo_ops::ranks::{Communicator, PendingSum, check_sum};

#[derive(Debug)]
pub(super) struct Gpus {
    tcp: Tcp,
    nccl: Nccl,
}

impl Gpus {
    /// Meets the other ranks, and hands on what the first one has drawn for NCCL.
    pub(super) fn connect(device: &Device, membership: &Membership, timeout: Duration) -> Result<Self> {
        let tcp = Tcp::connect(membership, timeout)?;
        let drawn = if membership.rank == 0 { Nccl::id()? } else { [0; size_of::<NcclId>()] };
        let numbers: Vec<f32> = drawn.iter().map(|&byte| byte.into()).collect();
        let numbers = tcp.sum(&Tensor::new(numbers, &Device::Cpu)?)?.to_vec1::<f32>()?;
        let mut id: NcclId = [0; size_of::<NcclId>()];
        for (byte, number) in id.iter_mut().zip(numbers) {
            *byte = number as u8;
        }
        let nccl = Nccl::join(device, membership.rank, membership.size, &id)?;
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
