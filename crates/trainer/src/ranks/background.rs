//! Sums over ranks that are formed while this process computes.

use candle_core::{Result, Tensor, bail};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use zoo_ops::ranks::{Communicator, PendingSum};

/// Other ranks, whose sums a thread of their own forms, one after the other in the order in which they were begun.
#[derive(Debug)]
pub(super) struct InBackground {
    ranks: Arc<dyn Communicator>,
    begun: Mutex<Sender<Sum>>,
}

/// What one is of, and where it goes.
type Sum = (Tensor, Sender<Result<Tensor>>);

impl InBackground {
    pub(super) fn new(ranks: impl Communicator + 'static) -> std::io::Result<Self> {
        let ranks: Arc<dyn Communicator> = Arc::new(ranks);
        let (begun, sums) = channel();
        let theirs = Arc::clone(&ranks);
        std::thread::Builder::new().name("ranks".into()).spawn(move || run(&*theirs, &sums))?;
        Ok(Self { ranks, begun: Mutex::new(begun) })
    }
}

/// Until nobody is left who could begin one.
fn run(ranks: &dyn Communicator, sums: &Receiver<Sum>) {
    while let Ok((xs, to)) = sums.recv() {
        // Whoever began it may have given up.
        let _ = to.send(ranks.sum(&xs));
    }
}

impl Communicator for InBackground {
    fn rank(&self) -> usize {
        self.ranks.rank()
    }

    fn size(&self) -> usize {
        self.ranks.size()
    }

    fn sum(&self, xs: &Tensor) -> Result<Tensor> {
        self.begin_sum(xs)?()
    }

    fn begin_sum(&self, xs: &Tensor) -> Result<PendingSum> {
        let (to, sum) = channel();
        let begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        if begun.send((xs.detach(), to)).is_err() {
            bail!("the thread that adds up what the ranks have is gone");
        }
        Ok(Box::new(move || match sum.recv() {
            Ok(sum) => sum,
            Err(_) => bail!("the thread that adds up what the ranks have is gone"),
        }))
    }

    fn leave(&self) {
        self.ranks.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use std::time::{Duration, Instant};

    /// Ranks on a slow network.
    #[derive(Debug)]
    struct Slow(Mutex<Vec<f32>>);

    const LATENCY: Duration = Duration::from_millis(100);

    impl Communicator for Slow {
        fn rank(&self) -> usize {
            1
        }

        fn size(&self) -> usize {
            2
        }

        fn sum(&self, xs: &Tensor) -> Result<Tensor> {
            std::thread::sleep(LATENCY);
            let first = xs.to_vec1::<f32>()?[0];
            if first < 0.0 {
                bail!("rank 0 has ended");
            }
            self.0.lock().unwrap().push(first);
            xs * 2.0
        }
    }

    #[test]
    fn sums_are_formed_in_order_and_beside_other_work() -> Result<()> {
        let ranks = InBackground::new(Slow(Mutex::default())).unwrap();
        let of = |x: f32| Tensor::new(&[x], &Device::Cpu);
        let start = Instant::now();
        let (first, second) = (ranks.begin_sum(&of(1.0)?)?, ranks.begin_sum(&of(2.0)?)?);
        let failed = ranks.begin_sum(&of(-1.0)?)?;
        assert!(start.elapsed() < LATENCY, "beginning does not wait");
        assert_eq!(ranks.sum(&of(4.0)?)?.to_vec1::<f32>()?, [8.0]);
        assert_eq!(second()?.to_vec1::<f32>()?, [4.0]);
        assert_eq!(first()?.to_vec1::<f32>()?, [2.0]);
        assert!(failed().unwrap_err().to_string().contains("rank 0 has ended"));
        assert!(start.elapsed() < LATENCY * 8, "each was formed once");
        Ok(())
    }
}
