//! Sums of gradients over ranks, begun while the backward goes on.
//!
//! A layer's gradients are known long before those of the layers below it, and the sum over ranks takes the network and
//! not the processor. So they are gathered in buckets, as they come, and each bucket is on its way as soon as it is
//! full: Li et al., "PyTorch Distributed", VLDB 2020, section 3.2.

use super::{concat, split};
use crate::gradients::Gradients;
use candle_core::{Result, Tensor, TensorId, Var};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use zoo_ops::ranks::{Communicator, PendingSum};

/// Elements of a bucket: 4 MB, in which a network is busy for far longer than an exchange takes to begin.
const ELEMENTS: usize = 1 << 20;

/// The sums of one step's gradients. Ranks with the same network fill the same buckets.
pub(crate) struct Buckets {
    ranks: Arc<dyn Communicator>,
    /// Elements of a full one.
    capacity: usize,
    /// The place of each parameter in the list of all.
    places: HashMap<TensorId, usize>,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    /// What earlier passes have given, by the parameters' places, until the last pass takes it along.
    before: Vec<Option<Tensor>>,
    filling: Vec<Part>,
    elements: usize,
    begun: Vec<(Vec<Part>, PendingSum)>,
}

/// A tensor `[n]` of a bucket, and what it is a part of: the gradient of the parameter at that place, or what else is
/// added up, numbered from behind the last parameter on.
struct Part {
    of: usize,
    values: Tensor,
}

impl Buckets {
    /// For the gradients of these parameters, of which earlier passes have given some.
    pub(crate) fn new(
        ranks: &Arc<dyn Communicator>,
        parameters: &[(String, Var)],
        before: Gradients,
    ) -> Rc<Self> {
        Rc::new(Self::of_capacity(ELEMENTS, ranks, parameters, before))
    }

    fn of_capacity(
        capacity: usize,
        ranks: &Arc<dyn Communicator>,
        parameters: &[(String, Var)],
        before: Gradients,
    ) -> Self {
        let places = parameters.iter().enumerate().map(|(place, (_, var))| (var.id(), place)).collect();
        let mut before: Vec<Option<Tensor>> = before.into();
        before.resize(parameters.len(), None);
        let state = RefCell::new(State { before, ..State::default() });
        Self { ranks: Arc::clone(ranks), capacity, places, state }
    }

    /// Takes a gradient of a variable, or a part of it. One that is no parameter is left out.
    ///
    /// # Errors
    /// If a rank has ended or does not answer.
    pub(crate) fn take(&self, variable: &Tensor, gradient: &Tensor) -> Result<()> {
        let Some(&place) = self.places.get(&variable.id()) else { return Ok(()) };
        let before = self.state.borrow_mut().before[place].take();
        let gradient = before.map_or(Ok(gradient.clone()), |before| before + gradient)?;
        self.add(place, &gradient)?;
        if self.state.borrow().elements >= self.capacity { self.begin() } else { Ok(()) }
    }

    fn add(&self, of: usize, values: &Tensor) -> Result<()> {
        let mut state = self.state.borrow_mut();
        state.elements += values.elem_count();
        state.filling.push(Part { of, values: values.flatten_all()? });
        Ok(())
    }

    /// Sends what there is.
    fn begin(&self) -> Result<()> {
        let mut state = self.state.borrow_mut();
        state.elements = 0;
        let parts = std::mem::take(&mut state.filling);
        let values: Vec<Tensor> = parts.iter().map(|part| part.values.clone()).collect();
        if let Some(all) = concat(&values)? {
            state.begun.push((parts, self.ranks.begin_sum(&all)?));
        }
        Ok(())
    }

    /// The sums: of all that was taken with the gradients that nothing has taken, for each parameter, and of tensors
    /// `[n]` beside them.
    ///
    /// # Errors
    /// If a rank has ended or does not answer.
    pub(crate) fn finish(
        &self,
        parameters: &[(String, Var)],
        rest: Gradients,
        others: &[Tensor],
    ) -> Result<(Gradients, Vec<Tensor>)> {
        let mut all = Gradients::from(std::mem::take(&mut self.state.borrow_mut().before));
        all.add(rest)?;
        let others = others.iter().enumerate().map(|(i, other)| (parameters.len() + i, Some(other)));
        for (of, values) in all.iter().enumerate().chain(others) {
            if let Some(values) = values {
                self.add(of, values)?;
            }
        }
        self.begin()?;
        let mut sums: Vec<Option<Tensor>> = Vec::new();
        for (parts, sum) in std::mem::take(&mut self.state.borrow_mut().begun) {
            let (places, values): (Vec<usize>, Vec<Tensor>) =
                parts.into_iter().map(|part| (part.of, part.values)).unzip();
            for (place, part) in places.into_iter().zip(split(&sum()?, &values)?) {
                sums.resize(sums.len().max(place + 1), None);
                sums[place] = Some(match sums[place].take() {
                    Some(sum) => (sum + part)?,
                    None => part,
                });
            }
        }
        let others = sums.split_off(parameters.len().min(sums.len())).into_iter().flatten().collect();
        sums.resize(parameters.len(), None);
        for (sum, (_, var)) in sums.iter_mut().zip(parameters) {
            *sum = sum.take().map(|sum| sum.reshape(var.shape())).transpose()?;
        }
        Ok((sums.into(), others))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use std::sync::Mutex;

    /// Two ranks, of which the other has twice as much as this one.
    #[derive(Debug, Default)]
    struct Two(Mutex<Vec<usize>>);

    impl Communicator for Two {
        fn rank(&self) -> usize {
            0
        }

        fn size(&self) -> usize {
            2
        }

        fn sum(&self, xs: &Tensor) -> Result<Tensor> {
            self.0.lock().unwrap().push(xs.elem_count());
            xs * 3.0
        }
    }

    fn values(t: &Tensor) -> Vec<f32> {
        t.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn every_gradient_is_summed_once_in_whatever_bucket_it_travels() -> Result<()> {
        let two = Arc::new(Two::default());
        let ranks: Arc<dyn Communicator> = two.clone();
        let of = |shape: &[usize], first: f32| {
            let n: usize = shape.iter().product();
            Tensor::arange(first, first + n as f32, &Device::Cpu)?.reshape(shape)
        };
        let parameters = [[2, 3].as_slice(), &[4], &[1, 2, 2], &[3], &[1]]
            .iter()
            .map(|shape| Ok((String::new(), Var::from_tensor(&of(shape, 0.0)?)?)))
            .collect::<Result<Vec<_>>>()?;
        let before = vec![Some(of(&[2, 3], 10.0)?), None, None, Some(of(&[3], 20.0)?), None];
        let buckets = Buckets::of_capacity(5, &ranks, &parameters, before.into());
        // The last layer first; the third parameter in two parts; a variable that is no parameter.
        buckets.take(&parameters[2].1, &of(&[1, 2, 2], 1.0)?)?;
        let frozen = Var::from_tensor(&of(&[9], 0.0)?)?;
        buckets.take(&frozen, &frozen)?;
        buckets.take(&parameters[2].1, &of(&[1, 2, 2], 2.0)?)?;
        buckets.take(&parameters[0].1, &of(&[2, 3], 3.0)?)?;
        assert_eq!(*two.0.lock().unwrap(), [8, 6], "full buckets are on their way");
        let rest = vec![None, Some(of(&[4], 5.0)?), Some(of(&[1, 2, 2], 7.0)?), None, None];
        let (sums, others) = buckets.finish(&parameters, rest.into(), &[of(&[2], 30.0)?])?;
        assert_eq!(*two.0.lock().unwrap(), [8, 6, 13]);
        let expected: [Option<&[f32]>; 5] = [
            Some(&[39., 45., 51., 57., 63., 69.]),
            Some(&[15., 18., 21., 24.]),
            Some(&[30., 39., 48., 57.]),
            Some(&[60., 63., 66.]),
            None,
        ];
        for ((sum, expected), (_, var)) in sums.iter().zip(expected).zip(&parameters) {
            assert_eq!(sum.map(values).as_deref(), expected);
            assert!(sum.is_none_or(|sum| sum.shape() == var.shape()));
        }
        assert_eq!(others.iter().map(values).collect::<Vec<_>>(), [[90., 93.]]);
        Ok(())
    }

    #[test]
    fn without_gradients_there_is_nothing_to_send() -> Result<()> {
        let two = Arc::new(Two::default());
        let ranks: Arc<dyn Communicator> = two.clone();
        let parameters = [(String::new(), Var::zeros(2, candle_core::DType::F32, &Device::Cpu)?)];
        let buckets = Buckets::new(&ranks, &parameters, Gradients::default());
        let (sums, others) = buckets.finish(&parameters, Gradients::default(), &[])?;
        assert!(sums.iter().all(|sum| sum.is_none()) && others.is_empty());
        assert!(two.0.lock().unwrap().is_empty());
        Ok(())
    }
}
