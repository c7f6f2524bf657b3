//! The threads that compute together.
//!
//! An operator hands its tasks to the team, takes part in them and goes on when all are done; a network's step
//! has hundreds of such *regions*, some of them a few microseconds long. Waking a sleeping thread takes longer
//! than that, and the system may wake it on the processor that its waker is busy on and leave it there. So the
//! team's threads stay awake for a while after a region, as those of OpenMP do.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// Threads of the team, the calling one included; settled by the first region.
static THREADS: OnceLock<usize> = OnceLock::new();

/// Sets how many threads compute: before the first region. False if that has been.
pub(crate) fn set_threads(threads: usize) -> bool {
    THREADS.set(threads.max(1)).is_ok()
}

/// How many threads compute.
pub(crate) fn threads() -> usize {
    *THREADS.get_or_init(|| thread::available_parallelism().map_or(1, usize::from))
}

/// Runs `task` once for every number below `tasks`, on the calling thread and the others of the team, and comes back
/// when all are done. Within a task, and while the team is at work for another thread, the tasks run here.
pub(crate) fn run(tasks: usize, task: &(dyn Fn(usize) + Sync)) {
    static TEAM: OnceLock<&'static Team> = OnceLock::new();
    if tasks > 1 {
        let team = TEAM.get_or_init(|| Team::start(threads()));
        if team.try_run(tasks, task) {
            return;
        }
    }
    (0..tasks).for_each(task);
}

/// How long a thread stays awake without work.
const PATIENCE: Duration = Duration::from_millis(2);

/// Looks for what a thread waits for before it lets other threads of the system run between two looks, and how many it
/// takes then: a thread that is away when a region begins costs as much as a small region.
const LOOKS_ALONE: usize = 2048;
const LOOKS: usize = 64;

/// Pieces that a thread's share of the tasks is taken in, at most.
const PIECES: usize = 16;

/// What the threads tell each other is laid out by cache lines, of which each takes 0.1 to 0.5 µs from one processor to
/// another: a region is announced to a thread by one line, and its end by another.
struct Team {
    /// Held from before a region to after it.
    taken: AtomicBool,
    /// Pieces of all regions that the workers had to do. Used by who holds `taken`.
    pieces: AtomicU64,
    /// What a task panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// The caller's, then a worker's each.
    shares: Box<[Share]>,
    workers: Box<[Worker]>,
}

/// The task of a region, which outlives it.
#[derive(Clone, Copy)]
struct Task(*const (dyn Fn(usize) + Sync));

/// Neighbouring tasks, which a thread takes first, so that it finds in its cache what it wrote in the last region.
#[repr(align(128))]
struct Share {
    /// The number of the newest region, how many pieces there are, and the first that nobody has taken:
    /// `number · NUMBER + pieces · COUNT + next`. Who adds to `next` and finds that it was one of the pieces has that
    /// piece, and until it is done the region does not end and nothing here changes.
    state: AtomicU64,
    /// What this is a share of: written by who holds `taken`, while nobody has a piece.
    of: UnsafeCell<Option<Part>>,
}

/// Tasks `first` to `end` of a region.
#[derive(Clone, Copy)]
struct Part {
    task: Task,
    first: usize,
    end: usize,
}

const COUNT: u64 = 1 << 16;
const NUMBER: u64 = 1 << 32;

/// The number of the region, the pieces, and the first of them that nobody has taken.
fn read(state: u64) -> (u64, usize, usize) {
    (state / NUMBER, (state / COUNT % COUNT) as usize, (state % COUNT) as usize)
}

#[derive(Default)]
#[repr(align(128))]
struct Worker {
    /// Pieces that it has ever done.
    done: AtomicU64,
    asleep: AtomicBool,
    /// Known once it has begun.
    thread: OnceLock<Thread>,
}

#[expect(unsafe_code, reason = "see `Share::of`")]
// SAFETY: `of` is only read by who has a piece and only written while nobody has; what the task points at is `Sync`.
unsafe impl Sync for Share {}

#[expect(unsafe_code, reason = "see above")]
// SAFETY: as above; a share has no thread of its own.
unsafe impl Send for Share {}

impl Team {
    /// A team of so many threads with the calling one; of fewer if the system has no more. It is never freed, as
    /// its threads never end.
    fn start(threads: usize) -> &'static Self {
        let share = |_| Share { state: AtomicU64::new(0), of: UnsafeCell::new(None) };
        let team: &'static Self = Box::leak(Box::new(Self {
            taken: AtomicBool::new(false),
            pieces: AtomicU64::new(0),
            panic: Mutex::new(None),
            shares: (0..threads).map(share).collect(),
            workers: (1..threads).map(|_| Worker::default()).collect(),
        }));
        for i in 1..threads {
            // Nobody misses a thread that cannot be had: others take its tasks.
            let _ = thread::Builder::new().name(format!("compute {i}")).spawn(move || team.serve(i));
        }
        team
    }

    /// Runs the tasks, unless the team is at work already.
    fn try_run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) -> bool {
        if self.workers.is_empty() || self.taken.swap(true, Ordering::Acquire) {
            return false;
        }
        // Given back at last, whatever happens in between.
        let _taken = Defer(|| self.taken.store(false, Ordering::Release));
        let pieces = self.open(tasks, task);
        let own = self.take_part(0, |_| ());
        self.close(pieces, own);
        let panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
        true
    }

    /// Begins a region, and says in how many pieces.
    fn open(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) -> u64 {
        let task: *const (dyn Fn(usize) + Sync + '_) = task;
        #[expect(unsafe_code, reason = "a reference that threads without a lifetime are to use")]
        // SAFETY: the same pointer. Nobody uses it after `close`, which comes before the reference ends.
        let task = Task(unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const (dyn Fn(usize) + Sync + 'static)>(
                task,
            )
        });
        let threads = self.shares.len();
        let mut all = 0;
        // The caller's last: the others begin meanwhile.
        for (i, share) in self.shares.iter().enumerate().rev() {
            let part =
                Part { task, first: (tasks * i).div_ceil(threads), end: (tasks * (i + 1)).div_ceil(threads) };
            let pieces = (part.end - part.first).min(PIECES) as u64;
            all += pieces;
            #[expect(unsafe_code, reason = "see `Share::of`")]
            // SAFETY: the caller holds `taken`, and all pieces of the last region are done.
            unsafe {
                *share.of.get() = Some(part);
            }
            let (number, ..) = read(share.state.load(Ordering::Relaxed));
            share.state.store((number + 1).wrapping_mul(NUMBER) + pieces * COUNT, Ordering::Release);
        }
        for worker in &self.workers {
            // One that falls asleep at this moment may be overlooked; it is woken for the next region.
            if worker.asleep.load(Ordering::Relaxed)
                && let Some(thread) = worker.thread.get()
            {
                thread.unpark();
            }
        }
        all
    }

    /// Ends a region of so many pieces, of which the caller has done its own: waits for the others.
    fn close(&self, pieces: u64, own: u64) {
        let all = self.pieces.load(Ordering::Relaxed) + pieces - own;
        self.pieces.store(all, Ordering::Relaxed);
        let mut looks = 0;
        while self.workers.iter().map(|worker| worker.done.load(Ordering::Acquire)).sum::<u64>() != all {
            looks += 1;
            look_on(looks);
        }
    }

    /// Does pieces until there are none: those of its own share first, then those of others. Says how many of a share,
    /// and of all.
    fn take_part(&self, thread: usize, done: impl Fn(u64)) -> u64 {
        let (others, own) = self.shares.split_at(thread);
        let mut all = 0;
        for share in own.iter().chain(others) {
            let mut of_share = 0;
            while self.piece(share) {
                of_share += 1;
            }
            if of_share > 0 {
                done(of_share);
            }
            all += of_share;
        }
        all
    }

    /// Does a piece of a share; false if there is none.
    fn piece(&self, share: &Share) -> bool {
        let (_, pieces, next) = read(share.state.load(Ordering::Relaxed));
        if next >= pieces {
            return false;
        }
        let (_, pieces, next) = read(share.state.fetch_add(1, Ordering::Acquire));
        if next >= pieces {
            return false;
        }
        #[expect(unsafe_code, reason = "see `Share::of`")]
        // SAFETY: this thread has a piece: `open` wrote what it is of before, and writes again when all are done.
        let part = unsafe { *share.of.get() };
        let Some(Part { task, first, end }) = part else { return false };
        let at = |piece: usize| first + (end - first) * piece / pieces;
        #[expect(unsafe_code, reason = "see `Team::open`")]
        // SAFETY: the task lives until all pieces are done.
        let task = unsafe { &*task.0 };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (at(next)..at(next + 1)).for_each(task))) {
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
        true
    }

    /// What a worker does all its life.
    fn serve(&self, thread: usize) {
        let (worker, share) = (&self.workers[thread - 1], &self.shares[thread]);
        worker.thread.get_or_init(thread::current);
        let count =
            |pieces| worker.done.store(worker.done.load(Ordering::Relaxed) + pieces, Ordering::Release);
        let (mut seen, mut looks, mut idle_since) = (0, 0, Instant::now());
        loop {
            let (number, ..) = read(share.state.load(Ordering::Acquire));
            if number != seen {
                seen = number;
                self.take_part(thread, count);
                looks = 0;
                continue;
            }
            looks += 1;
            if look_on(looks) {
                if looks < LOOKS_ALONE + LOOKS {
                    idle_since = Instant::now();
                }
                if idle_since.elapsed() > PATIENCE {
                    worker.asleep.store(true, Ordering::SeqCst);
                    if read(share.state.load(Ordering::SeqCst)).0 == seen {
                        thread::park();
                    }
                    worker.asleep.store(false, Ordering::Relaxed);
                    looks = 0;
                }
            }
        }
    }
}

/// Between two looks for what a thread waits for: lets other threads run now and then, and says so.
fn look_on(looks: usize) -> bool {
    let yields = looks >= LOOKS_ALONE && looks.is_multiple_of(LOOKS);
    if yields {
        thread::yield_now();
    } else {
        std::hint::spin_loop();
    }
    yields
}

/// Runs a function when it is dropped.
struct Defer<F: Fn()>(F);

impl<F: Fn()> Drop for Defer<F> {
    fn drop(&mut self) {
        self.0();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    fn counted(team: &Team, tasks: usize) -> Vec<usize> {
        let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        let count = |i: usize| {
            counts[i].fetch_add(1, Ordering::Relaxed);
        };
        assert!(team.try_run(tasks, &count));
        counts.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn every_task_runs_once() {
        for threads in [2, 3, 8] {
            let team = Team::start(threads);
            for i in 0..2000 {
                assert!(counted(team, i % 70).iter().all(|&n| n == 1), "{threads} threads");
            }
        }
    }

    /// Threads that have fallen asleep are woken.
    #[test]
    fn tasks_run_after_a_rest() {
        let team = Team::start(2);
        for _ in 0..5 {
            thread::sleep(PATIENCE * 3);
            // Neither of the two ends before the other has begun.
            let (begun, both) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let meet = |_: usize| {
                begun.fetch_add(1, Ordering::SeqCst);
                let start = Instant::now();
                while begun.load(Ordering::SeqCst) < 2 && start.elapsed() < Duration::from_secs(20) {
                    thread::yield_now();
                }
                both.fetch_add(begun.load(Ordering::SeqCst) / 2, Ordering::SeqCst);
            };
            assert!(team.try_run(2, &meet));
            assert_eq!(both.into_inner(), 2);
        }
    }

    #[test]
    fn a_task_within_a_task_runs_on_its_thread() {
        let team = Team::start(3);
        let inner = AtomicUsize::new(0);
        let outer = |_: usize| {
            let busy = |_: usize| {};
            inner.fetch_add(usize::from(!team.try_run(2, &busy)), Ordering::Relaxed);
        };
        assert!(team.try_run(10, &outer));
        assert_eq!(inner.into_inner(), 10);
    }

    /// A panic reaches the caller, after all others have ended, and the team goes on.
    #[test]
    fn a_panic_reaches_the_caller() {
        let team = Team::start(3);
        for broken in 0..20 {
            let ended = AtomicUsize::new(0);
            let task = |i: usize| {
                assert!(i != broken, "task {broken} is broken");
                ended.fetch_add(1, Ordering::Relaxed);
            };
            let result = catch_unwind(AssertUnwindSafe(|| team.try_run(20, &task)));
            let panic = result.expect_err("no panic came through");
            let text = panic.downcast_ref::<String>().map_or("", String::as_str);
            assert_eq!(text, format!("task {broken} is broken"));
            assert!(counted(team, 20).iter().all(|&n| n == 1));
        }
    }
}
