//! The allocator for programs that train, behind the feature `mimalloc`.
//!
//! A training step allocates and frees hundreds of megabytes in large pieces. The system's allocator hands
//! them back to the kernel, which clears fresh pages for the next step; mimalloc, told to keep what it has,
//! does not. Nor does it ask for huge pages: of buffers of a few megabytes they leave much unused (454 MB
//! against 397 for a training step of ResNet-18, 600 against 484 for inference with ResNet-50), and steps over many
//! images were not measurably slower without them. Weights that are kept for inference get them all the same
//! (`huge_pages.rs`): a single image needs all of them.

use mimalloc::MiMalloc;
use std::alloc::{GlobalAlloc, Layout};

/// mimalloc, for a program to take as its global allocator. Where memory cannot be had the process ends with
/// one line on stderr and exit code 1, where Rust's own answer is to abort; so nobody gets to see a failed
/// allocation, `Vec::try_reserve` included.
#[derive(Debug, Clone, Copy, Default)]
pub struct Allocator;

#[expect(unsafe_code, reason = "allocators are")]
// SAFETY: every call is handed on as it is, to an allocator that keeps the contract.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract.
        granted(unsafe { MiMalloc.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract.
        granted(unsafe { MiMalloc.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller keeps the contract.
        granted(unsafe { MiMalloc.realloc(ptr, layout, new_size) }, new_size)
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract.
        unsafe { MiMalloc.dealloc(ptr, layout) }
    }
}

/// Hands on a pointer that is one.
#[inline]
fn granted(ptr: *mut u8, size: usize) -> *mut u8 {
    if ptr.is_null() {
        refused(size);
    }
    ptr
}

#[cold]
fn refused(size: usize) -> ! {
    // Written to stderr piece by piece, which allocates nothing.
    eprintln!("error: there is no memory for {size} bytes more; smaller images or batches need less");
    std::process::exit(1)
}

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
