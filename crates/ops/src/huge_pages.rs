//! Memory in pages of 2 MiB, for weights that every image needs and for large maps.
//!
//! A page of 4 KiB needs an entry in the processor's table of translations, which holds some thousands of them: 45 MB of
//! weights miss it at every page. What is small and comes and goes is better off without large pages, of which it leaves
//! much unused, so only what is kept is asked for.

/// The system's page of the next size.
#[cfg(target_os = "linux")]
const PAGE: usize = 2 << 20;

/// Linux's number, which the binding has for one C library only.
#[cfg(target_os = "linux")]
const MADV_COLLAPSE: libc::c_int = 25;

/// Moves the whole pages within a slice that stays where it is into large ones, if the system has any. What the
/// slice holds stays as it is.
#[cfg(target_os = "linux")]
pub(crate) fn collapse<T>(data: &[T]) {
    let start = (data.as_ptr() as usize).next_multiple_of(PAGE);
    let end = (data.as_ptr() as usize + size_of_val(data)) / PAGE * PAGE;
    if start >= end {
        return;
    }
    let set_disabled = |disabled: libc::c_int| {
        #[expect(unsafe_code, reason = "a system call")]
        // SAFETY: takes numbers, and changes how this process gets its pages.
        unsafe {
            libc::prctl(libc::PR_SET_THP_DISABLE, disabled, 0, 0, 0);
        }
    };
    #[expect(unsafe_code, reason = "a system call")]
    // SAFETY: takes numbers.
    let disabled = unsafe { libc::prctl(libc::PR_GET_THP_DISABLE, 0, 0, 0, 0) } == 1;
    // The allocator may have turned them off for everything.
    if disabled {
        set_disabled(0);
    }
    #[expect(unsafe_code, reason = "a system call")]
    // SAFETY: the range lies within the slice. The system copies pages and maps the copies to the same addresses, or
    // refuses, which changes nothing.
    unsafe {
        libc::madvise(start as *mut libc::c_void, end - start, MADV_COLLAPSE);
    }
    if disabled {
        set_disabled(1);
    }
}

/// [`collapse`] for memory that has not been written to, and may have no pages at all yet.
pub(crate) fn collapse_new<T: Default>(data: &mut [T]) {
    #[cfg(target_os = "linux")]
    {
        // A large page can only take the place of some that are there.
        for element in data.iter_mut().step_by(PAGE / size_of::<T>()) {
            *std::hint::black_box(element) = T::default();
        }
        collapse(data);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = data;
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn collapse<T>(_: &[T]) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_stay() {
        // Some whole pages and parts of two, whatever their size is.
        let mut memory = vec![0u32; 2_000_003];
        collapse_new(&mut memory);
        assert!(memory.iter().all(|&x| x == 0));
        (0..).zip(&mut memory).for_each(|(i, x)| *x = i);
        collapse(&memory);
        assert!((0..).zip(&memory).all(|(i, &x)| x == i));
    }
}
