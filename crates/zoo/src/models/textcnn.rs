//! TextCNN (Kim, "Convolutional neural networks for sentence classification", arXiv 1408.5882, section 2, with the
//! hyperparameters of section 3.1): CNN-rand, whose word vectors start at random and are trained. Keys and shapes
//! are those of Shawn1993/cnn-text-classification-pytorch.
//!
//! A sentence comes as an image whose pixels are words, see [`zoo_ops::embedding`](mod@zoo_ops::embedding); an image
//! of 8 pixels a side is a sentence padded to 64 words. The table has a vector for each of 20,000 words, whatever
//! the data.
//!
//! Differs from the paper: the norm of the output layer's weights has no limit (there is weight decay), and
//! sentences are padded at their end only. Word vectors start uniform within ±0.25, as in the author's code those of
//! words that word2vec lacks; the other layers start as PyTorch's do.

use crate::layers::{Conv2d, Linear};
use crate::model::{Config, Network};
use crate::registry::Spec;
use candle_core::{Result, Tensor, bail};
use candle_nn::{Init, VarBuilder};
use zoo_ops::rng::Noise;
use zoo_ops::{
    Activation::Relu, Conv2dConfig, FeatureMap, Window2d, activation, concat, dropout, embedding, max_pool2d,
};

/// Rows of the table: padding, unknown words, and the most frequent words of the training sentences.
const ROWS: usize = zoo_ops::embedding::ROWS;
/// Elements of a word's vector.
const DIM: usize = 300;
/// Words that a filter sees, and filters of each such width.
const WIDTHS: [usize; 3] = [3, 4, 5];
const FILTERS: usize = 100;

/// The family of models that read sentences.
pub(crate) const FAMILY: &str = "textcnn";

pub(crate) fn specs() -> Vec<Spec> {
    vec![Spec {
        name: "textcnn",
        family: FAMILY,
        // 64 words of three bytes; two classes, as in most of the paper's data sets.
        input: [3, 8, 8],
        num_classes: 2,
        stem: "convs1.0",
        head: "fc1",
        build: Box::new(|config, vb| Ok(Box::new(TextCnn::new(config, vb)?))),
    }]
}

struct TextCnn {
    embed: Tensor,
    convs: Vec<Conv2d>,
    fc1: Linear,
    dropout: f64,
    noise: Noise,
}

impl TextCnn {
    fn new(config: &Config, vb: VarBuilder<'_>) -> Result<Self> {
        if config.in_chans != 3 {
            bail!("textcnn: a word has 3 bytes, found {} channels", config.in_chans);
        }
        let conv = |(i, &width): (usize, &usize)| {
            let vb = vb.pp("convs1").pp(i);
            Conv2d::with_bias(1, FILTERS, (width, DIM), Conv2dConfig::default(), vb)
        };
        let init = Init::Uniform { lo: -0.25, up: 0.25 };
        Ok(Self {
            embed: vb.pp("embed").get_with_hints((ROWS, DIM), "weight", init)?,
            convs: WIDTHS.iter().enumerate().map(conv).collect::<Result<_>>()?,
            fc1: Linear::new(WIDTHS.len() * FILTERS, config.num_classes, vb.pp("fc1"))?,
            dropout: config.dropout.unwrap_or(0.5),
            noise: config.noise.clone(),
        })
    }
}

impl Network for TextCnn {
    fn forward(&self, xs: &FeatureMap, train: bool) -> Result<FeatureMap> {
        let words = embedding(xs, &self.embed)?.named("embed"); // N x 1 x 64 x 300
        let mut maxima = Vec::with_capacity(self.convs.len());
        for conv in &self.convs {
            let ys = activation(&conv.forward(&words)?, Relu)?; // N x 100 x 62 x 1, 61 and 60
            let time = Window2d { kernel: (ys.dims().1, 1), ..Window2d::square(1, 1) };
            maxima.push(max_pool2d(&ys, &time)?);
        }
        let xs = concat(&maxima.iter().collect::<Vec<_>>())?; // N x 300 x 1 x 1
        self.fc1.forward(&dropout(&xs, self.dropout, &self.noise, train)?)
    }
}
