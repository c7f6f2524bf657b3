//! Buffers of activations and their gradients, kept for the next step: a training step asks for the same sizes
//! over and over, and memory that was used before need neither be faulted in nor cleared.

use crate::element::Element;
use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Free buffers of one element type.
pub(crate) struct Pool<T>(Mutex<Option<State<T>>>);

struct State<T> {
    free: HashMap<usize, Vec<Vec<T>>>,
    /// Elements that are free, that are lent out, and the most that ever were.
    pooled: usize,
    lent: usize,
    most_lent: usize,
}

impl<T> Pool<T> {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(None))
    }

    fn lock(&self) -> MutexGuard<'_, Option<State<T>>> {
        // What a panic leaves behind is whole: every change below is made in one go.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> State<T> {
    fn new() -> Self {
        Self { free: HashMap::new(), pooled: 0, lent: 0, most_lent: 0 }
    }
}

/// A buffer with arbitrary contents, every element of which the caller writes.
pub(crate) fn take<T: Element>(len: usize) -> Vec<T> {
    let mut guard = T::pool().lock();
    let state = guard.get_or_insert_with(State::new);
    state.lent += len;
    state.most_lent = state.most_lent.max(state.lent);
    let found = state.free.get_mut(&len).and_then(Vec::pop);
    if found.is_some() {
        state.pooled -= len;
    }
    drop(guard);
    found.unwrap_or_else(|| vec![T::default(); len])
}

/// Gives a buffer back. Sizes that nobody asks for any more are let go once what is free exceeds twice what
/// was ever in use.
pub(crate) fn give<T: Element>(buffer: Vec<T>) {
    let len = buffer.len();
    if len == 0 {
        return;
    }
    let mut guard = T::pool().lock();
    let state = guard.get_or_insert_with(State::new);
    state.lent = state.lent.saturating_sub(len);
    if state.pooled + len > 2 * state.most_lent {
        (state.free, state.pooled) = (HashMap::new(), 0);
    }
    state.pooled += len;
    state.free.entry(len).or_default().push(buffer);
}

/// A buffer that goes back by itself.
#[derive(Debug)]
pub(crate) struct Lent<T: Element>(Vec<T>);

/// Like [`take`], for a while.
pub(crate) fn lend<T: Element>(len: usize) -> Lent<T> {
    Lent(take(len))
}

impl<T: Element> Deref for Lent<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Element> DerefMut for Lent<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}

impl<T: Element> Drop for Lent<T> {
    fn drop(&mut self) {
        give(std::mem::take(&mut self.0));
    }
}
