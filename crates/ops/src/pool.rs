//! Buffers of activations and their gradients, kept for the next layer and the next step: memory that was used
//! before need neither be faulted in nor cleared, and some of it is still in cache.

use crate::element::Element;
use crate::huge_pages::collapse_new;
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How many times larger than what is asked for a buffer may be: a small map must not occupy the memory that a
/// large one will want next.
const SLACK: usize = 4;

/// Bytes from which a buffer gets large pages: less leave too much of the last one unused.
const LARGE_BYTES: usize = 4 << 20;

/// Free buffers of one element type.
pub(crate) struct Pool<T>(Mutex<State<T>>);

struct State<T> {
    /// By length.
    free: BTreeMap<usize, Vec<Vec<T>>>,
    /// Elements that are free, that are lent out, and the most that ever were.
    pooled: usize,
    lent: usize,
    most_lent: usize,
}

impl<T> Pool<T> {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(State { free: BTreeMap::new(), pooled: 0, lent: 0, most_lent: 0 }))
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // What a panic leaves behind is whole: every change below is made in one go.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> State<T> {
    /// Takes out the shortest buffer of at least `len`, if it is not much longer.
    fn find(&mut self, len: usize) -> Option<Vec<T>> {
        let (&found, _) = self.free.range(len..=len.saturating_mul(SLACK)).next()?;
        self.remove(found)
    }

    fn remove(&mut self, len: usize) -> Option<Vec<T>> {
        let same = self.free.get_mut(&len)?;
        let buffer = same.pop();
        if same.is_empty() {
            self.free.remove(&len);
        }
        self.pooled -= buffer.as_ref().map_or(0, Vec::len);
        buffer
    }
}

/// A buffer that goes back to its pool when dropped.
#[derive(Debug)]
pub(crate) struct Buffer<T: Element> {
    /// What the pool gave, which may be longer.
    memory: Vec<T>,
    len: usize,
}

/// A buffer with arbitrary contents, every element of which the caller writes.
pub(crate) fn take<T: Element>(len: usize) -> Buffer<T> {
    if len == 0 {
        return Buffer::default();
    }
    let mut state = T::pool().lock();
    let found = state.find(len);
    state.lent += found.as_ref().map_or(len, Vec::len);
    state.most_lent = state.most_lent.max(state.lent);
    // Sizes that nobody asks for any more are let go once there is more of them than was ever in use.
    while found.is_none() && state.pooled + state.lent > 2 * state.most_lent {
        let Some(&largest) = state.free.keys().next_back() else { break };
        state.remove(largest);
    }
    drop(state);
    Buffer { memory: found.unwrap_or_else(|| new(len)), len }
}

fn new<T: Element>(len: usize) -> Vec<T> {
    let mut memory = vec![T::default(); len];
    if size_of_val(&memory[..]) >= LARGE_BYTES {
        collapse_new(&mut memory);
    }
    memory
}

impl<T: Element> Buffer<T> {
    pub(crate) fn copy_of(elements: &[T]) -> Self {
        let mut buffer = take(elements.len());
        buffer.copy_from_slice(elements);
        buffer
    }
}

impl<T: Element> Default for Buffer<T> {
    fn default() -> Self {
        Self { memory: Vec::new(), len: 0 }
    }
}

impl<T: Element> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.memory[..self.len]
    }
}

impl<T: Element> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.memory[..self.len]
    }
}

impl<T: Element> Drop for Buffer<T> {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        if !memory.is_empty() {
            let mut state = T::pool().lock();
            state.lent -= memory.len();
            state.pooled += memory.len();
            state.free.entry(memory.len()).or_default().push(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a pool of its own, since other tests run beside this one.
    #[test]
    fn the_shortest_buffer_that_fits_is_found() {
        let pool = Pool::<f32>::new();
        for len in [100, 40, 60] {
            let mut state = pool.lock();
            state.pooled += len;
            state.free.entry(len).or_default().push(vec![0.0; len]);
        }
        let find = |len| pool.lock().find(len).map(|buffer| buffer.len());
        assert_eq!(find(41), Some(60));
        assert_eq!(find(41), Some(100));
        assert_eq!(find(41), None);
        assert_eq!(find(9), None, "more than {SLACK} times as long");
        assert_eq!(find(10), Some(40));
        assert_eq!(pool.lock().pooled, 0);
    }
}
