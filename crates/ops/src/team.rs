//! The threads that compute together.
//!
//! An operator hands its tasks to the team, takes part in them and goes on when all are done; a network's step
//! has hundreds of such *regions*, some of them a few microseconds long. Waking a sleeping thread takes longer
//! than that, and the system may wake it on the processor that its waker is busy on and leave it there. So the
//! team's threads stay awake for a while after a region, as those of OpenMP do.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
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

/// Looks at the team's state between two looks at the clock, of which each lets other threads of the system run.
const LOOKS: usize = 64;

/// Pieces that a thread's share of the tasks is taken in, at most.
const PIECES: usize = 16;

struct Team {
    /// The number of the newest region, how many threads are at work in it, and whether more may join:
    /// `number · NUMBER + threads · INSIDE + OPEN`.
    state: AtomicU64,
    /// Held from before a region to after it.
    taken: AtomicBool,
    /// The task of the region: written by who holds `taken`, while nobody is inside and nobody may join.
    task: UnsafeCell<Option<Task>>,
    /// What a task panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// The caller's, then a worker's each.
    shares: Box<[Share]>,
    workers: Box<[Worker]>,
}

const OPEN: u64 = 1;
const INSIDE: u64 = 2;
const NUMBER: u64 = 1 << 20;

/// The task of a region, which outlives it.
#[derive(Clone, Copy)]
struct Task(*const (dyn Fn(usize) + Sync));

/// Neighbouring tasks, which a thread takes first, so that it finds in its cache what it wrote in the last region.
/// On cache lines of its own.
#[derive(Default)]
#[repr(align(128))]
struct Share {
    next: AtomicUsize,
    end: AtomicUsize,
    /// Tasks that are taken at once.
    piece: AtomicUsize,
}

#[derive(Default)]
struct Worker {
    /// Known once it has begun.
    thread: OnceLock<Thread>,
    asleep: AtomicBool,
}

#[expect(unsafe_code, reason = "see `Team::task`")]
// SAFETY: `task` is only read inside of a region and only written outside of any; what it points at is `Sync`.
unsafe impl Sync for Team {}

#[expect(unsafe_code, reason = "see above")]
// SAFETY: as above; a team has no thread of its own.
unsafe impl Send for Team {}

impl Team {
    /// A team of so many threads with the calling one; of fewer if the system has no more. It is never freed, as
    /// its threads never end.
    fn start(threads: usize) -> &'static Self {
        let of_each = || (0..threads).map(|_| Share::default()).collect();
        let team: &'static Self = Box::leak(Box::new(Self {
            state: AtomicU64::new(0),
            taken: AtomicBool::new(false),
            task: UnsafeCell::new(None),
            panic: Mutex::new(None),
            shares: of_each(),
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
        self.open(tasks, task);
        {
            let _close = Defer(|| self.close());
            self.work(0, task);
        }
        let panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
        true
    }

    /// Begins a region.
    fn open(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let threads = self.shares.len();
        for (i, share) in self.shares.iter().enumerate() {
            let (first, end) = (tasks * i / threads, tasks * (i + 1) / threads);
            share.next.store(first, Ordering::Relaxed);
            share.end.store(end, Ordering::Relaxed);
            share.piece.store((end - first).div_ceil(PIECES).max(1), Ordering::Relaxed);
        }
        let task: *const (dyn Fn(usize) + Sync + '_) = task;
        #[expect(unsafe_code, reason = "a reference that threads without a lifetime are to use")]
        // SAFETY: the caller holds `taken` and `close` has seen everybody leave the last region, so nobody reads
        // the cell. Nobody uses the pointer after `close`, which comes before the reference ends.
        unsafe {
            let task = std::mem::transmute::<
                *const (dyn Fn(usize) + Sync + '_),
                *const (dyn Fn(usize) + Sync + 'static),
            >(task);
            *self.task.get() = Some(Task(task));
        }
        let number = self.state.load(Ordering::Relaxed) / NUMBER + 1;
        // Sequentially consistent like a worker's falling asleep: it sees the region or is seen asleep.
        self.state.store(number * NUMBER + OPEN, Ordering::SeqCst);
        for worker in &self.workers {
            if worker.asleep.load(Ordering::SeqCst)
                && let Some(thread) = worker.thread.get()
            {
                thread.unpark();
            }
        }
    }

    /// Ends a region: lets nobody join any more and waits for those inside.
    fn close(&self) {
        let mut state = self.state.fetch_and(!OPEN, Ordering::AcqRel) & !OPEN;
        let mut looks = 0;
        while !state.is_multiple_of(NUMBER) {
            looks += 1;
            if looks % LOOKS == 0 {
                thread::yield_now();
            }
            std::hint::spin_loop();
            state = self.state.load(Ordering::Acquire);
        }
    }

    /// Takes tasks until there are none: those of its own share first, then those of others.
    fn work(&self, thread: usize, task: &(dyn Fn(usize) + Sync)) {
        let (others, own) = self.shares.split_at(thread);
        for share in own.iter().chain(others) {
            let (end, piece) = (share.end.load(Ordering::Relaxed), share.piece.load(Ordering::Relaxed));
            loop {
                let first = share.next.fetch_add(piece, Ordering::Relaxed);
                if first >= end {
                    break;
                }
                (first..end.min(first + piece)).for_each(task);
            }
        }
    }

    /// What a worker does all its life.
    fn serve(&self, thread: usize) {
        let worker = &self.workers[thread - 1];
        worker.thread.get_or_init(thread::current);
        let (mut seen, mut looks, mut idle_since) = (0, 0, Instant::now());
        loop {
            let state = self.state.load(Ordering::Acquire);
            if state & OPEN != 0 && state / NUMBER != seen {
                let joined = state + INSIDE;
                if self.state.compare_exchange(state, joined, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    seen = state / NUMBER;
                    self.take_part(thread);
                    (looks, idle_since) = (0, Instant::now());
                }
                continue;
            }
            looks += 1;
            if looks % LOOKS != 0 {
                std::hint::spin_loop();
                continue;
            }
            thread::yield_now();
            if idle_since.elapsed() > PATIENCE {
                worker.asleep.store(true, Ordering::SeqCst);
                let state = self.state.load(Ordering::SeqCst);
                if state & OPEN == 0 || state / NUMBER == seen {
                    thread::park();
                }
                worker.asleep.store(false, Ordering::Relaxed);
                idle_since = Instant::now();
            }
        }
    }

    /// Works in the region that this thread has joined, and leaves it.
    fn take_part(&self, thread: usize) {
        #[expect(unsafe_code, reason = "see `Team::task`")]
        // SAFETY: joining makes what `open` wrote visible, and until this thread leaves, `close` waits: the cell
        // is not written and the task lives.
        let task = unsafe { (*self.task.get()).map(|task| &*task.0) };
        if let Some(task) = task
            && let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.work(thread, task)))
        {
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
        self.state.fetch_sub(INSIDE, Ordering::Release);
    }
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
