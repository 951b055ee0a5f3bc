//! Ctrl-C: stops the work in hand where that can be done cleanly, else the program.

use std::sync::{
    Once,
    atomic::{AtomicBool, Ordering},
};

/// Exit status of a program that Ctrl-C ended, as shells report it.
pub const STATUS: u8 = 130;

static REQUESTED: AtomicBool = AtomicBool::new(false);
static IS_WORKING: AtomicBool = AtomicBool::new(false);

/// Work that asks `requested` now and then. While one exists, the first Ctrl-C only sets the flag.
pub struct Work;

impl Work {
    /// Begins. The first call starts the thread that waits for the signal.
    pub fn begin() -> Self {
        static START: Once = Once::new();
        START.call_once(|| {
            std::thread::spawn(wait);
        });
        REQUESTED.store(false, Ordering::Relaxed);
        IS_WORKING.store(true, Ordering::Relaxed);
        Self
    }

    /// Ctrl-C was pressed since `begin`.
    pub fn is_interrupted(&self) -> bool {
        is_requested()
    }
}

/// Ctrl-C was pressed since the last `Work::begin`.
pub fn is_requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

impl Drop for Work {
    fn drop(&mut self) {
        IS_WORKING.store(false, Ordering::Relaxed);
    }
}

fn wait() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    // Without a runtime Ctrl-C keeps its usual effect: it ends the program.
    let Ok(runtime) = runtime else { return };
    runtime.block_on(async {
        while tokio::signal::ctrl_c().await.is_ok() {
            let is_second = REQUESTED.swap(true, Ordering::Relaxed);
            if !IS_WORKING.load(Ordering::Relaxed) || is_second {
                eprintln!();
                std::process::exit(STATUS.into());
            }
        }
    });
}
