//! The variables of a model: seeded initial values, a fixed order, and checked loading.

use crate::weights::{StateDict, check_except};
use candle_core::{DType, Device, Result, Shape, Tensor, Var, bail};
use candle_nn::init::NormalOrUniform;
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use rand::Rng;
use rand_distr::{Distribution, StandardNormal};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The variables of a model by name, created as a model asks for them.
///
/// Initial values are a function of the seed and the parameter's name alone, in any order of creation. Clones
/// share the variables.
#[derive(Debug, Clone)]
pub struct Params {
    /// `None` makes every initial value zero.
    seed: Option<u64>,
    vars: Arc<Mutex<Variables>>,
}

#[derive(Debug, Default)]
struct Variables {
    by_name: BTreeMap<String, Var>,
    frozen: BTreeSet<String>,
}

impl Params {
    /// No variables yet.
    pub fn new(seed: u64) -> Self {
        Self { seed: Some(seed), vars: Arc::default() }
    }

    /// No variables yet; they will be zero, for [`Params::load`] to fill.
    pub fn zeros() -> Self {
        Self { seed: None, vars: Arc::default() }
    }

    /// A `VarBuilder` that creates variables here, in f32.
    pub fn var_builder(&self, device: &Device) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), DType::F32, device.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Variables> {
        self.vars.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes variables constants for the models that are built from here afterwards: no gradient of them is
    /// formed, what no trained layer comes before runs as in inference, and a normalisation whose parameters all
    /// are constants keeps to its running statistics (see [`crate::layers::BatchNorm2d::new`]). They stay what
    /// they are otherwise: loaded, listed and saved like the others. A model that was built before is not changed;
    /// built again, it has the same values.
    pub fn freeze(&self, names: impl IntoIterator<Item = String>) {
        self.lock().frozen.extend(names);
    }

    /// All variables, buffers included, sorted by name.
    pub fn all(&self) -> Vec<(String, Var)> {
        self.lock().by_name.iter().map(|(name, var)| (name.clone(), var.clone())).collect()
    }

    /// The parameters that training changes unless they are frozen, sorted by name: all but running statistics.
    pub fn trainable(&self) -> Vec<(String, Var)> {
        let mut vars = self.all();
        vars.retain(|(name, _)| !is_buffer(name));
        vars
    }

    /// Names and shapes, sorted by name.
    pub fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        self.lock().by_name.iter().map(|(name, var)| (name.clone(), var.dims().to_vec())).collect()
    }

    /// The values of the variable `name`.
    ///
    /// # Errors
    /// If there is none.
    pub fn get(&self, name: &str) -> Result<Tensor> {
        Ok(self.var(name)?.as_detached_tensor())
    }

    /// Copies values into the variable `name`, in its dtype and on its device.
    ///
    /// # Errors
    /// If there is none, or it has another shape.
    pub fn set(&self, name: &str, values: &Tensor) -> Result<()> {
        let var = self.var(name)?;
        var.set(&values.to_dtype(var.dtype())?.to_device(var.device())?)
    }

    fn var(&self, name: &str) -> Result<Var> {
        match self.lock().by_name.get(name) {
            Some(var) => Ok(var.clone()),
            None => bail!("there is no parameter {name}"),
        }
    }

    /// Copies the tensors of a state dict into the variables, in their dtype and on their device.
    ///
    /// # Errors
    /// If names or shapes differ in any way (PyTorch's `num_batches_tracked` is let through, and auxiliary heads
    /// keep their values where the file has none); nothing is changed then, and the message names what is missing,
    /// unexpected or of another shape.
    pub fn load(&self, state: &StateDict) -> Result<()> {
        self.load_except(state, &[])
    }

    /// As [`Params::load`], but the variables in `fresh` may be missing and keep their values then: those of
    /// a new head, after [`crate::weights::adapt`].
    ///
    /// # Errors
    /// As [`Params::load`].
    pub fn load_except(&self, state: &StateDict, fresh: &[String]) -> Result<()> {
        let report = check_except(&self.shapes(), state, fresh);
        if !report.is_match() {
            bail!("the weights do not fit the model: {report}");
        }
        let mut values = Vec::new();
        for (name, var) in self.all() {
            if let Some(tensor) = state.tensors.get(&name) {
                values.push((tensor.to_dtype(var.dtype())?.to_device(var.device())?, var));
            }
        }
        for (value, var) in values {
            var.set(&value)?;
        }
        Ok(())
    }
}

/// Whether a name is a buffer's: state that is saved but not trained.
pub(crate) fn is_buffer(name: &str) -> bool {
    name.ends_with("running_mean") || name.ends_with("running_var")
}

/// Initial values in row-major order.
fn draw(seed: u64, name: &str, shape: &Shape, init: Init) -> Vec<f32> {
    let mut rng = zoo_ops::rng::stream(seed, &format!("init {name}"), 0);
    let n = shape.elem_count();
    let mut normal = |mean: f64, stdev: f64| -> Vec<f32> {
        (0..n)
            .map(|_| {
                let z: f64 = StandardNormal.sample(&mut rng);
                (mean + stdev * z) as f32
            })
            .collect()
    };
    match init {
        Init::Const(value) => vec![value as f32; n],
        Init::Randn { mean, stdev } => normal(mean, stdev),
        Init::Uniform { lo, up } => (0..n).map(|_| (lo + (up - lo) * rng.random::<f64>()) as f32).collect(),
        Init::Kaiming { dist, fan, non_linearity } => {
            let stdev = non_linearity.gain() / (fan.for_shape(shape) as f64).sqrt();
            match dist {
                NormalOrUniform::Normal => normal(0.0, stdev),
                NormalOrUniform::Uniform => {
                    let bound = 3f64.sqrt() * stdev;
                    (0..n).map(|_| (bound * (2.0 * rng.random::<f64>() - 1.0)) as f32).collect()
                }
            }
        }
    }
}

impl SimpleBackend for Params {
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let mut vars = self.lock();
        // A frozen variable's elements without its being one, so that nothing is differentiated by it.
        let frozen = vars.frozen.contains(name);
        let tensor = |var: &Var| if frozen { var.as_detached_tensor() } else { var.as_tensor().clone() };
        if let Some(var) = vars.by_name.get(name) {
            if var.shape() != &shape {
                bail!("parameter {name} has shape {:?}, asked for as {shape:?}", var.shape());
            }
            return Ok(tensor(var));
        }
        let var = match self.seed {
            Some(seed) => {
                let values = draw(seed, name, &shape, init);
                Var::from_tensor(&Tensor::from_vec(values, shape, device)?.to_dtype(dtype)?)?
            }
            None => Var::zeros(shape, dtype, device)?,
        };
        let tensor = tensor(&var);
        vars.by_name.insert(name.to_string(), var);
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        Ok(self.var(name)?.as_tensor().clone())
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.lock().by_name.contains_key(name)
    }
}
