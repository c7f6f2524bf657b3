//! How CPU kernels share work: always in pieces whose size does not depend on the number of threads, so that
//! sums are formed in the same order whatever that number is.

use crate::element::Element;
use crate::team::{self, threads};
use std::cell::RefCell;
use std::mem::ManuallyDrop;

/// Uses `threads` threads for all CPU computation of this process, candle's own included. Must be called
/// before the first tensor operation, on the thread that will compute: it becomes one of them, so that small
/// operators need not wait for another thread to wake up.
///
/// # Errors
/// If threads compute already.
pub fn set_threads(threads: usize) -> candle_core::Result<()> {
    if !team::set_threads(threads) {
        candle_core::bail!("the number of threads cannot be changed any more: tensors have been computed")
    }
    let threads = threads.max(1).to_string();
    #[expect(unsafe_code, reason = "candle reads its thread count from the environment only")]
    // SAFETY: the contract above: called at the start of the program, before other threads exist.
    unsafe {
        std::env::set_var("RAYON_NUM_THREADS", &threads);
        std::env::set_var("CANDLE_NUM_THREADS", &threads);
    }
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.parse().unwrap_or(1))
        .use_current_thread()
        .build_global()
        .map_err(candle_core::Error::wrap)
}

/// Runs `f(index, item)` for each item in parallel.
pub(crate) fn each<T: Send>(items: impl IntoIterator<Item = T>, f: impl Fn(usize, T) + Sync) {
    let items: Items<T> = Items(items.into_iter().map(ManuallyDrop::new).collect());
    team::run(items.0.len(), &|i| {
        #[expect(unsafe_code, reason = "see `Items`")]
        // SAFETY: the team runs each number once, and none beyond.
        let item = unsafe { items.take(i) };
        f(i, item);
    });
}

/// What tasks take, each its own: without a lock, which would go from one processor's cache to another's. After a panic
/// some may be left, and are not dropped.
struct Items<T>(Vec<ManuallyDrop<T>>);

#[expect(unsafe_code, reason = "see `Items::take`")]
// SAFETY: all that threads can do with it is to take items, each on one thread, as if it had been sent there.
unsafe impl<T: Send> Sync for Items<T> {}

impl<T> Items<T> {
    /// # Safety
    /// Each item may be taken once.
    #[expect(unsafe_code, reason = "an item leaves through a shared reference")]
    unsafe fn take(&self, i: usize) -> T {
        // SAFETY: the caller's promise; the vector drops none of them.
        unsafe { std::ptr::read(&raw const *self.0[i]) }
    }
}

/// Writes `out` in pieces of `chunk` elements in parallel: `f(index, piece)`.
pub(crate) fn chunks<T: Send>(out: &mut [T], chunk: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    if chunk > 0 {
        each(out.chunks_mut(chunk), f);
    }
}

/// How many of `items` neighbouring items, of so many elements each, make a task that sums nothing over them: as many as
/// `most`, fewer where each thread would not have some tasks, but not so few that a task costs more than its work.
pub(crate) fn task_items(items: usize, elements: usize, most: usize) -> usize {
    const TASKS: usize = 4;
    const LEAST_ELEMENTS: usize = 2048;
    items.div_ceil(TASKS * threads()).max(LEAST_ELEMENTS.div_ceil(elements.max(1))).min(most)
}

/// Cuts `out` into parts of so many elements, one after the other; each with the number of its first.
pub(crate) fn parts<T>(mut out: &mut [T], lens: impl IntoIterator<Item = usize>) -> Vec<(usize, &mut [T])> {
    let mut first = 0;
    let part = |len| {
        let (part, others) = std::mem::take(&mut out).split_at_mut(len);
        out = others;
        first += len;
        (first - len, part)
    };
    lens.into_iter().map(part).collect()
}

/// Runs `f` for each index below `n` on the threads that compute, and collects the results in the order of the
/// indices.
pub fn map<R: Send>(n: usize, f: impl Fn(usize) -> R + Sync) -> Vec<R> {
    let mut results: Vec<Option<R>> = (0..n).map(|_| None).collect();
    each(&mut results, |i, result| *result = Some(f(i)));
    results.into_iter().flatten().collect()
}

/// An output buffer whose every element the caller writes.
pub(crate) fn buffer<T: Clone + Default>(len: usize) -> Vec<T> {
    vec![T::default(); len]
}

/// Lends `f` a buffer of `len` floats with arbitrary contents, kept by the thread from call to call so that
/// kernels do not fault in fresh pages each time, nor wait for what is in another processor's cache.
pub(crate) fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    thread_local! {
        static SCRATCH: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
    }
    // Taken out while in use, so that a nested call gets another one.
    let mut scratch = SCRATCH.with_borrow_mut(Vec::pop).unwrap_or_default();
    if scratch.len() < len {
        scratch.resize(len, 0.0);
    }
    let result = f(&mut scratch[..len]);
    SCRATCH.with_borrow_mut(|free| free.push(scratch));
    result
}

/// The same of `len` elements.
pub(crate) fn with_scratch_of<T: Element, R>(len: usize, f: impl FnOnce(&mut [T]) -> R) -> R {
    let floats = (len * size_of::<T>()).div_ceil(size_of::<f32>());
    with_scratch(floats, |memory| f(&mut T::in_memory(memory)[..len]))
}
