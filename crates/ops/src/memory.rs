//! The allocator for programs that train, behind the feature `mimalloc`.
//!
//! A training step allocates and frees hundreds of megabytes in large pieces. The system's allocator hands
//! them back to the kernel, which clears fresh pages for the next step; mimalloc, told to keep what it has,
//! does not.

pub use mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc's header; the binding lacks its name. It stands just before
/// `use_numa_nodes`, in version 2 as in version 3.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = libmimalloc_sys::mi_option_use_numa_nodes - 1;

/// Makes mimalloc keep freed memory for this process instead of returning it. Call it first thing in `main`.
pub fn keep_freed_memory() {
    #[expect(unsafe_code, reason = "a C function")]
    // SAFETY: sets a number in mimalloc's table of options; -1 means never.
    unsafe {
        libmimalloc_sys::mi_option_set(PURGE_DELAY, -1);
    }
}
