//! A mutable slice that several workers fill, each its own part.
#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::ops::Range;

/// Shared by the workers of one region; the caller's exclusive borrow lasts as long as it does.
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    _slice: PhantomData<&'a mut [T]>,
}

// SAFETY: the only way in is `part`, whose callers promise that no two parts in use overlap; then sharing is no more
// than handing out the pieces of `split_at_mut`.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), _slice: PhantomData }
    }

    /// Elements `range`. Panics if they are not all inside the slice.
    ///
    /// # Safety
    /// No other part in use at the same time overlaps this one.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: inside the slice that `new` borrowed for 'a, and unshared by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}
