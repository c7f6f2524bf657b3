//! Bytes on their way to a GPU: from memory that the system cannot move, on a stream of their own, while the GPU computes
//! with those before.

use super::Arg;
use candle_core::cuda_backend::cudarc::driver::{
    CudaEvent, CudaSlice, CudaStream, DevicePtr, PinnedHostSlice,
};
use candle_core::cuda_backend::{CudaDevice, DeviceId, WrapErr};
use candle_core::{Device, Result};
use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

/// Buffers that take turns: one is filled while the GPU reads the other.
const BUFFERS: usize = 2;

thread_local! {
    static UPLOADS: RefCell<HashMap<DeviceId, Uploads>> = RefCell::new(HashMap::new());
}

/// Lets `launch` launch what reads `bytes` on a GPU, where they have an address. It is theirs for these launches only.
///
/// # Errors
/// If there is no memory for them, and those of `launch`.
pub(super) fn with_bytes(
    device: &Device,
    bytes: &[u8],
    launch: impl FnOnce(Arg) -> Result<()>,
) -> Result<()> {
    let device = device.as_cuda_device()?;
    UPLOADS.with_borrow_mut(|uploads| {
        let uploads = match uploads.entry(device.id()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Uploads::new(device)?),
        };
        uploads.send(device, bytes, launch)
    })
}

struct Uploads {
    stream: Arc<CudaStream>,
    buffers: [Option<Buffer>; BUFFERS],
    /// The one whose turn it is.
    turn: usize,
}

/// Memory of the computer and of the GPU, as long as each other.
struct Buffer {
    host: PinnedHostSlice<u8>,
    device: CudaSlice<u8>,
    /// Recorded behind what was launched last to read `device`.
    read: CudaEvent,
    /// Recorded behind the last copy from `host` to `device`. `PinnedHostSlice` has an event of its own, which cudarc
    /// does not record where event tracking is disabled, as it is here; an event that was never recorded counts as past.
    copied: CudaEvent,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // The copy reads `host` until it is made. A device that fails here reads nothing any more.
        let _ = self.copied.synchronize();
    }
}

impl Uploads {
    fn new(device: &CudaDevice) -> Result<Self> {
        let stream = device.cuda_stream().context().new_stream().w()?;
        Ok(Self { stream, buffers: Default::default(), turn: 0 })
    }

    fn send(
        &mut self,
        device: &CudaDevice,
        bytes: &[u8],
        launch: impl FnOnce(Arg) -> Result<()>,
    ) -> Result<()> {
        let computing = device.cuda_stream();
        let buffer = &mut self.buffers[self.turn];
        self.turn = (self.turn + 1) % BUFFERS;
        let old = buffer.take().filter(|buffer| buffer.host.len() >= bytes.len());
        let buffer = buffer.insert(old.map_or_else(|| Buffer::new(device, bytes.len()), Ok)?);
        // The copy of two calls ago, which the GPU has made long since unless it is far behind.
        buffer.copied.synchronize().w()?;
        let host = buffer.host.as_mut_slice().w()?;
        host[..bytes.len()].copy_from_slice(bytes);
        self.stream.wait(&buffer.read).w()?;
        // All of the buffer, which is longer than the bytes in the last batch of an epoch only.
        self.stream.memcpy_htod(&buffer.host, &mut buffer.device).w()?;
        buffer.copied.record(&self.stream).w()?;
        computing.join(&self.stream).w()?;
        let address = buffer.device.device_ptr(&computing).0;
        let launched = launch(Arg::Pointer(address));
        buffer.read = computing.record_event(None).w()?;
        launched
    }
}

impl Buffer {
    #[expect(unsafe_code, reason = "memory with arbitrary contents")]
    fn new(device: &CudaDevice, len: usize) -> Result<Self> {
        let len = len.max(1);
        // SAFETY: nothing reads the one before bytes are written to it, or the other before it is copied there; what lies
        // behind the bytes of a short batch is copied and not looked at.
        let (host, on_device) =
            unsafe { (device.cuda_stream().context().alloc_pinned(len).w()?, device.alloc(len)?) };
        // The stream's copy must not come before its memory has been given.
        let read = device.cuda_stream().record_event(None).w()?;
        let copied = device.cuda_stream().record_event(None).w()?;
        Ok(Self { host, device: on_device, read, copied })
    }
}
