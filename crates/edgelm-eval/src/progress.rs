//! What a running evaluation tells its caller.

/// One step done.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// A window was scored.
    Window {
        /// Windows so far, this one included.
        done: usize,
        /// Windows in all.
        total: usize,
        /// Over the windows so far.
        perplexity: f64,
        /// Mean over the windows so far, where a parent is compared with.
        kl_divergence: Option<f64>,
    },
    /// A task line was answered.
    Task {
        /// Its task.
        task: &'a str,
        /// Lines so far, this one included; how many there are is not known before the end of the file.
        done: usize,
        /// Right answers so far.
        correct: usize,
    },
    /// A pair was scored.
    Pair {
        /// Pairs so far, this one included.
        done: usize,
    },
}

/// Called after each step.
pub type OnProgress<'a> = dyn FnMut(Progress<'_>) + 'a;
