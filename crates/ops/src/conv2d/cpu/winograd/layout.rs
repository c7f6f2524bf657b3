//! Where transformed tiles lie, and what they are made of.

use super::super::super::Geometry;
use super::super::product::width_of;
use super::transform::Window;
use crate::element::Element;
use std::ops::Range;

/// Elements between the data of neighbouring positions. A transform writes to all of them at once, and those a
/// power of two apart would share a few sets of the cache.
pub(super) const GAP: usize = 16;

/// Transformed data of a set of tiles: [position][block of channels][tile][channel of the block], neighbouring
/// positions [`GAP`] further apart.
#[derive(Debug, Clone, Copy)]
pub(super) struct Store {
    pub(super) tiles: usize,
    pub(super) channels: usize,
    /// Channels of a block.
    pub(super) block: usize,
}

impl Store {
    /// All channels of a tile together.
    pub(super) fn by_tile(tiles: usize, channels: usize) -> Self {
        Self { tiles, channels, block: channels }
    }

    /// A panel's width of channels of each tile together.
    pub(super) fn by_panel(tiles: usize, channels: usize) -> Self {
        Self { tiles, channels, block: width_of(channels) }
    }

    /// The same for so many tiles.
    pub(super) fn of(self, tiles: usize) -> Self {
        Self { tiles, ..self }
    }

    pub(super) fn block_len(&self) -> usize {
        self.tiles * self.block
    }

    pub(super) fn blocks(&self) -> usize {
        self.channels.div_ceil(self.block)
    }

    pub(super) fn position_len(&self) -> usize {
        self.blocks() * self.block_len() + GAP
    }

    pub(super) fn len(&self, positions: usize) -> usize {
        positions * self.position_len()
    }

    /// Where a tile's channel lies in a position's data.
    pub(super) fn at(&self, tile: usize, channel: usize) -> usize {
        channel / self.block * self.block_len() + tile * self.block + channel % self.block
    }
}

/// The tiles of a batch. A *strip* is a row of tiles of one image: whole rows of pixels.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    /// Outputs along a side of a tile.
    pub(super) side: usize,
    /// Strips of an image, and tiles of a strip.
    pub(super) strips: usize,
    pub(super) columns: usize,
    pub(super) images: usize,
}

impl Tiles {
    pub(super) fn new(g: &Geometry, side: usize) -> Self {
        Self { side, strips: g.out.0.div_ceil(side), columns: g.out.1.div_ceil(side), images: g.n }
    }

    pub(super) fn count(&self) -> usize {
        self.images * self.strips * self.columns
    }

    /// Some `tasks` tasks of whole strips.
    pub(super) fn tasks(&self, tasks: usize) -> Vec<Range<usize>> {
        let total = self.images * self.strips;
        let tasks = tasks.clamp(1, total.max(1));
        (0..tasks).map(|i| total * i / tasks..total * (i + 1) / tasks).collect()
    }

    /// Calls `f(tile of the task, image, row and column of the first output pixel)` for each tile of strips.
    pub(super) fn for_each(&self, strips: Range<usize>, mut f: impl FnMut(usize, usize, (usize, usize))) {
        for (i, strip) in strips.enumerate() {
            for column in 0..self.columns {
                let corner = (strip % self.strips * self.side, column * self.side);
                f(i * self.columns + column, strip / self.strips, corner);
            }
        }
    }
}

/// What a transform reads: maps [n, height, width, channels] and the offset of the first tile.
#[derive(Clone, Copy)]
pub(super) struct Source<'a, T> {
    pub(super) maps: &'a [T],
    pub(super) size: (usize, usize),
    pub(super) offset: (usize, usize),
    /// A pixel of zeros.
    pub(super) outside: &'a [T],
}

impl<'a, T: Element> Source<'a, T> {
    pub(super) fn window(&self, image: usize, (y, x): (usize, usize)) -> Window<'a, T> {
        let len = self.size.0 * self.size.1 * self.outside.len();
        let corner = (y as isize - self.offset.0 as isize, x as isize - self.offset.1 as isize);
        Window::new(&self.maps[image * len..][..len], self.size, corner, self.outside)
    }
}
