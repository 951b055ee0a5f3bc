//! Independent rows shared out over the thread pool.

use edgelm_kernels::Pool;
use std::sync::OnceLock;

/// `f(0), f(1), … f(count − 1)`, in this order whatever thread computed them: sums over the result do not depend on the
/// number of threads.
pub(crate) fn map_rows<T: Send + Sync>(pool: &Pool, count: usize, f: &(dyn Fn(usize) -> T + Sync)) -> Vec<T> {
    let cells: Vec<OnceLock<T>> = (0..count).map(|_| OnceLock::new()).collect();
    pool.split(count, 1, &|range| {
        for row in range {
            cells[row].get_or_init(|| f(row));
        }
    });
    cells.into_iter().map(|cell| cell.into_inner().expect("the pool runs every row")).collect()
}
