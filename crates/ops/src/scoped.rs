//! Values of a thread for as long as something runs.

use std::cell::RefCell;
use std::thread::LocalKey;

/// Runs `f` with `value` in a variable of the thread. What was there before is put back, after a panic too, and the
/// value comes back as `f` left it.
pub(crate) fn scoped<T: Default, R>(
    variable: &'static LocalKey<RefCell<T>>,
    value: T,
    f: impl FnOnce() -> R,
) -> (R, T) {
    struct Restore<T: Default + 'static>(&'static LocalKey<RefCell<T>>, T);
    impl<T: Default> Drop for Restore<T> {
        fn drop(&mut self) {
            self.0.set(std::mem::take(&mut self.1));
        }
    }
    let _restore = Restore(variable, variable.replace(value));
    let result = f();
    (result, variable.take())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    thread_local! {
        static SEEN: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }

    #[test]
    fn what_was_there_comes_back() {
        let (inner, outer) = scoped(&SEEN, vec![1], || {
            SEEN.with_borrow_mut(|seen| seen.push(2));
            let panicked = catch_unwind(AssertUnwindSafe(|| scoped(&SEEN, vec![3], || panic!("on the way"))));
            assert!(panicked.is_err());
            scoped(&SEEN, vec![4], || SEEN.with_borrow_mut(|seen| seen.push(5))).1
        });
        assert_eq!((inner, outer), (vec![4, 5], vec![1, 2]));
        assert!(SEEN.take().is_empty());
    }
}
